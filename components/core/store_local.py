"""The store on a local folder. Nothing is ever half there: bytes go to a temporary sibling that is then renamed."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from components.core.errors import UserError, from_os_error
from components.core.store_manifest import (
    MANIFEST,
    TEMPORARY,
    Entry,
    FileInfo,
    Manifest,
    Progress,
    check_key,
    hash_file,
    list_files,
    run_parallel,
)

_ABANDONED_SECONDS = 24 * 3600


class LocalStore:
    """A folder as an object store. Every OSError comes out as a KubealignError that names the path."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def uri(self, key: str) -> str:
        return str(self.path(key))

    def path(self, key: str) -> Path:
        return self.root / check_key(key) if key else self.root

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write an object, atomically and durably. With `if_absent`, False and no change where it exists already."""
        target = self.path(check_key(key))
        with explained(target), temporary(target) as draft:
            with draft.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return _move_file(draft, target, if_absent)

    def get(self, key: str) -> bytes:
        path = self.path(check_key(key))
        with explained(path):
            return path.read_bytes()

    def exists(self, key: str) -> bool:
        """Whether there is an object of just this name (a folder is none)."""
        path = self.path(check_key(key))
        with explained(path):
            return path.is_file()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """The objects under the folder `prefix`, in byte order of their keys; none where it does not exist."""
        folder = self.path(prefix)
        found = []
        for parent, folders, names in os.walk(folder, onerror=_unless_gone, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]
            for path in (Path(parent, name) for name in names if not name.startswith(TEMPORARY)):
                with explained(path), suppress(FileNotFoundError):
                    status = path.stat()
                    key = str(path.relative_to(self.root))
                    found.append(Entry(key, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}"))
        yield from sorted(found, key=lambda entry: os.fsencode(entry.key))

    def upload_file(self, path: Path, key: str, progress: Progress | None = None) -> FileInfo:
        target = self.path(check_key(key))
        with explained(target), temporary(target) as draft:
            info = _copy(path, draft, progress)
            _move_file(draft, target, if_absent=False)
            return info

    def download_file(self, key: str, path: Path, progress: Progress | None = None) -> FileInfo:
        source = self.path(check_key(key))
        with explained(source):
            return LocalStore(path.parent).upload_file(source, path.name, progress)

    def upload_dir(self, local_dir: Path, key: str, progress: Progress | None = None) -> str:
        """Publish a directory: afterwards all of it is there, or, after a crash, what was there before.

        A directory that is already in its place only gets its manifest. Returns the manifest's digest.
        """
        source, target = local_dir.resolve(), self.path(check_key(key)).resolve()
        with explained(target):
            names = list_files(source)
            if source == target:
                infos = run_parallel(lambda name, add: hash_file(source / name, add), names, progress)
                manifest = Manifest(dict(zip(names, infos, strict=True)))
                self.put(f"{key}/{MANIFEST}", manifest.to_bytes())
                return manifest.digest
            if source in target.parents or target in source.parents:
                raise UserError(f"lies inside {source} or around it", where=str(target), fix="publish somewhere else")
            with temporary(target) as draft:
                infos = run_parallel(lambda name, add: _copy(source / name, draft / name, add), names, progress)
                manifest = Manifest(dict(zip(names, infos, strict=True)))
                LocalStore(draft).put(MANIFEST, manifest.to_bytes())
                _move_dir(draft, target)
        return manifest.digest

    def delete_prefix(self, prefix: str) -> None:
        """Delete the object or folder of this name. It is gone at once: readers never see half of it."""
        target = self.path(check_key(prefix))
        with explained(target):
            if target.is_file() or target.is_symlink():
                target.unlink()
            elif target.exists():
                with temporary(target) as draft:
                    target.rename(draft)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError into the KubealignError that it means; `path` is named where the error names none."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, str(error.filename or path)) from error


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A new name beside `target`, hence on its file system; what is still there afterwards is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = _sibling(target)
    try:
        yield draft
    finally:
        remove(draft)


def _sibling(target: Path) -> Path:
    return target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"


def _unless_gone(error: OSError) -> None:
    """A listing shows what is there; a folder that somebody deletes meanwhile is not an error."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise from_os_error(error) from error


def remove(path: Path) -> None:
    """Delete a file, a link or a folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush_dir(folder: Path) -> None:
    """Make renames in `folder` survive a power cut. Some network file systems cannot, and need not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: Path, target: Path, progress: Progress | None) -> FileInfo:
    """Copy one file to a new one and hash the bytes that were written, in one pass."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb", buffering=0) as file:
        info = hash_file(source, progress, copy_to=file.fileno())
        os.fsync(file.fileno())
    return info


def _move_file(draft: Path, target: Path, if_absent: bool) -> bool:
    if if_absent:
        try:
            os.link(draft, target)  # unlike rename it fails where the name is taken
        except FileExistsError:
            return False
    else:
        os.replace(draft, target)
    _flush_dir(target.parent)
    return True


def _move_dir(draft: Path, target: Path) -> None:
    """Put a complete directory in place of a published one, of an empty one or of nothing.

    Rename cannot replace a full directory, so the old one steps aside first: a reader in between finds nothing, which
    it may. Whatever goes wrong in between brings the old one back, unless the process is killed.
    """
    aside: list[Path] = []
    try:
        while not _renamed(draft, target):
            if target.exists() and not (target / MANIFEST).is_file():
                # Not ours: it may be somebody's home directory.
                what = "exists and was not published by kubealign"
                raise UserError(what, where=str(target), fix="remove it or choose another place")
            aside.append(_sibling(target))
            with suppress(FileNotFoundError):  # another publisher may have moved it first
                target.rename(aside[-1])
    except BaseException:
        if aside and not target.exists():
            with suppress(OSError):
                aside[-1].rename(target)
        raise
    _flush_dir(target.parent)
    for old in aside:
        remove(old)
    for leftover in target.parent.glob(TEMPORARY + "*"):  # of publishers that were killed
        with suppress(OSError):
            if time.time() - leftover.lstat().st_ctime > _ABANDONED_SECONDS:
                remove(leftover)


def _renamed(source: Path, target: Path) -> bool:
    """Rename, or False where a directory with something in it is in the way."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True
