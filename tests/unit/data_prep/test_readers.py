"""Readers: every format, plain and in gzip, gives the same rows; each kind of broken file or row is told apart."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core import store
from components.core.errors import UserError
from components.core.store_local import LocalStore
from components.data_prep import readers
from components.data_prep.readers import RawRow, find, read

ROWS = [{"question": "Wie geht's?", "answer": 'Gut,\n"danke" 🙂'}, {"question": "2+2", "answer": "4"}]


def as_json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    def quoted(value: str) -> str:
        return '"' + value.replace('"', '""') + '"'

    lines = [",".join(rows[0])] + [",".join(quoted(value) for value in row.values()) for row in rows]
    return ("\r\n".join(lines) + "\r\n").encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


WRITERS = {"json": as_json, "jsonl": as_jsonl, "ndjson": as_jsonl, "csv": as_csv, "parquet": as_parquet}


def put(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return name


def rows_of(folder: Path, path: str) -> list[RawRow]:
    return list(read(path, str(folder)))


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str, ending: str) -> None:
    name = put(tmp_path, f"rows.{kind}{ending}", WRITERS[kind](ROWS))
    found = rows_of(tmp_path, name)
    assert [raw.row for raw in found] == ROWS
    assert all(raw.rule == "" and raw.place.startswith(f"{name}:") for raw in found)


def test_places_are_line_numbers_and_row_numbers(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", b'\n{"a": 1}\n\n{"a": 2}\n')
    assert [raw.place for raw in rows_of(tmp_path, "a.jsonl")] == ["a.jsonl:2", "a.jsonl:4"]
    put(tmp_path, "a.json", as_json(ROWS))
    assert [raw.place for raw in rows_of(tmp_path, "a.json")] == ["a.json:1", "a.json:2"]
    put(tmp_path, "a.csv", b'q,a\n"two\nlines",1\nx,2\n')
    assert [raw.place for raw in rows_of(tmp_path, "a.csv")] == ["a.csv:3", "a.csv:4"]


@pytest.mark.parametrize(
    ("line", "rule", "kept"),
    [
        (b'{"a": ', "broken_json", '{"a": '),
        (b"[1, 2]", "not_an_object", "[1, 2]"),
        (b'{"a": "\xff"}', "invalid_utf8", '{"a": "\\xff"}'),
        (b"[" * 100_000, "broken_json", "[" * 100_000),
    ],
    ids=["cut", "list", "bytes", "deep"],
)
def test_a_bad_line_is_rejected_with_its_place_and_the_rest_goes_on(
    tmp_path: Path, line: bytes, rule: str, kept: str
) -> None:
    put(tmp_path, "a.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    found = rows_of(tmp_path, "a.jsonl")
    assert [raw.rule for raw in found] == ["", rule, ""]
    assert (found[1].place, found[1].row) == ("a.jsonl:2", kept)


def test_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    for kind in ("json", "jsonl", "csv"):
        put(tmp_path, f"a.{kind}", b"\xef\xbb\xbf" + WRITERS[kind](ROWS))
        assert [raw.row for raw in rows_of(tmp_path, f"a.{kind}")] == ROWS


def test_objects_one_after_another_are_rows_too(tmp_path: Path) -> None:
    put(tmp_path, "one.json", b'{"a": 1}')
    put(tmp_path, "more.json", b'{"a": 1} {"a": 2}\n\n{"a": 3}')
    assert [raw.row for raw in rows_of(tmp_path, "one.json")] == [{"a": 1}]
    assert [raw.row["a"] for raw in rows_of(tmp_path, "more.json")] == [1, 2, 3]


def test_array_elements_that_are_no_objects_are_rejected_one_by_one(tmp_path: Path) -> None:
    put(tmp_path, "a.json", b'[{"a": 1}, 12, "x", {"a": 2}]')
    assert [raw.rule for raw in rows_of(tmp_path, "a.json")] == ["", "not_an_object", "not_an_object", ""]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=6), chunk=st.integers(1, 40))
@settings(max_examples=150)
def test_streamed_json_is_what_json_reads_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("json")
    put(folder, "a.json", json.dumps(rows, indent=chunk % 3 or None, ensure_ascii=bool(chunk % 2)).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK_CHARS", chunk)
        assert [raw.row for raw in rows_of(folder, "a.json")] == rows


def test_a_number_is_never_cut_at_the_end_of_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_CHARS", 1)
    put(tmp_path, "a.json", b"[12345, 67]")
    assert [raw.row for raw in rows_of(tmp_path, "a.json")] == ["12345", "67"]


def test_csv_row_with_other_columns_is_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", b"q,a\n1,2\n1,2,3\n\n5,6\n")
    found = rows_of(tmp_path, "a.csv")
    assert [raw.rule for raw in found] == ["", "wrong_column_count", ""]
    assert found[2].row == {"q": "5", "a": "6"}


BROKEN = {
    "corrupt gzip file": ("a.jsonl.gz", None),
    "broken JSON in row 2": ("a.json", b'[{"a": 1}, {"a" 2}]'),
    "the file ends too early": ("a.json", b'[{"a": 1}'),
    "text after the array": ("a.json", b'[{"a": 1}] x'),
    "invalid UTF-8": ("a.json", b'[{"a": "\xff"}]'),
    "broken CSV": ("a.csv", b'q,a\n1,"2\n'),
    "same name": ("a.csv", b"q,q\n1,2\n"),
    "corrupt Parquet file": ("a.parquet", b"PAR1 rubbish PAR1"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_file_broken_as_a_whole_stops_with_one_line_that_names_it(tmp_path: Path, message: str) -> None:
    name, data = BROKEN[message]
    if data is None:
        (tmp_path / name).write_bytes(gzip.compress(as_jsonl(ROWS * 50))[:-20])
    else:
        put(tmp_path, name, data)
    with pytest.raises(UserError) as caught:
        rows_of(tmp_path, name)
    text = str(caught.value)
    assert message in text and name in text and "\n" not in text


DAMAGED_GZIP = {"no gzip": b"not gzip at all", "broken": gzip.compress(b"x" * 99, mtime=0)[:10] + b"\xff" * 30}


@pytest.mark.parametrize("damage", DAMAGED_GZIP.values(), ids=DAMAGED_GZIP)
@pytest.mark.parametrize("kind", ["json", "csv", "txt", "parquet"])
def test_corrupt_gzip_is_told_for_every_format(tmp_path: Path, kind: str, damage: bytes) -> None:
    (tmp_path / f"a.{kind}.gz").write_bytes(damage)
    with pytest.raises(UserError, match="corrupt gzip file"):
        rows_of(tmp_path, f"a.{kind}.gz")


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_invalid_utf8_is_told_for_text_formats(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, b"text\n\xff\n")
    with pytest.raises(UserError, match="invalid UTF-8"):
        rows_of(tmp_path, name)


def test_folder_reads_all_files_in_order_and_leaves_out_others(tmp_path: Path) -> None:
    put(tmp_path, "data/b.jsonl", b'{"n": 2}\n')
    put(tmp_path, "data/a/z.jsonl.gz", b'{"n": 1}\n')
    put(tmp_path, "data/c.json", b'[{"n": 3}]')
    put(tmp_path, "data/README.md", b"# no data")
    put(tmp_path, "data/.hidden.jsonl", b'{"n": 9}\n')
    store.publish(tmp_path / "data", str(tmp_path / "data"))
    assert [raw.row["n"] for raw in rows_of(tmp_path, "data")] == [1, 2, 3]
    assert [raw.row["n"] for raw in rows_of(tmp_path, "data/")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jsonl", ["x.jsonl", "y.jsonl"]),
        ("sub/*.jsonl", ["sub/x.jsonl"]),
        ("**/x.jsonl", ["sub/x.jsonl", "x.jsonl"]),
        ("[!y].jsonl", ["x.jsonl"]),
        ("?.jsonl", ["x.jsonl", "y.jsonl"]),
        ("s?b/*", ["sub/x.jsonl"]),
    ],
)
def test_glob_matches_as_in_a_shell(tmp_path: Path, pattern: str, names: list[str]) -> None:
    for name in ("x.jsonl", "y.jsonl", "sub/x.jsonl"):
        put(tmp_path, name, b"{}\n")
    assert find(pattern, str(tmp_path)) == [str(tmp_path / name) for name in names]


def test_name_with_wildcard_characters_is_a_name_where_there_is_such_a_file(tmp_path: Path) -> None:
    put(tmp_path, "a[1].jsonl", b"{}\n")
    assert len(rows_of(tmp_path, "a[1].jsonl")) == 1


def test_whole_uri_needs_no_data_root(tmp_path: Path) -> None:
    put(tmp_path, "a b.jsonl", b"{}\n")
    assert len(list(read(str(tmp_path / "a b.jsonl")))) == 1
    assert len(list(read((tmp_path / "a b.jsonl").as_uri()))) == 1
    assert len(list(read("*.jsonl", tmp_path.as_uri()))) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.jsonl", "no such file"),
        ("none", "no such file"),
        ("*.csv", "no file matches"),
        ("notes.md", "cannot tell the format"),
        ("docs", "format that can be read"),
        ("../secrets.jsonl", "unsafe name"),
        ("", "no path"),
        ("ftp://x/y.jsonl", "not a kind of store"),
    ],
)
def test_what_is_not_there_is_a_user_error(tmp_path: Path, path: str, message: str) -> None:
    put(tmp_path, "notes.md", b"x")
    put(tmp_path, "docs/notes.md", b"x")
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path, path)


def test_relative_path_without_data_root_is_a_user_error() -> None:
    with pytest.raises(UserError, match="needs a data root"):
        list(read("a.jsonl"))


def test_plain_text_is_cut_between_paragraphs_and_nothing_is_lost(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}. " + "word " * 100 for i in range(60)]
    put(tmp_path, "a.txt", "\n\n".join(paragraphs).encode())
    texts = [raw.row["text"] for raw in rows_of(tmp_path, "a.txt")]
    assert len(texts) > 3
    assert [p.strip() for text in texts for p in text.split("\n\n")] == [p.strip() for p in paragraphs]


def test_plain_text_without_blank_lines_is_cut_at_a_line(tmp_path: Path) -> None:
    lines = [f"line {i}" for i in range(9000)]
    put(tmp_path, "a.txt", "\n".join(lines).encode())
    texts = [raw.row["text"] for raw in rows_of(tmp_path, "a.txt")]
    assert len(texts) > 2
    assert [line for text in texts for line in text.split("\n")] == lines


def test_rows_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is handed on before the file is read to its end: what comes after may be broken."""
    monkeypatch.setattr(readers, "CHUNK_CHARS", 64)
    put(tmp_path, "a.json", as_json([{"n": i} for i in range(500)]) + b"rubbish")
    rows: Iterator[RawRow] = read("a.json", str(tmp_path))
    assert next(rows).row == {"n": 0}
    with pytest.raises(UserError):
        list(rows)


def test_files_of_a_remote_store_are_fetched_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands in for the bucket; the store itself is tested against a real server elsewhere."""
    put(tmp_path, "bucket/raw/a.jsonl", b'{"n": 1}\n')
    put(tmp_path, "bucket/raw/b.parquet.gz", as_parquet([{"n": 2}]))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    bucket = tmp_path / "bucket"

    class Bucket(LocalStore):
        def uri(self, key: str) -> str:
            return f"s3://bucket/{(self.root / key).relative_to(bucket)}"

    def split(uri: str) -> str:
        return uri.removeprefix("s3://bucket/")

    monkeypatch.setattr(store, "for_uri", lambda uri: (Bucket(bucket), split(uri)))
    monkeypatch.setattr(store, "open_store", lambda uri: Bucket(bucket / split(uri)))
    assert [raw.row["n"] for raw in read("raw/*", "s3://bucket")] == [1, 2]
    assert [raw.row["n"] for raw in read("s3://bucket/raw/a.jsonl")] == [1]
    assert list((tmp_path / "temporary").iterdir()) == []
