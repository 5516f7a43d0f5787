"""What makes a published directory trustworthy: safe names, a manifest of sizes and digests, checks against it.

`MANIFEST.json` = {"files": {relative path: {"size": bytes, "sha256": hex}}}. It is written last, so a directory without
one is unfinished, and it is the whole truth: what it does not list is not part of the directory.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from components.core.errors import Cancelled, UserError

MANIFEST = "MANIFEST.json"
TEMPORARY = ".tmp-kubealign-"  # files and folders under way, invisible to readers
CHUNK_BYTES = 1 << 20
PUBLISH_AGAIN = "publish the directory again"

Progress = Callable[[int], None]
"""Told of every piece of bytes moved, from several threads; the number is negative where a transfer starts again."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class CorruptError(UserError):
    """What was read is not what was published."""


class Entry(NamedTuple):
    """One listed object: key relative to the store's root, size in bytes, a tag that changes with its content."""

    key: str
    size: int
    etag: str


class FileInfo(NamedTuple):
    """What a manifest promises of a file: size in bytes and SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    files: dict[str, FileInfo]

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the manifest itself: the identity of the whole directory."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical: equal directories have equal bytes, hence equal digests."""
        files = {name: info._asdict() for name, info in self.files.items()}
        return json.dumps({"files": files}, sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, uri: str) -> "Manifest":
        """Parse what came from a store; UserError on anything that could name a file outside the directory."""
        try:
            files = {name: FileInfo(info["size"], info["sha256"]) for name, info in json.loads(data)["files"].items()}
            whole = all(
                type(i.size) is int and i.size >= 0 and len(bytes.fromhex(i.sha256)) == 32 for i in files.values()
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise UserError(f"{MANIFEST} is not a manifest", where=uri, fix=PUBLISH_AGAIN)
        for name in files:
            check_key(name)
        if MANIFEST in files:
            raise UserError(f"{MANIFEST} lists itself", where=uri, fix=PUBLISH_AGAIN)
        return cls(files)


def check_key(key: str) -> str:
    """Return `key` if it names something inside its root: relative, "/"-separated, no "..", "." or empty part."""
    parts = key.split("/")
    if not key:
        raise UserError("a store's root is not an object", fix="add a path to the URI")
    if key.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in key:
        raise UserError(f"unsafe name {key!r}", fix='use a relative path without empty parts, "." and ".."')
    try:
        key.encode()
    except UnicodeEncodeError:
        raise UserError(f"name {key!r} is not valid UTF-8", fix="rename the file") from None
    return key


def list_files(root: Path) -> list[str]:
    """Relative paths of all files under `root`, in byte order, without its own manifest and files under way.

    Links to files count as the files (Hugging Face caches are made of them); anything that would be silently lost,
    such as a link to a folder or to nothing, is a UserError. Empty folders are not kept: S3 has none.
    """
    if not root.is_dir():
        raise UserError("no such directory", where=str(root))
    return sorted((n for n in _walk(root, "") if n != MANIFEST), key=str.encode)


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    for entry in os.scandir(folder):
        if entry.name.startswith(TEMPORARY):
            continue
        name = check_key(prefix + entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), name + "/")
        elif entry.is_file():
            yield name
        else:
            raise UserError(
                "neither a file nor a directory", where=entry.path, fix="remove it or put a file in its place"
            )


def hash_file(path: Path, progress: Progress | None = None, copy_to: int | None = None) -> FileInfo:
    """Size in bytes and SHA-256 of a file, read once in pieces and copied to the descriptor `copy_to` on the way."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as source:
        while piece := source.read(CHUNK_BYTES):
            digest.update(piece)
            size += len(piece)
            rest = memoryview(piece)
            while copy_to is not None and rest:
                rest = rest[os.write(copy_to, rest) :]
            if progress:
                progress(len(piece))
    return FileInfo(size, digest.hexdigest())


def check_file(path: Path, expected: FileInfo, progress: Progress | None = None) -> None:
    """CorruptError unless the file at `path` holds what the manifest promised."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptError("listed in the manifest but missing", where=str(path), fix=PUBLISH_AGAIN) from None
    # The size first: it is free, and a torn file is found without reading it.
    check_info(FileInfo(size, expected.sha256), expected, str(path))
    check_info(hash_file(path, progress), expected, str(path))


def check_info(found: FileInfo, expected: FileInfo, uri: str) -> None:
    """CorruptError unless what was found at `uri` is what the manifest promised."""
    if found.size != expected.size:
        what = f"corrupt: {found.size} bytes where the manifest has {expected.size}"
        raise CorruptError(what, where=uri, fix=PUBLISH_AGAIN)
    if found.sha256 != expected.sha256:
        raise CorruptError("corrupt: SHA-256 differs from the manifest", where=uri, fix=PUBLISH_AGAIN)


def check_nothing_else(root: Path, manifest: Manifest) -> None:
    """UserError if `root` holds files that its manifest does not vouch for. Hidden ones (.nfs…, .DS_Store) may stay."""
    extra = [n for n in list_files(root) if n not in manifest.files and not n.rpartition("/")[2].startswith(".")]
    if extra:
        some = ", ".join(extra[:3]) + (f" and {len(extra) - 3} more" if len(extra) > 3 else "")
        raise UserError(f"holds files that its manifest does not list: {some}", where=str(root), fix="move them away")


def run_parallel(
    work: Callable[[Item, Progress], Result], items: Iterable[Item], progress: Progress | None = None, workers: int = 8
) -> list[Result]:
    """`work(item, add_bytes)` on some threads; results in order. The first failure is raised and stops the others.

    A signal handler that raises in the calling thread stops them too: `add_bytes` raises Cancelled in the workers, so a
    transfer of many gigabytes ends at its next piece and a pod leaves within its grace period.
    """
    stop = threading.Event()

    def add_bytes(count: int) -> None:
        if stop.is_set():
            raise Cancelled("transfer stopped")
        if progress:
            progress(count)

    with ThreadPoolExecutor(workers, thread_name_prefix="store") as pool:
        futures = [pool.submit(work, item, add_bytes) for item in items]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
