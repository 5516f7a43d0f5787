"""Raw rows out of files: JSON, JSONL, CSV, Parquet and plain text, each also gzip-compressed, row by row.

A row that cannot be read is handed on with its place and the rule that refused it; a file that cannot be read as a
whole ends the step. Only Parquet inside gzip is unpacked to a temporary file; nothing is ever held whole in memory.
"""

import csv
import gzip
import io
import json
import logging
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.core import store
from components.core.errors import UserError
from components.core.store_manifest import MANIFEST

log = logging.getLogger(__name__)

CHUNK_CHARS = 1 << 20
DOCUMENT_CHARS = 4096
_MAGIC = re.compile(r"[*?\[]")
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in a file. With a `rule` it could not be read, and `row` is its raw text."""

    place: str
    row: Any
    rule: str = ""


def read(path: str, data_root: str = "") -> Iterator[RawRow]:
    """All rows of a file, folder or glob under `data_root` (or a whole URI), files in byte order of their names."""
    for uri in find(path, data_root):
        with _local_copy(uri) as file:
            yield from _read_file(file, _display(uri))


def find(path: str, data_root: str = "") -> list[str]:
    """URIs of the files that `path` means. Raises UserError where there are none."""
    uri = _resolve(path, data_root)
    if store.exists(uri):
        if _format(uri) is None:
            raise UserError(f"cannot tell the format of {_display(uri)}", where=uri, fix=f"name it {_formats()}")
        return [uri]
    base, pattern = _split_glob(uri)
    matches = re.compile(_glob_regex(pattern)).fullmatch if pattern else lambda key: True
    place = store.open_store(base)
    names = [entry.key for entry in place.list() if matches(entry.key) and not _hidden(entry.key)]
    if not names:
        what = "no file matches" if pattern else "no such file or folder"
        raise UserError(what, where=uri, fix="check path and data root")
    found = [name for name in names if _format(name) is not None]
    if len(found) < len(names):
        log.warning("%s: %d files of other formats are left out", uri, len(names) - len(found))
    if not found:
        what = f"none of its {len(names)} files has a format that can be read"
        raise UserError(what, where=uri, fix=f"name them {_formats()}")
    return [place.uri(name) for name in found]


def _resolve(path: str, data_root: str) -> str:
    if not path:
        raise UserError("a source has no path", fix="set its path, or use the demo_world adapter, which needs none")
    if "://" in path or path.startswith("/"):
        return path.rstrip("/")
    if not data_root:
        raise UserError("a relative path needs a data root", where=path, fix="give --data-root, or a whole URI as path")
    local = store.local_path(data_root)  # a file:// URI would have the glob's characters quoted
    return store.join(str(local) if local else data_root, path.rstrip("/"))


def _split_glob(uri: str) -> tuple[str, str]:
    """(folder without wildcards, the pattern below it or '')."""
    parts = uri.split("/")
    first = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), None)
    return (uri, "") if first is None else ("/".join(parts[:first]) or "/", "/".join(parts[first:]))


def _glob_regex(pattern: str) -> str:
    """A glob as a regular expression: `*` and `?` stay within a folder, `**/` means any folders."""
    pieces = re.split(r"(\*\*/|\*|\?|\[[^\]]+\])", pattern)
    special = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    for index in range(0, len(pieces), 2):  # between the wildcards
        pieces[index] = re.escape(pieces[index])
    return "".join(special.get(piece, piece.replace("[!", "[^")) for piece in pieces)


def _hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/")) or PurePosixPath(key).name == MANIFEST


def _display(uri: str) -> str:
    """A file's name for places and messages, always valid Unicode."""
    return PurePosixPath(uri).name.encode("utf-8", "backslashreplace").decode()


@contextmanager
def _local_copy(uri: str) -> Iterator[Path]:
    """The file itself where it is local, else a copy that is gone afterwards. Parquet in gzip is unpacked too."""
    local = store.local_path(uri)
    packed = uri.lower().endswith(".parquet.gz")
    if local is not None and not packed:
        yield local
        return
    with tempfile.TemporaryDirectory(prefix="kubealign-raw-") as folder:
        path = local or Path(folder, PurePosixPath(uri).name)
        if local is None:
            place, key = store.for_uri(uri)
            place.download_file(key, path)
        if packed:
            unpacked = Path(folder, "unpacked.parquet")
            with _explained(_display(uri)), gzip.open(path, "rb") as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
            path = unpacked
        yield path


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """One line for a file that cannot be read as a whole."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"corrupt gzip file ({error})", where=name, fix="copy it again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"invalid UTF-8 ({error.reason})", where=name, fix="save the file as UTF-8") from error
    except pa.ArrowException as error:
        raise UserError(f"corrupt Parquet file ({error})", where=name, fix="write it again") from error


def _read_file(path: Path, name: str) -> Iterator[RawRow]:
    reader = _format(name)
    assert reader is not None  # find() lets no other file through
    with _explained(name):
        if reader is _parquet_rows:
            with path.open("rb") as plain:
                yield from reader(plain, name)
            return
        with gzip.open(path, "rb") if name.lower().endswith(".gz") else path.open("rb") as file:
            yield from reader(file, name)  # type: ignore[arg-type]


def _jsonl_rows(file: IO[bytes], name: str) -> Iterator[RawRow]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            yield RawRow(place, line.decode("utf-8", "backslashreplace").rstrip("\n"), "invalid_utf8")
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            yield RawRow(place, text.rstrip("\n"), "broken_json")
            continue
        yield _object(place, row)


def _object(place: str, row: Any) -> RawRow:
    return RawRow(place, row) if isinstance(row, dict) else RawRow(place, json.dumps(row), "not_an_object")


def _json_rows(file: IO[bytes], name: str) -> Iterator[RawRow]:
    """The elements of an array, or objects one after another (a single object is one row)."""
    with io.TextIOWrapper(file, encoding="utf-8-sig") as text:
        stream = _JsonStream(text)
        array = stream.peek() == "["
        number = 0
        try:
            if array:
                stream.take()
            while (mark := stream.peek()) and not (array and mark == "]"):
                number += 1
                yield _object(f"{name}:{number}", stream.value())
                if array and stream.peek() != "]":
                    stream.expect(",")
            if array:
                stream.expect("]")
                if stream.peek():
                    raise ValueError("text after the array")
        except (ValueError, RecursionError) as error:
            if isinstance(error, UnicodeDecodeError):
                raise
            what = f"broken JSON in row {max(number, 1)} ({error})"
            raise UserError(what, where=name, fix="mend the file") from error


class _JsonStream:
    """JSON values read one at a time from a file of any size; json itself only reads files whole."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.buffer, self.at = file, "", 0
        self.decode = json.JSONDecoder().raw_decode

    def _read(self) -> bool:
        rest = self.buffer[self.at :]
        # A value longer than the buffer is tried again: doubling keeps that linear.
        piece = self.file.read(max(CHUNK_CHARS, len(rest)))
        self.buffer, self.at = rest + piece, 0
        return bool(piece)

    def peek(self) -> str:
        """The next character that is no white space; '' at the end."""
        while True:
            self.at = _SPACE.match(self.buffer, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self._read():
                return ""

    def take(self) -> None:
        self.at += 1

    def expect(self, mark: str) -> None:
        found = self.peek()
        if found != mark:
            raise ValueError(f"expected {mark!r}, found {found!r}" if found else "the file ends too early")
        self.take()

    def value(self) -> Any:
        while True:
            try:
                value, end = self.decode(self.buffer, self.at)
            except json.JSONDecodeError:
                if not self._read():
                    raise
                continue
            if end < len(self.buffer):
                self.at = end
                return value
            # What ends with the buffer may go on in the next piece, as 12 does in 123.
            if not self._read():
                self.at = len(self.buffer)
                return value


def _csv_rows(file: IO[bytes], name: str) -> Iterator[RawRow]:
    csv.field_size_limit(1 << 30)
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        try:
            header = next(rows, [])
            if len(set(header)) < len(header):
                raise UserError("two columns have the same name", where=name, fix="rename one in the first line")
            for values in rows:
                place = f"{name}:{rows.line_num}"
                if not values:
                    continue
                if len(values) != len(header):
                    yield RawRow(place, json.dumps(values), "wrong_column_count")
                else:
                    yield RawRow(place, dict(zip(header, values, strict=True)))
        except csv.Error as error:
            raise UserError(f"broken CSV ({error})", where=f"{name}:{rows.line_num}", fix="mend the file") from error


def _parquet_rows(file: IO[bytes], name: str) -> Iterator[RawRow]:
    number = 0
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield RawRow(f"{name}:{number}", row)


def _text_rows(file: IO[bytes], name: str) -> Iterator[RawRow]:
    """Documents of whole paragraphs, about DOCUMENT_CHARS each.

    One big file is usually many texts; in pieces it can be split into training and held-out parts. A text without
    blank lines is cut at a line's end.
    """
    with io.TextIOWrapper(file, encoding="utf-8-sig") as text:
        lines: list[str] = []
        start = size = 0
        for number, line in enumerate(text, 1):
            start = start or number
            lines.append(line)
            size += len(line)
            if size >= DOCUMENT_CHARS and (not line.strip() or size >= 4 * DOCUMENT_CHARS):
                yield RawRow(f"{name}:{start}", {"text": "".join(lines).strip("\r\n")})
                lines, start, size = [], 0, 0
        if any(line.strip() for line in lines):
            yield RawRow(f"{name}:{start}", {"text": "".join(lines).strip("\r\n")})


_READERS: dict[str, Callable[[IO[bytes], str], Iterator[RawRow]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}


def _formats() -> str:
    return ", ".join(_READERS) + " (.gz may follow)"


def _format(name: str) -> Callable[[IO[bytes], str], Iterator[RawRow]] | None:
    return _READERS.get(PurePosixPath(name.lower().removesuffix(".gz")).suffix)
