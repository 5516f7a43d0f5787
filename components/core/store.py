"""One small interface over a local folder and S3: a plain path, `file:///path` or `s3://bucket/prefix`.

Single objects are written atomically (`write_bytes`). A directory is published complete or not at all (`publish`), and
`fetch` trusts nothing without a `MANIFEST.json` and verifies size and SHA-256 of every file that it hands out.

    publish("out/model", "s3://bucket/models/chat/1")        # -> digest of the manifest
    folder = fetch("s3://bucket/models/chat/1", "/scratch/chat")

All functions raise UserError (exit 1) for what the user must mend, and RetryableError (exit 75) where the store could
not be reached after retries. Progress callbacks get numbers of bytes, from several threads.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, unquote

from components.core.errors import RetryableError, UserError
from components.core.store_local import LocalStore, explained, remove
from components.core.store_manifest import (
    MANIFEST,
    TEMPORARY,
    CorruptError,
    Entry,
    FileInfo,
    Manifest,
    Progress,
    check_file,
    check_info,
    check_key,
    check_nothing_else,
    run_parallel,
)

if TYPE_CHECKING:
    from components.core.store_s3 import S3Store

__all__ = [
    "CorruptError", "Entry", "FileInfo", "Manifest", "Progress", "Store", "delete", "download_dir", "exists", "fetch",
    "for_uri", "join", "local_path", "manifest_digest", "open_store", "publish", "read_bytes", "read_manifest",
    "write_bytes",
]  # fmt: skip


class Store(Protocol):
    """What a kind of store must do. Keys are relative to its root; a prefix means a folder, never part of a name."""

    def uri(self, key: str) -> str: ...
    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def exists(self, key: str) -> bool: ...
    def list(self, prefix: str = "") -> Iterator[Entry]: ...
    def upload_file(self, path: Path, key: str, progress: Progress | None = None) -> FileInfo: ...
    def download_file(self, key: str, path: Path, progress: Progress | None = None) -> FileInfo: ...
    def upload_dir(self, local_dir: Path, key: str, progress: Progress | None = None) -> str: ...
    def delete_prefix(self, prefix: str) -> None: ...


def open_store(uri: str) -> Store:
    """The store whose root is `uri`."""
    path = local_path(uri)
    if path is not None:
        return LocalStore(path)
    bucket, prefix = _split_s3(uri)
    return _s3_store(bucket, prefix, *_s3_settings())


def for_uri(uri: str) -> tuple[Store, str]:
    """The store that holds `uri` (a bucket, or the whole file system) and the key of `uri` in it."""
    path = local_path(uri)
    if path is not None:
        return LocalStore(Path("/")), str(path)[1:]
    bucket, key = _split_s3(uri)
    return _s3_store(bucket, "", *_s3_settings()), key


def local_path(uri: str) -> Path | None:
    """The absolute path behind a file URI or a plain path (where "~" is the home directory); None for s3://."""
    uri = str(uri)
    if uri.startswith("s3://"):
        return None
    if uri.startswith("file://"):
        rest = unquote(uri.removeprefix("file://")).removeprefix("localhost")
        if not rest.startswith("/"):
            raise UserError("a file URI has an absolute path", where=uri, fix="write file:///path or a plain path")
    elif "://" in uri:
        scheme = uri.partition("://")[0]
        raise UserError(
            "not a kind of store", where=f"{scheme}://", fix="use a path, file:///path or s3://bucket/prefix"
        )
    else:
        rest = uri
    if not rest or "\0" in rest:
        raise UserError(f"{rest!r} is not a path", fix="use a path, file:///path or s3://bucket/prefix")
    # POSIX lets a path begin with two slashes; to us it is one place.
    return Path("/" + os.path.abspath(Path(rest).expanduser()).lstrip("/"))


def join(uri: str, *parts: str) -> str:
    """`uri` with more path; each part may have several segments but cannot lead out of `uri`."""
    for part in parts:
        check_key(part)
        uri = f"{uri.rstrip('/')}/{quote(part) if uri.startswith('file://') else part}"
    return uri


def read_bytes(uri: str) -> bytes:
    """One whole object; for small things such as specs. Not checked against a manifest."""
    store, key = for_uri(uri)
    return store.get(key)


def write_bytes(uri: str, data: bytes, *, if_absent: bool = False) -> bool:
    """Write one object atomically. With `if_absent`, False where it exists: of many writers exactly one wins."""
    store, key = for_uri(uri)
    return store.put(key, data, if_absent=if_absent)


def exists(uri: str) -> bool:
    """Whether there is one object of this name. Whether a directory was published: `manifest_digest(uri)`."""
    store, key = for_uri(uri)
    return bool(key) and store.exists(key)


def delete(uri: str) -> None:
    """Delete an object or everything under a folder; nothing happens where there is none."""
    store, key = for_uri(uri)
    store.delete_prefix(key)


def publish(local_dir: str | Path, uri: str, progress: Progress | None = None) -> str:
    """Publish a directory complete or not at all, in place of what was published there; the manifest's digest."""
    store, key = for_uri(uri)
    return store.upload_dir(Path(local_dir), key, progress)


def read_manifest(uri: str) -> Manifest:
    """The manifest of a published directory; UserError where there is none."""
    store, key = for_uri(uri)
    manifest = _find_manifest(store, key)
    if manifest is None:
        fix = "check the URI, or run the step that makes it"
        raise UserError(f"no {MANIFEST}: unfinished, or not published", where=uri, fix=fix)
    return manifest


def manifest_digest(uri: str) -> str | None:
    """Identity (SHA-256, hex) of a published directory by content; None where nothing complete was published."""
    store, key = for_uri(uri)
    manifest = _find_manifest(store, key)
    return manifest.digest if manifest else None


def fetch(uri: str, local_dir: str | Path, progress: Progress | None = None) -> Path:
    """A verified local copy of a published directory: in `local_dir`, or where it already is if that is local."""
    path = local_path(uri)
    if path is None:
        return download_dir(uri, local_dir, progress)
    manifest = read_manifest(uri)
    with explained(path):
        run_parallel(lambda item, add: check_file(path / item[0], item[1], add), manifest.files.items(), progress)
        check_nothing_else(path, manifest)
    return path


def download_dir(uri: str, local_dir: str | Path, progress: Progress | None = None) -> Path:
    """A verified copy of a published directory in `local_dir`, which gets its own manifest last.

    Files that are there and right are kept, so that a restarted pod goes on where it was killed. Files of what was
    fetched there before are removed; any other file is a UserError, because a loader would pick it up.
    """
    store, key = for_uri(uri)
    manifest, target = read_manifest(uri), LocalStore(Path(local_dir).absolute())
    with explained(target.root), _locked(target.root):
        if (old := _find_manifest(target, "")) is not None:
            target.delete_prefix(MANIFEST)
            for name in old.files.keys() - manifest.files.keys():
                target.delete_prefix(name)
        check_nothing_else(target.root, manifest)

        def bring(item: tuple[str, FileInfo], add: Progress) -> None:
            _download_verified(store, _under(key, item[0]), target.path(item[0]), item[1], add)

        try:
            run_parallel(bring, manifest.files.items(), progress)
        except UserError as error:
            if (_find_manifest(store, key) or Manifest({})).digest != manifest.digest:
                raise RetryableError("replaced while it was read", where=uri, fix="try again") from error
            raise
        target.put(MANIFEST, manifest.to_bytes())
    return target.root


def _download_verified(store: Store, key: str, path: Path, expected: FileInfo, add: Progress) -> None:
    """One file of a published directory; what arrives damaged is fetched once more before it is called corrupt."""
    try:
        check_file(path, expected, lambda _: add(0))
        return add(expected.size)
    except CorruptError:
        pass
    for last in (False, True):
        found = store.download_file(key, path, add)
        try:
            return check_info(found, expected, store.uri(key))
        except CorruptError:
            remove(path)
            add(-found.size)
            if last:
                raise
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: the ranks of a node may all ask for the same model, and the first one brings it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{TEMPORARY}lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in folder.rglob(f"{TEMPORARY}*"):  # of a process that was killed
            if leftover.name != f"{TEMPORARY}lock":
                remove(leftover)
        yield


def _under(key: str, name: str) -> str:
    return f"{key}/{name}" if key else name


def _find_manifest(store: Store, key: str) -> Manifest | None:
    manifest_key = _under(key, MANIFEST)
    return Manifest.from_bytes(store.get(manifest_key), store.uri(key)) if store.exists(manifest_key) else None


def _split_s3(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    key = key.rstrip("/")
    return bucket, check_key(key) if key else ""


def _s3_settings() -> tuple[int, tuple[tuple[str, str], ...]]:
    """What a client depends on: the process, because connections do not survive a fork, and the environment."""
    return os.getpid(), tuple(sorted(i for i in os.environ.items() if i[0].startswith(("AWS_", "KUBEALIGN_STORE_"))))


@lru_cache(maxsize=16)
def _s3_store(bucket: str, prefix: str, pid: int, settings: tuple[tuple[str, str], ...]) -> "S3Store":
    from components.core.store_s3 import S3Store  # boto3 takes a third of a second to import; a laptop need not

    return S3Store(bucket, prefix)
