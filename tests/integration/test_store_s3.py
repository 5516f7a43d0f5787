"""The store on a real S3 server, and behind a proxy that loses, delays and damages what passes."""

import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from components.core import store, store_s3
from components.core.errors import Cancelled, RetryableError, UserError, exit_code_for
from components.core.store_manifest import MANIFEST, CorruptError, Manifest

if TYPE_CHECKING:
    from tests.integration.conftest import S3Server

MIB = 1 << 20


def names(uri: str) -> list[str]:
    store_, key = store.for_uri(uri)
    return [entry.key.removeprefix(key).lstrip("/") for entry in store_.list(key)]


def read_tree(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".tmp-kubealign-"))
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path != root / MANIFEST}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small directory to publish, one file of which is large enough for several parts."""
    (tmp_path / "model" / "weights é").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_bytes(b"{}")
    (tmp_path / "model" / "weights é" / "a b+c%20?#&.safetensors").write_bytes(os.urandom(9 * MIB))
    (tmp_path / "model" / "empty").write_bytes(b"")
    return tmp_path / "model"


# --- single objects --------------------------------------------------------------------------------------------------


def test_object_comes_back_as_it_was_put(s3_bucket: str) -> None:
    uri = f"s3://{s3_bucket}/runs/r 1/ü%20+?#&=.json"
    assert not store.exists(uri)
    assert store.write_bytes(uri, b"\x00data") is True
    assert store.exists(uri) and store.read_bytes(uri) == b"\x00data"
    assert not store.exists(f"s3://{s3_bucket}/runs/r 1"), "a folder is not an object"
    assert not store.exists(f"s3://{s3_bucket}/runs/r 1/ü"), "nor is the beginning of a name"
    assert names(f"s3://{s3_bucket}/runs/") == ["r 1/ü%20+?#&=.json"]
    store.delete(uri)
    assert not store.exists(uri)


def test_store_with_a_prefix_sees_keys_relative_to_it(s3_bucket: str) -> None:
    rooted = store.open_store(f"s3://{s3_bucket}/team/a/")
    rooted.put("x/y", b"1")
    store.write_bytes(f"s3://{s3_bucket}/team/ab", b"2")
    assert [(entry.key, entry.size) for entry in rooted.list()] == [("x/y", 1)]
    assert rooted.uri("x/y") == f"s3://{s3_bucket}/team/a/x/y"
    assert store.read_bytes(rooted.uri("x/y")) == b"1"


def test_endpoint_with_a_host_name_is_used_with_path_style(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost"))
    store.write_bytes(f"s3://{s3_bucket}/x", b"1")
    assert names(f"s3://{s3_bucket}") == ["x"]


def test_of_16_conditional_writers_exactly_one_wins(s3_bucket: str) -> None:
    uri, start = f"s3://{s3_bucket}/lock", threading.Barrier(16)
    store.exists(uri)  # the client is made before the race

    def write(number: int) -> bool:
        start.wait()
        return store.write_bytes(uri, b"%d" % number, if_absent=True)

    with ThreadPoolExecutor(16) as pool:
        won = [number for number, ok in enumerate(pool.map(write, range(16))) if ok]
    assert len(won) == 1
    assert store.read_bytes(uri) == b"%d" % won[0]


def test_large_file_goes_in_parts_and_comes_back_whole(s3_bucket: str, s3_server: "S3Server", tmp_path: Path) -> None:
    (tmp_path / "from").write_bytes(os.urandom(20 * MIB + 1))
    s3, up, down = store.open_store(f"s3://{s3_bucket}"), [], []
    sent = s3.upload_file(tmp_path / "from", "big", up.append)
    assert s3_server.client().head_object(Bucket=s3_bucket, Key="big")["ETag"].endswith('-3"')
    assert s3.download_file("big", tmp_path / "to", down.append) == sent
    assert (tmp_path / "to").read_bytes() == (tmp_path / "from").read_bytes()
    assert sum(up) == sum(down) == sent.size == 20 * MIB + 1
    assert sorted(os.listdir(tmp_path)) == ["from", "to"]


MEASURED = """
import resource, sys
from pathlib import Path
from components.core import store
s3 = store.open_store(sys.argv[1])
s3.put("warm", b"up")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sent = s3.upload_file(Path(sys.argv[2]), "big")
assert s3.download_file("big", Path(sys.argv[2] + ".back")) == sent
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_does_not_grow_with_the_file(s3_bucket: str, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        for _ in range(25):
            file.write(os.urandom(16 * MIB))
    command = [sys.executable, "-c", MEASURED, f"s3://{s3_bucket}", str(tmp_path / "big")]
    grown_mib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown_mib < 150


def test_file_that_changes_while_it_is_uploaded_is_refused(s3_bucket: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 100)

    def grow(count: int) -> None:
        if count:
            path.write_bytes(b"x" * 101)

    with pytest.raises(UserError, match="changed while it was uploaded"):
        store.open_store(f"s3://{s3_bucket}").upload_file(path, "log", grow)


# --- directories -----------------------------------------------------------------------------------------------------


def test_directory_comes_back_as_it_was(s3_bucket: str, model: Path, tmp_path: Path) -> None:
    uri, up, down = f"s3://{s3_bucket}/models/chat/1", [], []
    assert store.manifest_digest(uri) is None
    digest = store.publish(model, uri, up.append)
    assert store.manifest_digest(uri) == digest == store.publish(model, str(tmp_path / "local"))
    folder = store.fetch(uri, tmp_path / "copy", down.append)
    assert folder == tmp_path / "copy" and read_tree(folder) == read_tree(model)
    assert store.manifest_digest(str(folder)) == digest
    assert sum(up) == sum(down) == 9 * MIB + 2


def test_directory_of_more_files_than_a_page_or_a_delete_holds(s3_bucket: str, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(1100):
        (tmp_path / "many" / f"{number:04}").write_bytes(b"%d" % number)
    uri = f"s3://{s3_bucket}/many"
    store.publish(tmp_path / "many", uri)
    store.write_bytes(f"{uri}-more", b"stays")
    assert len(names(uri)) == 1101
    assert read_tree(store.fetch(uri, tmp_path / "copy")) == read_tree(tmp_path / "many")
    batches: list[int] = []
    store.for_uri(uri)[0]._client.meta.events.register(
        "provide-client-params.s3.DeleteObjects", lambda params, **_: batches.append(len(params["Delete"]["Objects"]))
    )
    store.delete(uri)
    assert max(batches) <= 1000, "AWS refuses more, this server does not"
    assert names(uri) == [] and names(f"s3://{s3_bucket}") == ["many-more"]


def test_directory_without_manifest_is_refused_by_name(s3_bucket: str, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/unfinished"
    store.write_bytes(f"{uri}/model.safetensors", b"")
    with pytest.raises(UserError, match=f"{uri}: no MANIFEST.json"):
        store.fetch(uri, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_interrupted_publishing_leaves_nothing_that_a_reader_trusts(
    s3_bucket: str, model: Path, tmp_path: Path
) -> None:
    uri = f"s3://{s3_bucket}/m"
    store.publish(model, uri)
    (model / "config.json").write_bytes(b"[]")
    moved = 0

    def stop(count: int) -> None:
        nonlocal moved
        moved += count
        if moved > MIB:
            raise Cancelled("SIGTERM")

    with pytest.raises(Cancelled, match="SIGTERM"):
        store.publish(model, uri, stop)
    assert store.manifest_digest(uri) is None
    digest = store.publish(model, uri)
    assert store.manifest_digest(uri) == digest
    assert read_tree(store.fetch(uri, tmp_path / "copy")) == read_tree(model)


def test_publishing_again_deletes_what_it_published_before_and_nothing_else(
    s3_bucket: str, model: Path, tmp_path: Path
) -> None:
    uri = f"s3://{s3_bucket}/m"
    store.write_bytes(f"{uri}/notes-of-a-colleague", b"")
    store.publish(model, uri)
    (model / "empty").unlink()
    store.publish(model, uri)
    assert sorted(names(uri)) == [MANIFEST, "config.json", "notes-of-a-colleague", "weights é/a b+c%20?#&.safetensors"]
    assert read_tree(store.fetch(uri, tmp_path / "copy")) == read_tree(model), "what no manifest lists is not fetched"


def test_object_replaced_by_other_bytes_is_refused(s3_bucket: str, model: Path, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/m"
    store.publish(model, uri)
    for data, reason in [(b"[]", "SHA-256 differs"), (b"{} ", "3 bytes where the manifest has 2")]:
        store.write_bytes(f"{uri}/config.json", data)
        with pytest.raises(CorruptError, match=f"{uri}/config.json: corrupt: {reason}") as caught:
            store.fetch(uri, tmp_path / "copy")
        assert exit_code_for(caught.value) == 1
        assert store.manifest_digest(str(tmp_path / "copy")) is None
        assert not (tmp_path / "copy" / "config.json").exists()


def test_object_damaged_on_the_servers_disk_is_refused(
    s3_bucket: str, s3_server: "S3Server", model: Path, tmp_path: Path
) -> None:
    uri = f"s3://{s3_bucket}/m"
    store.publish(model, uri)
    for victim in ("config.json", "weights é/a b+c%20?#&.safetensors"):
        path = s3_server.folder / s3_bucket / "m" / victim
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(CorruptError):
            store.fetch(uri, tmp_path / victim[:6])  # a new folder, because a good copy would be kept
        path.write_bytes(good)
    (s3_server.folder / s3_bucket / "m" / "config.json").write_bytes(b"[]")
    with pytest.raises(CorruptError):  # a single object too, by the checksum that the server keeps
        store.read_bytes(f"{uri}/config.json")


def test_missing_object_of_a_published_directory_is_named(s3_bucket: str, model: Path, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/m"
    store.publish(model, uri)
    store.delete(f"{uri}/config.json")
    with pytest.raises(UserError, match="m/config.json"):
        store.fetch(uri, tmp_path / "copy")


def test_hostile_manifest_writes_nothing(s3_bucket: str, tmp_path: Path) -> None:
    uri = f"s3://{s3_bucket}/m"
    store.write_bytes(f"{uri}/MANIFEST.json", b'{"files": {"../evil": {"size": 0, "sha256": "%s"}}}' % (b"0" * 64))
    with pytest.raises(UserError, match="unsafe name"):
        store.fetch(uri, tmp_path / "copy")
    assert os.listdir(tmp_path) == []


def test_killed_fetch_goes_on_where_it_was(s3_bucket: str, model: Path, tmp_path: Path) -> None:
    uri, copy = f"s3://{s3_bucket}/m", tmp_path / "copy"
    store.publish(model, uri)
    program = """
import os, sys
from components.core import store
def die(count):
    if os.path.exists(sys.argv[2] + "/config.json"):
        os.kill(os.getpid(), 9)
store.fetch(sys.argv[1], sys.argv[2], die)
"""
    assert subprocess.run([sys.executable, "-c", program, uri, str(copy)], check=False).returncode == -9
    assert store.manifest_digest(str(copy)) is None
    inode = (copy / "config.json").stat().st_ino
    assert read_tree(store.fetch(uri, copy)) == read_tree(model)
    assert (copy / "config.json").stat().st_ino == inode
    assert [path.name for path in copy.glob(".tmp-kubealign-*")] == [".tmp-kubealign-lock"]


@pytest.mark.parametrize("phase", ["hashing", "sending"])
def test_cancel_in_the_main_thread_stops_a_large_transfer(phase: str, s3_bucket: str, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    with (tmp_path / "dir" / "big").open("wb") as file:
        file.truncate(1024 * MIB)
    program = """
import signal, sys
from components.core import store
from components.core.errors import Cancelled, exit_code_for
def handler(*_):
    raise Cancelled("SIGTERM")
signal.signal(signal.SIGTERM, handler)
try:
    store.publish(sys.argv[1], sys.argv[2], lambda count: print("sending" if count else "hashing", flush=True))
except Cancelled as error:
    sys.exit(exit_code_for(error))
"""
    command = [sys.executable, "-c", program, str(tmp_path / "dir"), f"s3://{s3_bucket}/m"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.strip() == phase for line in process.stdout)
        process.send_signal(15)
        process.communicate(timeout=60)
        assert process.returncode == 143
    assert names(f"s3://{s3_bucket}") == [], "the file was sent to its end before the process left"


# --- what goes wrong with the store itself ---------------------------------------------------------------------------

USES: dict[str, Callable[[str, Path], object]] = {
    "read": lambda uri, _: store.read_bytes(uri),
    "write": lambda uri, _: store.write_bytes(uri, b""),
    "write if absent": lambda uri, _: store.write_bytes(uri, b"", if_absent=True),
    "exists": lambda uri, _: store.exists(uri),
    "digest": lambda uri, _: store.manifest_digest(uri),
    "list": lambda uri, _: names(uri),
    "delete": lambda uri, _: store.delete(uri),
    "publish": lambda uri, path: store.publish(path, uri),
    "fetch": store.fetch,
    "upload": lambda uri, path: store.open_store(uri).upload_file(path / "file", "x"),
    "download": lambda uri, path: store.open_store(uri).download_file("x", path / "new"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"1")
    return tmp_path / "folder"


@pytest.mark.parametrize("use", USES)
def test_unreachable_store_is_tried_again_and_then_exits_75(
    use: str, s3_bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        port = nobody_listens.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://someone:hunter2@127.0.0.1:{port}")
        monkeypatch.setenv("KUBEALIGN_STORE_ATTEMPTS", "3")
        waited: list[float] = []
        monkeypatch.setattr(store_s3.time, "sleep", waited.append)
        with pytest.raises(RetryableError, match=f"cannot be reached .*127.0.0.1:{port}") as caught:
            USES[use](f"s3://{s3_bucket}/x", folder)
    assert exit_code_for(caught.value) == 75 and len(waited) == 2
    assert "hunter2" not in str(caught.value) and str(caught.value).count("\n") == 0


@pytest.mark.parametrize("use", USES)
def test_missing_bucket_is_for_the_user_to_mend(use: str, s3_bucket: str, folder: Path) -> None:
    with pytest.raises(UserError, match=r"s3://no-such-bucket-here.*bucket"):
        USES[use]("s3://no-such-bucket-here/x", folder)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_for_the_user_to_mend_and_stay_secret(
    use: str, variable: str, s3_bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "wrong-hunter2")
    with pytest.raises(UserError, match=r"check (AWS_ACCESS_KEY_ID|the credentials|the URI)") as caught:
        USES[use](f"s3://{s3_bucket}/x", folder)
    assert "hunter2" not in str(caught.value) and "testsecret1" not in str(caught.value)


def test_missing_credentials_bad_endpoint_and_bad_names_are_user_errors(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri in ("s3://key:hunter2@bucket/x", "s3://", "s3:///x", "s3://a b/x", f"s3://{s3_bucket}/a/../b"):
        with pytest.raises(UserError) as caught:
            store.read_bytes(uri)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(UserError):
        store.write_bytes(f"s3://{s3_bucket}", b"")
    with pytest.raises(UserError):
        store.delete(f"s3://{s3_bucket}/")
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(UserError, match="no AWS credentials"):
            store.exists(f"s3://{s3_bucket}/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a URL")
    with pytest.raises(UserError, match="check AWS_ENDPOINT_URL"):
        store.exists(f"s3://{s3_bucket}/x")


def test_unknown_host_exits_75(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:9000")
    with pytest.raises(RetryableError, match=r"no-such-host\.invalid:9000"):
        store.exists(f"s3://{s3_bucket}/x")


SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Proxy:
    """A TCP proxy in front of the server; `faults` holds what happens to the next connections, one each."""

    def __init__(self, upstream: str, port: int) -> None:
        self.upstream, self.endpoint = urlsplit(upstream), f"http://127.0.0.1:{port}"
        self.faults: list[str] = []
        self.met: Counter[str] = Counter()

    def handle(self, client: socket.socket) -> None:
        fault = self.faults.pop(0) if self.faults else "none"
        self.met[fault] += 1
        if fault == "refuse":
            client.close()
            return
        if fault == "slow down":
            client.recv(1 << 16)
            head = b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(SLOW_DOWN)
            client.sendall(head + SLOW_DOWN)
            client.close()
            return
        server = socket.create_connection((self.upstream.hostname, self.upstream.port))
        threading.Thread(target=self.pump, args=(client, server, "none"), daemon=True).start()
        threading.Thread(target=self.pump, args=(server, client, fault), daemon=True).start()

    def pump(self, source: socket.socket, target: socket.socket, fault: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if fault == "swallow answer":
                    # 100 only asks for the body. What follows, sometimes in the same piece, says that the work is done.
                    asks = data[: data.find(b"\r\n\r\n") + 4] if data.startswith(b"HTTP/1.1 100") else b""
                    target.sendall(asks)
                    if asks != data:
                        break
                    continue
                target.sendall(data)
                if fault == "cut answer":
                    break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy_to(endpoint: str) -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Proxy(endpoint, listener.getsockname()[1])

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                proxy.handle(client)

        threading.Thread(target=accept, daemon=True).start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(s3_bucket: str, s3_server: "S3Server", monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """All that the store does goes through this proxy; botocore's own retries are off, so ours are what is tested."""
    with proxy_to(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.mark.parametrize("fault", ["refuse", "slow down", "swallow answer"])
@pytest.mark.parametrize("use", ["read", "write", "exists", "list", "upload", "download"])
def test_passing_fault_is_survived(fault: str, use: str, s3_bucket: str, folder: Path, proxy: Proxy) -> None:
    store.write_bytes(f"s3://{s3_bucket}/x" + ("/x" if use in ("list", "upload", "download") else ""), b"1")
    store._s3_store.cache_clear()  # so that the next request opens a new connection
    proxy.faults += [fault] * 2
    USES[use](f"s3://{s3_bucket}/x", folder)
    assert proxy.met[fault] == 2


def test_lasting_slow_down_exits_75_and_says_so(s3_bucket: str, proxy: Proxy) -> None:
    proxy.faults += ["slow down"] * 100
    with pytest.raises(RetryableError, match="busy or failing .SlowDown.") as caught:
        store.read_bytes(f"s3://{s3_bucket}/x")
    assert exit_code_for(caught.value) == 75 and proxy.met["slow down"] == 4


def test_conditional_write_whose_answer_was_lost_is_known_as_ours(s3_bucket: str, proxy: Proxy) -> None:
    uri = f"s3://{s3_bucket}/lock"
    proxy.faults += ["swallow answer"]
    assert store.write_bytes(uri, b"me", if_absent=True) is True
    assert proxy.met["swallow answer"] == 1
    store._s3_store.cache_clear()
    proxy.faults += ["refuse"]
    assert store.write_bytes(uri, b"somebody else", if_absent=True) is False
    assert store.read_bytes(uri) == b"me"


def test_download_cut_in_the_middle_is_begun_again_and_counted_once(
    s3_bucket: str, model: Path, tmp_path: Path, proxy: Proxy
) -> None:
    uri, seen = f"s3://{s3_bucket}/m", []
    store.publish(model, uri)
    s3 = store.open_store(f"s3://{s3_bucket}")
    proxy.faults += ["none", *["cut answer"] * 8]
    s3.download_file("m/weights é/a b+c%20?#&.safetensors", tmp_path / "got", seen.append)
    assert proxy.met["cut answer"] >= 1
    assert (tmp_path / "got").read_bytes() == (model / "weights é" / "a b+c%20?#&.safetensors").read_bytes()
    assert sum(seen) == 9 * MIB


def test_settings_of_retries_are_checked(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEALIGN_STORE_ATTEMPTS", "many")
    with pytest.raises(UserError, match="must be numbers"):
        store.exists(f"s3://{s3_bucket}/x")


def test_waits_grow_are_random_and_end_at_the_cap() -> None:
    retry = store_s3.Retry(attempts=20, base_seconds=1, cap_seconds=8)
    longest = [max(retry.wait_seconds(attempt) for _ in range(300)) for attempt in (1, 3, 12)]
    assert longest[0] <= 1 < longest[1] <= 4 < longest[2] <= 8


def test_manifest_on_the_server_is_the_one_on_disk(s3_bucket: str, model: Path, tmp_path: Path) -> None:
    store.publish(model, f"s3://{s3_bucket}/m")
    store.publish(model, str(tmp_path / "local"))
    raw = store.read_bytes(f"s3://{s3_bucket}/m/{MANIFEST}")
    assert raw == (tmp_path / "local" / MANIFEST).read_bytes()
    assert Manifest.from_bytes(raw, "m").files.keys() == read_tree(model).keys()
