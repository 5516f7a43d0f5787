"""The rows that travel between steps: Parquet (zstd) with one fixed schema a role.

Text is kept beside the token ids: training reads the ids, evaluation re-encodes the text with the tokenizer of
whatever model it is given.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from components.core.errors import UserError

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
DATA_ROLES = ("sft", "pmp", "reward_model", "ppo", "pretrain")

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_IDS = pa.list_(pa.int32())
_LABELS = [("tags", pa.list_(pa.string())), ("language", pa.string()), ("safety", pa.list_(pa.string()))]
_ORIGIN = [("id", pa.string()), ("source", pa.string()), ("licence", pa.string())]


@dataclass(kw_only=True)
class Chat:
    """A conversation that ends in an assistant turn. `labels` is -100 where no loss is taken (unshifted)."""

    id: str
    source: str
    licence: str
    messages: list[Message]
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    meta: str = "{}"
    tags: list[str] = field(default_factory=list)
    language: str = ""
    safety: list[str] = field(default_factory=list)
    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [*_ORIGIN, ("messages", _MESSAGES), ("input_ids", _IDS), ("labels", _IDS), ("meta", pa.string()), *_LABELS]
    )


@dataclass(kw_only=True)
class Comparison:
    """One prompt, its distinct responses and the strict pairs among them.

    `pairs` holds {chosen, rejected, gap}: indices into `responses`, and by how much the chosen one scored higher.
    `input_ids[i]` is the whole conversation with response i, up to and including its final `<|im_end|>`.
    """

    id: str
    source: str
    licence: str
    messages: list[Message]
    responses: list[str]
    pairs: list[dict[str, Any]]
    ties: int = 0
    input_ids: list[list[int]] = field(default_factory=list)
    meta: str = "{}"
    tags: list[str] = field(default_factory=list)
    language: str = ""
    safety: list[str] = field(default_factory=list)
    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [
            *_ORIGIN,
            ("messages", _MESSAGES),
            ("responses", pa.list_(pa.string())),
            ("pairs", pa.list_(pa.struct([("chosen", pa.int32()), ("rejected", pa.int32()), ("gap", pa.float32())]))),
            ("ties", pa.int32()),
            ("input_ids", pa.list_(_IDS)),
            ("meta", pa.string()),
            *_LABELS,
        ]
    )


@dataclass(kw_only=True)
class Prompt:
    """A conversation that ends in a user turn; `input_ids` ends with the assistant header."""

    id: str
    source: str
    licence: str
    messages: list[Message]
    input_ids: list[int] = field(default_factory=list)
    meta: str = "{}"
    tags: list[str] = field(default_factory=list)
    language: str = ""
    safety: list[str] = field(default_factory=list)
    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [*_ORIGIN, ("messages", _MESSAGES), ("input_ids", _IDS), ("meta", pa.string()), *_LABELS]
    )


@dataclass(kw_only=True)
class Text:
    """A plain document, as in pretraining; `input_ids` ends with `<|endoftext|>`."""

    id: str
    source: str
    licence: str
    text: str
    input_ids: list[int] = field(default_factory=list)
    SCHEMA: ClassVar[pa.Schema] = pa.schema([*_ORIGIN, ("text", pa.string()), ("input_ids", _IDS)])


@dataclass(kw_only=True)
class Rejected:
    """A raw row that a rule refused: which rule, where it stood, and the row itself as JSON."""

    role: str
    source: str
    place: str
    rule: str
    row: str
    SCHEMA: ClassVar[pa.Schema] = pa.schema(
        [(name, pa.string()) for name in ("role", "source", "place", "rule", "row")]
    )


Row = Chat | Comparison | Prompt | Text | Rejected
ROW_TYPES: dict[str, type[Any]] = {
    "sft": Chat,
    "pmp": Comparison,
    "reward_model": Comparison,
    "ppo": Prompt,
    "pretrain": Text,
}


class RowWriter:
    """Writes rows of one type to a Parquet file, a batch at a time, so that memory does not grow with the file.

    A batch is compressed beside the caller's own work; an error in it is raised by the next one, or by close.
    """

    def __init__(self, path: Path, row_type: type[Any], batch_rows: int = 4096) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.count = 0
        self._schema: pa.Schema = row_type.SCHEMA
        self._rows: list[dict[str, Any]] = []
        self._batches: list[pa.RecordBatch] = []
        self._waiting, self._batch_rows = 0, batch_rows
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def write(self, row: Row) -> None:
        # Not dataclasses.asdict: it copies every token id on its own.
        self._rows.append(vars(row))
        self._added(1)

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Rows that are an Arrow batch of the type's schema already."""
        self._pack()
        self._batches.append(batch)
        self._added(batch.num_rows)

    def _added(self, rows: int) -> None:
        self.count += rows
        self._waiting += rows
        if self._waiting >= self._batch_rows:
            self._flush()

    def _pack(self) -> None:
        if self._rows:
            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()

    def _flush(self) -> None:
        self._pack()
        if self._waiting:
            self._wait()
            table = pa.Table.from_batches(self._batches, schema=self._schema)
            self._writing = self._thread.submit(self._writer.write_table, table)
            self._batches.clear()
            self._waiting = 0

    def _wait(self) -> None:
        """Until what is being written is; raises its error."""
        if self._writing is not None:
            under_way, self._writing = self._writing, None
            under_way.result()

    def close(self) -> None:
        try:
            self._flush()
            self._wait()
        finally:
            self._thread.shutdown()
            self._writer.close()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_rows(path: Path, rows: Iterable[Row], row_type: type[Any], batch_rows: int = 4096) -> int:
    """Write rows of one type to a Parquet file in batches; returns how many."""
    with RowWriter(path, row_type, batch_rows) as writer:
        for row in rows:
            writer.write(row)
    return writer.count


def read_rows(path: Path, row_type: type[Any]) -> Iterator[Any]:
    """Stream the rows of a Parquet file that `write_rows` wrote. Raises UserError on another schema."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); make it again with data_prep") from error
    with file:
        missing = [name for name in row_type.SCHEMA.names if name not in file.schema_arrow.names]
        if missing:
            what = f"no column {', '.join(missing)} for {row_type.__name__} rows"
            raise UserError(what, where=str(path), fix="make it with data_prep")
        for batch in file.iter_batches(columns=row_type.SCHEMA.names):
            for row in batch.to_pylist():
                yield row_type(**row)
