"""Tokenised rows in memory as flat arrays, their order, and micro-batches of bounded size."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from components.core.chatml import IGNORE
from components.core.errors import UserError
from components.core.seeds import seed_for


@dataclass(frozen=True)
class Ragged:
    """Rows of different length in one flat array: row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


def read_table(path: Path, columns: list[str]) -> pa.Table:
    """Columns of a training file. Raises UserError where it is missing, unreadable or empty."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; run data_prep for this role")
    try:
        table = pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise UserError(f"{path}: not a data_prep file ({error}); make it again") from error
    if len(table) == 0:
        raise UserError(f"{path}: no rows; give data_prep more data")
    return table


def ragged(column: pa.ChunkedArray) -> Ragged:
    """A list column as a flat array."""
    array = column.combine_chunks()
    return Ragged(array.flatten().to_numpy(zero_copy_only=False), _offsets(array))


def _offsets(array: pa.Array) -> np.ndarray:
    offsets = array.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]


@dataclass(frozen=True)
class ComparisonRows:
    """Responses of all prompts in one ragged array; prompt i owns responses first[i]..first[i + 1]."""

    responses: Ragged
    first: np.ndarray
    pairs: list[np.ndarray]  # each (pairs, 2): chosen, rejected, counted within the prompt
    gaps: list[np.ndarray]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.pairs)


def read_comparisons(path: Path) -> ComparisonRows:
    table = read_table(path, ["id", "input_ids", "pairs"])
    nested = table["input_ids"].combine_chunks()
    inner = nested.flatten()
    responses = Ragged(inner.flatten().to_numpy(zero_copy_only=False), _offsets(inner))
    pairs, gaps = [], []
    for row in table["pairs"].to_pylist():
        pairs.append(np.array([[pair["chosen"], pair["rejected"]] for pair in row], dtype=np.int64).reshape(-1, 2))
        gaps.append(np.array([pair["gap"] for pair in row], dtype=np.float32))
    return ComparisonRows(responses, _offsets(nested), pairs, gaps, table["id"].to_pylist())


@lru_cache(maxsize=4)  # every step of a pass asks for the same one
def row_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of rows in one pass: another permutation each epoch, the same for every rank and after a resume."""
    return np.random.default_rng(seed_for(seed, "order", epoch)).permutation(count)


def rows_at(start: int, stop: int, count: int, seed: int) -> list[int]:
    """Row numbers start..stop of an endless sequence of shuffled passes over `count` rows."""
    rows: list[int] = []
    while start < stop:
        epoch, within = divmod(start, count)
        taken = row_order(count, seed, epoch)[within : within + stop - start]
        rows += taken.tolist()
        start += len(taken)
    return rows


def share(rows: Sequence[int], lengths: np.ndarray, rank: int, world: int) -> list[int]:
    """This rank's part of a batch: rows dealt by length, so that ranks work about equally long."""
    ordered = sorted(rows, key=lambda row: (-int(lengths[row]), row))
    return ordered[rank::world]


def micro_batches(rows: Sequence[int], lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Rows in groups of at most `budget` tokens, longest first (one row may exceed the budget alone).

    Rows are packed without padding; sorting puts equal lengths together, which attention uses (`attention.py`).
    """
    groups: list[list[int]] = []
    used = 0
    for row in sorted(rows, key=lambda row: (-int(lengths[row]), row)):
        length = int(lengths[row])
        if groups and used + length <= budget:
            groups[-1].append(row)
            used += length
        else:
            groups.append([row])
            used = length
    return groups


def pad(rows: Sequence[Sequence[int] | np.ndarray], value: int, *, left: bool = False) -> torch.Tensor:
    """Rows as one (rows, longest) int64 tensor, padded on one side."""
    width = max(len(row) for row in rows)
    batch = np.full((len(rows), width), value, dtype=np.int64)
    for i, row in enumerate(rows):
        start = width - len(row) if left else 0
        batch[i, start : start + len(row)] = row
    return torch.from_numpy(batch)


def mask_of(rows: Sequence[Sequence[int] | np.ndarray], *, left: bool = False) -> torch.Tensor:
    """1 where `pad` put a row's own token. Built from lengths: a row may contain the padding id itself."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    columns = torch.arange(width).expand(len(rows), width)
    return (columns >= width - lengths[:, None] if left else columns < lengths[:, None]).long()


def label_count(labels: np.ndarray) -> int:
    """Targets of a row: its labels but the first, which nothing predicts."""
    return int((labels[1:] != IGNORE).sum())
