"""Rows go through Parquet unchanged, in batches, with one fixed schema."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import UserError
from components.core.records import (
    DATA_ROLES,
    ROW_TYPES,
    Chat,
    Comparison,
    Prompt,
    Rejected,
    RowWriter,
    Text,
    read_rows,
    write_rows,
)

ORIGIN = {"id": "1", "source": "s", "licence": "MIT"}
ASKED = [{"role": "user", "content": "Grüße, 世界 🙂"}]
PAIR = {"chosen": 1, "rejected": 0, "gap": 0.5}
ROWS = [
    Chat(**ORIGIN, messages=ASKED, input_ids=[1, 2], labels=[-100, 2], meta='{"kind": "sum"}'),
    Comparison(**ORIGIN, messages=ASKED, responses=["a", ""], pairs=[PAIR], ties=2, input_ids=[[1], []]),
    Prompt(**ORIGIN, messages=ASKED, input_ids=[]),
    Text(**ORIGIN, text="a\n\nb", input_ids=[151643]),
    Rejected(role="sft", source="s", place="f.jsonl:3", rule="broken_json", row="{"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_a_row_comes_back_as_it_went(tmp_path: Path, row: Chat) -> None:
    assert write_rows(tmp_path / "deep" / "rows.parquet", [row], type(row)) == 1
    assert list(read_rows(tmp_path / "deep" / "rows.parquet", type(row))) == [row]


@given(texts=st.lists(st.text(), max_size=20), batch=st.integers(1, 7))
@settings(max_examples=40)
def test_rows_keep_their_order_whatever_the_batch(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], batch: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    rows = [Text(**ORIGIN, text=text, input_ids=[len(text)]) for text in texts]
    assert write_rows(path, rows, Text, batch_rows=batch) == len(texts)
    assert list(read_rows(path, Text)) == rows


def test_a_row_can_change_after_it_was_flushed_but_not_the_file(tmp_path: Path) -> None:
    row = Text(**ORIGIN, text="before")
    with RowWriter(tmp_path / "rows.parquet", Text, batch_rows=1) as writer:
        writer.write(row)
        row.text = "after"
    assert [found.text for found in read_rows(tmp_path / "rows.parquet", Text)] == ["before"]


def test_files_are_compressed_with_zstd(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", ROWS[:1], Chat)
    assert pq.ParquetFile(tmp_path / "rows.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_file_of_other_rows_is_refused_with_the_missing_columns(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", ROWS[3:4], Text)
    missing = r"rows.parquet: no column messages, labels, meta, tags, language, safety for Chat rows"
    with pytest.raises(UserError, match=missing):
        list(read_rows(tmp_path / "rows.parquet", Chat))


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        list(read_rows(tmp_path / "rows.parquet", Chat))


def test_more_columns_than_needed_are_no_harm(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", ROWS[3:4], Text)
    table = pq.read_table(tmp_path / "a.parquet").append_column("tags", pa.array(["x"]))
    pq.write_table(table, tmp_path / "b.parquet")
    assert list(read_rows(tmp_path / "b.parquet", Text)) == ROWS[3:4]


def test_every_data_role_has_a_row_type() -> None:
    assert tuple(ROW_TYPES) == DATA_ROLES
