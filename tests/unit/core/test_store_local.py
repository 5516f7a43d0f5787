"""The store on a local folder, and what both kinds share: URIs, safe names, manifests, publishing and fetching."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from components.core import store, store_local, store_manifest
from components.core.errors import Cancelled, KubealignError, RetryableError, UserError
from components.core.store_manifest import MANIFEST, TEMPORARY, FileInfo, Manifest, check_key, run_parallel

# Names as file systems take them: spaces, quotes, percent signs, other scripts; not surrogates, "/" or zero bytes.
segments = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda text: text not in (".", "..", MANIFEST) and not text.startswith(TEMPORARY) and len(text.encode()) < 200
)
trees = st.dictionaries(
    segments, st.binary(max_size=300) | st.dictionaries(segments, st.binary(max_size=300), min_size=1)
)
uses_disk = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_tree(root: Path, tree: dict[str, bytes | dict[str, bytes]]) -> dict[str, bytes]:
    """Write nested names below `root`; the same as {relative path: content}."""
    flat = {}
    for name, value in tree.items():
        for inner, data in value.items() if isinstance(value, dict) else [("", value)]:
            flat[f"{name}/{inner}" if inner else name] = data
    root.mkdir(parents=True, exist_ok=True)
    for name, data in flat.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return flat


def read_tree(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith(TEMPORARY))
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path != root / MANIFEST}


def read_from(folder: int, name: str) -> bytes:
    with open(name, "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=folder)) as file:
        return file.read()


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob(f"{TEMPORARY}*"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small directory to publish."""
    write_tree(tmp_path / "model", {"config.json": b"{}", "weights": {"a.safetensors": b"A" * 5000, "b": b""}})
    return tmp_path / "model"


# --- URIs ------------------------------------------------------------------------------------------------------------


@given(segments, segments)
@example("a%20b", "50%41?#")
def test_join_and_local_path_keep_any_name_in_every_spelling(first: str, second: str) -> None:
    assert store.local_path(store.join("/data", first, second)) == Path("/data", first, second)
    assert store.local_path(store.join("file:///data", f"{first}/{second}")) == Path("/data", first, second)
    assert store.local_path(Path("/data", first).as_uri()) == Path("/data", first)


def test_paths_are_absolute_whatever_the_spelling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert store.local_path("out/../runs") == tmp_path / "runs"
    assert store.local_path("~/runs") == tmp_path / "home" / "runs"
    assert store.local_path("file://localhost/a%20b") == Path("/a b")
    assert store.local_path("//two/slashes") == Path("/two/slashes")
    assert store.local_path("s3://bucket/key") is None


@pytest.mark.parametrize("uri", ["", "gs://bucket/x", "file://relative/x", "https://user:pw@host/x", "a\0b"])
def test_what_is_not_a_store_is_a_user_error_without_the_password(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        store.for_uri(uri)
    assert "pw" not in str(caught.value)


BAD_KEYS = ["", "/etc/passwd", "../x", "a/../b", "a/..", "..", ".", "a//b", "a/", "./a", "a\0b", "a/./b", "\udcff"]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_key_that_could_lead_out_of_the_root_is_refused(key: str, tmp_path: Path) -> None:
    local = store.open_store(str(tmp_path / "root"))
    with pytest.raises(UserError):
        local.put(key, b"")
    with pytest.raises(UserError):
        local.get(key)
    with pytest.raises(UserError):
        local.delete_prefix(key)
    with pytest.raises(UserError):
        store.join("s3://bucket/a", key)


@given(st.text())
def test_accepted_key_always_stays_inside_the_root(key: str) -> None:
    try:
        check_key(key)
    except UserError:
        return
    assert os.path.normpath(f"/root/{key}") == f"/root/{key}"


# --- single objects --------------------------------------------------------------------------------------------------


@uses_disk
@given(segments, segments, st.binary())
def test_object_comes_back_as_it_was_put(tmp_path: Path, folder: str, name: str, data: bytes) -> None:
    local = store.open_store(str(tmp_path / "s"))
    assert local.put(f"{folder}/{name}", data) is True
    assert local.get(f"{folder}/{name}") == data
    assert local.exists(f"{folder}/{name}") and not local.exists(folder)
    assert [(e.key, e.size) for e in local.list(folder)] == [(f"{folder}/{name}", len(data))]
    local.delete_prefix(folder)
    assert not local.exists(f"{folder}/{name}") and list(local.list()) == []


def test_of_many_conditional_writers_exactly_one_wins(tmp_path: Path) -> None:
    uri, start = str(tmp_path / "lock"), threading.Barrier(16)

    def write(number: int) -> bool:
        start.wait()
        return store.write_bytes(uri, b"%d" % number, if_absent=True)

    with ThreadPoolExecutor(16) as pool:
        won = [number for number, ok in enumerate(pool.map(write, range(16))) if ok]
    assert len(won) == 1
    assert store.read_bytes(uri) == b"%d" % won[0]
    assert leftovers(tmp_path) == []


def test_interrupted_put_leaves_the_old_content_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "result.json")
    store.write_bytes(uri, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_local.os, "fsync", full)
    with pytest.raises(UserError, match="disk full: .*result.json"):
        store.write_bytes(uri, b"new")
    assert store.read_bytes(uri) == b"old" and leftovers(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_disk_that_is_really_full_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 100)
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(UserError, match="^disk full"), store_local.explained(tmp_path):
        store_manifest.hash_file(tmp_path / "big", copy_to=full)
    os.close(full)


def test_missing_object_and_folder_in_the_way_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing-here"):
        store.read_bytes(str(tmp_path / "nothing-here"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError):
        store.write_bytes(str(tmp_path / "folder"), b"")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError):
        store.write_bytes(str(tmp_path / "file" / "below"), b"")
    assert not store.exists(str(tmp_path / "file" / "below"))


def test_list_is_sorted_bytewise_stays_in_its_folder_and_hides_what_is_under_way(tmp_path: Path) -> None:
    local = store.open_store(str(tmp_path))
    for key in ["step-1/é", "step-1/z", "step-1/a/b", "step-10/x", f"step-1/{TEMPORARY}1", f"step-1/{TEMPORARY}2/x"]:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(b"12")
    assert [entry.key for entry in local.list("step-1")] == ["step-1/a/b", "step-1/z", "step-1/é"]
    local.delete_prefix("step-1")
    assert [entry.key for entry in local.list()] == ["step-10/x"]


def test_file_is_copied_up_and_down_with_its_digest(tmp_path: Path) -> None:
    (tmp_path / "from").write_bytes(b"x" * 3_000_000)
    local, seen = store.open_store(str(tmp_path / "s")), []
    info = local.upload_file(tmp_path / "from", "deep/key", seen.append)
    assert info.size == sum(seen) == 3_000_000
    assert local.download_file("deep/key", tmp_path / "to") == info
    assert (tmp_path / "to").read_bytes() == (tmp_path / "from").read_bytes()


# --- publishing ------------------------------------------------------------------------------------------------------


@uses_disk
@given(trees)
def test_published_directory_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, tree: dict) -> None:
    tmp_path = tmp_path_factory.mktemp("t")
    files, seen = write_tree(tmp_path / "from", tree), []
    digest = store.publish(tmp_path / "from", (tmp_path / "to and fro").as_uri(), seen.append)
    assert digest == store.manifest_digest(str(tmp_path / "to and fro"))
    assert sum(seen) == sum(map(len, files.values()))
    there = store.fetch(str(tmp_path / "to and fro"), tmp_path / "unused")
    assert there == tmp_path / "to and fro" and not (tmp_path / "unused").exists()
    assert read_tree(there) == files
    copy = store.download_dir(str(there), tmp_path / "copy")
    assert read_tree(copy) == files and store.manifest_digest(str(copy)) == digest
    assert sorted(os.listdir(tmp_path)) == ["copy", "from", "to and fro"]


def test_digest_depends_on_content_and_names_only(model: Path, tmp_path: Path) -> None:
    first = store.publish(model, str(tmp_path / "a"))
    os.utime(model / "config.json", (1, 1))
    assert store.publish(model, str(tmp_path / "b")) == first
    (model / "config.json").rename(model / "config2.json")
    assert store.publish(model, str(tmp_path / "c")) != first


def test_directory_without_manifest_is_refused_by_name(model: Path) -> None:
    assert store.manifest_digest(str(model)) is None
    with pytest.raises(UserError, match=f"{model}: no MANIFEST.json"):
        store.fetch(str(model), "unused")


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "delete", "replace by folder"])
def test_damaged_file_is_refused(damage: str, model: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "published")
    store.publish(model, uri)
    victim = tmp_path / "published" / "weights" / "a.safetensors"
    data = victim.read_bytes()
    victim.unlink()
    if damage == "replace by folder":
        victim.mkdir()
    elif damage != "delete":
        victim.write_bytes({"flip": b"B" + data[1:], "truncate": data[:-1], "grow": data + b"A"}[damage])
    for read in (store.fetch, store.download_dir):
        with pytest.raises(UserError, match=r"a\.safetensors"):
            read(uri, tmp_path / "copy")
    assert store.manifest_digest(str(tmp_path / "copy")) is None


def test_file_that_the_manifest_does_not_vouch_for_is_refused(model: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "published")
    store.publish(model, uri)
    (tmp_path / "published" / ".nfs0001").write_bytes(b"")
    store.fetch(uri, "unused")
    (tmp_path / "published" / "weights" / "evil.pkl").write_bytes(b"")
    with pytest.raises(UserError, match="does not list: weights/evil.pkl"):
        store.fetch(uri, "unused")


def test_publishing_again_replaces_the_whole_directory(model: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "published")
    store.publish(model, uri)
    write_tree(tmp_path / "second", {"only": b"this"})
    store.publish(tmp_path / "second", uri)
    assert read_tree(store.fetch(uri, "unused")) == {"only": b"this"}
    assert leftovers(tmp_path) == []


def test_reader_sees_the_old_or_the_new_directory_or_none_but_never_a_mixture(tmp_path: Path) -> None:
    uri, stop, seen = str(tmp_path / "published"), threading.Event(), []
    versions = [write_tree(tmp_path / name, dict.fromkeys("abcdefgh", name.encode() * 3000)) for name in "12"]

    def publish(name: str) -> None:
        while not stop.is_set():
            store.publish(tmp_path / name, uri)

    def read() -> None:
        with contextlib.suppress(FileNotFoundError):  # absent, or deleted under us after it was replaced
            folder = os.open(uri, os.O_DIRECTORY)  # one directory, however often its name changes hands
            try:
                names = sorted({*os.listdir(folder)} - {MANIFEST})
                seen.append({name: read_from(folder, name) for name in names})
            finally:
                os.close(folder)

    deadline = time.monotonic() + 30
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(publish, name) for name in "12"]
        while sum(len(tree) == 8 for tree in seen) < 50 and time.monotonic() < deadline:
            read()
        stop.set()
        for writer in writers:
            writer.result()
    complete = [tree for tree in seen if len(tree) == 8]
    assert len(complete) == 50 and all(tree in versions for tree in complete)
    assert leftovers(tmp_path) == []


KILLED_PUBLISHER = """
import os, sys
from components.core import store
seen = 0
def die_after(count):
    global seen
    seen += count
    if seen > 2_000_000:
        os.kill(os.getpid(), 9)
store.publish(sys.argv[1], sys.argv[2], die_after)
"""


def test_killed_publisher_leaves_what_was_there_before(tmp_path: Path) -> None:
    write_tree(tmp_path / "new", {str(number): os.urandom(1_000_000) for number in range(4)})
    write_tree(tmp_path / "old", {"old": b"1"})
    for uri, before in [(str(tmp_path / "fresh"), None), (str(tmp_path / "replaced"), {"old": b"1"})]:
        if before:
            store.publish(tmp_path / "old", uri)
        killed = subprocess.run([sys.executable, "-c", KILLED_PUBLISHER, str(tmp_path / "new"), uri], check=False)
        assert killed.returncode == -9
        if before:
            assert read_tree(store.fetch(uri, "unused")) == before
        else:
            with pytest.raises(UserError, match="unfinished, or not published"):
                store.fetch(uri, "unused")
        store.publish(tmp_path / "new", uri)
        assert len(read_tree(store.fetch(uri, "unused"))) == 4
    assert list(store.open_store(str(tmp_path)).list("fresh")) and leftovers(tmp_path)


def test_litter_of_killed_publishers_is_removed_after_a_day(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{TEMPORARY}dead" / "x").mkdir(parents=True)
    store.publish(model, str(tmp_path / "a"))
    assert len(leftovers(tmp_path)) == 1
    now = store_local.time.time()
    monkeypatch.setattr(store_local.time, "time", lambda: now + 25 * 3600)
    store.publish(model, str(tmp_path / "b"))
    assert leftovers(tmp_path) == []


def test_failure_between_the_two_renames_brings_the_old_directory_back(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "published")
    store.publish(model, uri)
    before, really, calls = read_tree(tmp_path / "published"), store_local._renamed, []

    def fail_the_second_time(source: Path, target: Path) -> bool:
        calls.append(target)
        if len(calls) == 2:
            assert not target.exists()
            raise Cancelled("SIGTERM")
        return really(source, target)

    monkeypatch.setattr(store_local, "_renamed", fail_the_second_time)
    write_tree(tmp_path / "second", {"only": b"this"})
    with pytest.raises(Cancelled):
        store.publish(tmp_path / "second", uri)
    assert read_tree(store.fetch(uri, "unused")) == before and leftovers(tmp_path) == []


def test_directory_that_was_not_published_is_never_replaced(model: Path, tmp_path: Path) -> None:
    write_tree(tmp_path / "home", {"thesis.tex": b"years"})
    with pytest.raises(UserError, match="was not published by kubealign"):
        store.publish(model, str(tmp_path / "home"))
    assert read_tree(tmp_path / "home") == {"thesis.tex": b"years"} and leftovers(tmp_path) == []
    (tmp_path / "empty").mkdir()
    store.publish(model, str(tmp_path / "empty"))


def test_directory_published_where_it_is_only_gets_its_manifest(model: Path) -> None:
    inode = (model / "config.json").stat().st_ino
    digest = store.publish(model, str(model))
    assert store.manifest_digest(str(model)) == digest and store.fetch(str(model), "unused") == model
    assert (model / "config.json").stat().st_ino == inode


def test_publishing_into_or_around_itself_is_refused(model: Path) -> None:
    for uri in (model / "inside", model.parent):
        with pytest.raises(UserError, match="inside"):
            store.publish(model, str(uri))
    assert (model / "config.json").exists()


def test_links_to_files_are_followed_and_other_oddities_are_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"blob")
    (model / "link").symlink_to(tmp_path / "blob")
    store.publish(model, str(tmp_path / "a"))
    assert (tmp_path / "a" / "link").read_bytes() == b"blob" and not (tmp_path / "a" / "link").is_symlink()
    for odd in (tmp_path, tmp_path / "nothing"):
        (model / "odd").symlink_to(odd)
        with pytest.raises(UserError, match="odd: neither a file nor a directory"):
            store.publish(model, str(tmp_path / "b"))
        (model / "odd").unlink()
    with pytest.raises(UserError, match="no such directory"):
        store.publish(tmp_path / "nothing", str(tmp_path / "b"))


# --- fetching into a folder ------------------------------------------------------------------------------------------


def test_second_fetch_keeps_good_files_mends_bad_ones_and_drops_stale_ones(model: Path, tmp_path: Path) -> None:
    first, second, copy = str(tmp_path / "v1"), str(tmp_path / "v2"), tmp_path / "copy"
    store.publish(model, first)
    (model / "weights" / "b").unlink()
    store.publish(model, second)
    store.download_dir(first, copy)
    inode = (copy / "config.json").stat().st_ino
    (copy / "weights" / "a.safetensors").write_bytes(b"torn")
    seen: list[int] = []
    store.download_dir(second, copy, seen.append)
    assert read_tree(copy) == read_tree(model)
    assert (copy / "config.json").stat().st_ino == inode
    assert sum(seen) == 5002


def test_fetch_refuses_a_folder_with_foreign_files_and_touches_none(model: Path, tmp_path: Path) -> None:
    store.publish(model, str(tmp_path / "v1"))
    write_tree(tmp_path / "home", {"thesis.tex": b"years"})
    with pytest.raises(UserError, match=r"does not list: thesis\.tex"):
        store.download_dir(str(tmp_path / "v1"), tmp_path / "home")
    assert read_tree(tmp_path / "home") == {"thesis.tex": b"years"}


def test_directory_replaced_while_it_is_read_is_worth_a_retry(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "v1")
    store.publish(model, uri)
    write_tree(tmp_path / "second", {"config.json": b"[]"})
    really = store_local.LocalStore.download_file

    def replaced_first(self: store_local.LocalStore, *args: object) -> FileInfo:
        store.publish(tmp_path / "second", uri)
        return really(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(store_local.LocalStore, "download_file", replaced_first)
    with pytest.raises(RetryableError, match="replaced while it was read"):
        store.download_dir(uri, tmp_path / "copy")


def test_ranks_of_a_node_that_fetch_at_once_bring_each_file_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish(model, str(tmp_path / "v1"))
    really, brought = store_local.LocalStore.download_file, []

    def slowly(self: store_local.LocalStore, key: str, *args: object) -> FileInfo:
        brought.append(key.rpartition("/")[2])
        time.sleep(0.1)
        return really(self, key, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(store_local.LocalStore, "download_file", slowly)
    with ThreadPoolExecutor(3) as ranks:
        list(ranks.map(lambda _: store.download_dir(str(tmp_path / "v1"), tmp_path / "copy"), range(3)))
    assert sorted(brought) == ["a.safetensors", "b", "config.json"]
    assert read_tree(tmp_path / "copy") == read_tree(model)


# --- manifests and workers -------------------------------------------------------------------------------------------


@given(
    st.dictionaries(segments, st.builds(FileInfo, st.integers(0), st.binary(min_size=32, max_size=32).map(bytes.hex)))
)
def test_manifest_survives_its_file(files: dict[str, FileInfo]) -> None:
    assert Manifest.from_bytes(Manifest(files).to_bytes(), "uri").files == files


GOOD = {"size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"{}", b'{"files": []}', b"\xff",
        *(json.dumps({"files": files}).encode() for files in [
            {"../evil": GOOD}, {"/etc/passwd": GOOD}, {"a/../../b": GOOD}, {"": GOOD}, {MANIFEST: GOOD},
            {"a": {"size": 1}}, {"a": GOOD | {"size": -1}}, {"a": GOOD | {"size": "1"}}, {"a": GOOD | {"size": True}},
            {"a": GOOD | {"sha256": "0" * 63}}, {"a": GOOD | {"sha256": None}}, {"a": 3},
        ]),
    ],
)  # fmt: skip
def test_broken_or_hostile_manifest_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / MANIFEST).write_bytes(content)
    for use in (
        lambda uri: store.fetch(uri, "x"),
        lambda uri: store.download_dir(uri, tmp_path / "x"),
        store.manifest_digest,
    ):
        with pytest.raises(UserError):
            use(str(tmp_path / "d"))
    assert sorted(os.listdir(tmp_path)) == ["d"]


@given(st.binary(max_size=200))
def test_no_bytes_at_all_make_the_manifest_reader_fail_otherwise(content: bytes) -> None:
    with contextlib.suppress(KubealignError):
        Manifest.from_bytes(content, "uri")


def test_first_failure_stops_the_other_workers() -> None:
    started, done = threading.Event(), []

    def work(item: int, add: store.Progress) -> None:
        if item == 0:
            started.wait(10)
            raise UserError("the reason")
        started.set()
        for _ in range(10_000):
            add(1)
            threading.Event().wait(0.001)
        done.append(item)

    with pytest.raises(UserError, match="the reason"):
        run_parallel(work, range(50), workers=2)
    assert done == []
