"""What the rows are like, in figures that add up: any number of shards gives the same ones.

Whole numbers throughout, so that sums do not depend on their order. Lengths are counted one by one and not in classes:
`max_length` bounds how many there are, and medians come out exact.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.core.chatml import IGNORE, ChatTokenizer

EDGES = (0, *(2**power for power in range(18)))
"""Where the classes of histograms begin; the last one is open."""
_GAP_UNIT = 10**6  # gaps are counted in millionths


@dataclass
class Distribution:
    """How often each whole number occurred."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, values: Iterable[int]) -> None:
        self.counts.update(values)

    def merge(self, other: Self) -> None:
        self.counts.update(other.counts)

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def sum(self) -> int:
        return sum(value * times for value, times in self.counts.items())

    def mean(self) -> float:
        return self.sum / self.total if self.total else 0.0

    def quantile(self, share: float) -> int:
        """The smallest value that at least this share of all do not exceed."""
        needed = max(1, math.ceil(share * self.total))
        seen = 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= needed:
                return value
        return 0

    def histogram(self, edges: Sequence[int] = EDGES) -> list[int]:
        """How many are in [edge, next edge), for each edge."""
        found = [0] * len(edges)
        for value, times in self.counts.items():
            found[int(np.searchsorted(edges, value, side="right")) - 1] += times
        return found

    def summary(self) -> dict[str, Any]:
        return {"mean": self.mean(), "median": self.quantile(0.5), "p95": self.quantile(0.95), "max": self.quantile(1)}

    def to_dict(self) -> list[tuple[int, int]]:
        return sorted(self.counts.items())

    @classmethod
    def from_dict(cls, items: list[tuple[int, int]]) -> Self:
        return cls(Counter(dict(items)))


@dataclass
class LengthBias:
    """Whether the better response is the longer one, in tokens. Every pair counts once, also those of one prompt."""

    chosen: Distribution = field(default_factory=Distribution)
    rejected: Distribution = field(default_factory=Distribution)
    longer: int = 0
    equal: int = 0
    gap_squares: int = 0
    difference_squares: int = 0
    products: int = 0

    def add(self, chosen: Sequence[int], rejected: Sequence[int], gaps: Sequence[float]) -> None:
        """Token lengths of the pairs' responses, and their score gaps."""
        self.chosen.add(chosen)
        self.rejected.add(rejected)
        for better, worse, gap in zip(chosen, rejected, gaps, strict=True):
            difference, units = better - worse, round(gap * _GAP_UNIT)
            self.longer += difference > 0
            self.equal += difference == 0
            self.gap_squares += units * units
            self.difference_squares += difference * difference
            self.products += units * difference

    def merge(self, other: Self) -> None:
        self.chosen.merge(other.chosen)
        self.rejected.merge(other.rejected)
        for name in _BIAS_SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def pairs(self) -> int:
        return self.chosen.total

    def summary(self) -> dict[str, Any]:
        """`longer_is_better`: the accuracy of that rule, half a point for equal lengths, as elsewhere for ties.

        `correlation` is Pearson's, of score and length differences, each pair taken in both orders (so that means are
        0): 1 where scores are lengths, 0 where they know nothing of each other.
        """
        pairs = max(self.pairs, 1)
        spread = math.sqrt(self.gap_squares) * math.sqrt(self.difference_squares)
        return {
            "pairs": self.pairs,
            "chosen_longer": self.longer / pairs,
            "equal_length": self.equal / pairs,
            "longer_is_better": (self.longer + self.equal / 2) / pairs,
            "correlation": self.products / spread if spread else 0.0,
            "chosen": self.chosen.summary(),
            "rejected": self.rejected.summary(),
        }

    def to_dict(self) -> dict[str, Any]:
        sums = {name: getattr(self, name) for name in _BIAS_SUMS}
        return {"chosen": self.chosen.to_dict(), "rejected": self.rejected.to_dict(), **sums}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        chosen, rejected = (Distribution.from_dict(values[name]) for name in ("chosen", "rejected"))
        return cls(chosen, rejected, *(values[name] for name in _BIAS_SUMS))


_BIAS_SUMS = ("longer", "equal", "gap_squares", "difference_squares", "products")


@dataclass
class PartStatistics:
    """Of one part of a role: its rows in training, or those held out."""

    rows: int = 0
    trained_tokens: int = 0
    truncated: int = 0
    lengths: Distribution = field(default_factory=Distribution)
    """Tokens of each sequence: a row's, or each of a comparison's responses with its prompt."""
    turns: Distribution = field(default_factory=Distribution)
    """Of users and assistants; a response to be judged is none."""
    responses: Distribution = field(default_factory=Distribution)
    languages: Counter[str] = field(default_factory=Counter)
    length_bias: LengthBias = field(default_factory=LengthBias)

    def add(self, batch: pa.RecordBatch, tokenizer: ChatTokenizer, truncated: int = 0) -> None:
        """Rows of any type of core/records.py; which one, their columns tell."""
        self.rows += batch.num_rows
        self.truncated += truncated
        columns = set(batch.schema.names)
        if "language" in columns:
            self.languages.update(batch["language"].to_pylist())
        if "messages" in columns:
            self.turns.add(_turns(batch["messages"]))
        if "pairs" in columns:
            self._add_comparisons(batch, tokenizer)
            return
        self.lengths.add(_sizes(batch["input_ids"]))
        if "labels" in columns:
            self.trained_tokens += _targets(batch["labels"])

    def _add_comparisons(self, batch: pa.RecordBatch, tokenizer: ChatTokenizer) -> None:
        nested = batch["input_ids"]
        self.responses.add(_sizes(nested))
        sequences = nested.flatten()
        lengths = pc.list_value_length(sequences).to_numpy()
        self.lengths.add(lengths.tolist())
        said = lengths - _prompt_lengths(sequences, tokenizer)
        pairs = batch["pairs"].flatten()
        counts = pc.list_value_length(batch["pairs"]).to_numpy()
        first = np.repeat(_starts(nested), counts)
        chosen, rejected = (said[first + pairs.field(side).to_numpy()] for side in ("chosen", "rejected"))
        self.length_bias.add(chosen.tolist(), rejected.tolist(), pairs.field("gap").to_pylist())

    def merge(self, other: Self) -> None:
        for name in _PART_SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _PART_DISTRIBUTIONS:
            getattr(self, name).merge(getattr(other, name))
        self.languages.update(other.languages)
        self.length_bias.merge(other.length_bias)

    def summary(self) -> dict[str, Any]:
        """For people: what does not apply to the role is left out."""
        tokens = self.lengths.sum
        found: dict[str, Any] = {
            "rows": self.rows, "tokens": tokens, "truncated": self.truncated,
            "lengths": {**self.lengths.summary(), "edges": list(EDGES), "histogram": self.lengths.histogram()},
        }  # fmt: skip
        if self.trained_tokens:
            found |= {"trained_tokens": self.trained_tokens, "trained_share": self.trained_tokens / tokens}
        for name in ("turns", "responses"):
            values: Distribution = getattr(self, name)
            if values.total:
                found[name] = {"mean": values.mean(), "counts": values.to_dict()}
        if self.languages:
            found["languages"] = dict(sorted(self.languages.items(), key=lambda item: (-item[1], item[0])))
        if self.length_bias.pairs:
            found["length_bias"] = self.length_bias.summary()
        return found

    def to_dict(self) -> dict[str, Any]:
        """For `from_dict`, in another process: everything, exactly."""
        return {
            **{name: getattr(self, name) for name in _PART_SUMS},
            **{name: getattr(self, name).to_dict() for name in _PART_DISTRIBUTIONS},
            "languages": dict(sorted(self.languages.items())),
            "length_bias": self.length_bias.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        found = cls(languages=Counter(values["languages"]), length_bias=LengthBias.from_dict(values["length_bias"]))
        for name in _PART_SUMS:
            setattr(found, name, values[name])
        for name in _PART_DISTRIBUTIONS:
            setattr(found, name, Distribution.from_dict(values[name]))
        return found


_PART_SUMS = ("rows", "trained_tokens", "truncated")
_PART_DISTRIBUTIONS = ("lengths", "turns", "responses")


def _sizes(lists: pa.ListArray) -> list[int]:
    return list(pc.list_value_length(lists).to_pylist())


def _starts(lists: pa.ListArray) -> NDArray[np.int64]:
    """Where each list begins within `flatten()`, for arrays without nulls."""
    sizes = pc.list_value_length(lists).to_numpy()
    return np.cumsum(sizes, dtype=np.int64) - sizes


def _turns(messages: pa.ListArray) -> list[int]:
    """Turns of each conversation, its system turn left out."""
    sizes = pc.list_value_length(messages).to_numpy()
    spoken = pc.not_equal(messages.flatten().field("role"), "system").to_numpy(zero_copy_only=False)
    ends = np.cumsum(sizes, dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(spoken, dtype=np.int64)])
    return list((before[ends] - before[ends - sizes]).tolist())


def _targets(labels: pa.ListArray) -> int:
    """Labels that the loss is taken of: as in training, never the first of a row, which nothing predicts."""
    trained = labels.flatten().to_numpy() != IGNORE
    firsts = _starts(labels)[pc.list_value_length(labels).to_numpy() > 0]
    return int(trained.sum() - trained[firsts].sum())


def _prompt_lengths(sequences: pa.ListArray, tokenizer: ChatTokenizer) -> NDArray[np.int64]:
    """Tokens of each sequence that are not its response: to the end of the last header, and the final `<|im_end|>`.

    No text becomes a control token, so the last `<|im_start|>` opens the response's turn.
    """
    starts, sizes = _starts(sequences), pc.list_value_length(sequences).to_numpy()
    opened = np.flatnonzero(sequences.flatten().to_numpy() == tokenizer.im_start)
    last = opened[np.searchsorted(opened, starts + sizes) - 1]
    return last - starts + len(tokenizer.header("assistant")) + 1
