"""As many pairs of the same prompts as other comparisons have, so that two data sets differ in what is compared alone.

Both sides are cut down: to the prompts that both have, and of each to the smaller number of pairs, drawn by the seed.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from components.core.errors import UserError
from components.core.seeds import seed_for
from components.training.data import ComparisonRows, Ragged, read_table


def matched(data: ComparisonRows, ours: Path, theirs: Path, seed: int) -> ComparisonRows:
    """The rows of `ours`, read as `data`, cut down to what `theirs` has, too. Both are training files."""
    counts = dict(zip(_keys(theirs), _pair_counts(theirs), strict=True))
    kept: list[int] = []
    chosen: list[np.ndarray] = []
    for row, key in enumerate(_keys(ours)):
        if number := min(len(data.pairs[row]), counts.get(key, 0)):
            drawn = np.random.default_rng(seed_for(seed, "matched", data.ids[row])).permutation(len(data.pairs[row]))
            kept.append(row)
            chosen.append(np.sort(drawn[:number]))
    if not kept:
        raise UserError("no prompt in common", where=f"matched_with {theirs}", fix="make both from the same prompts")
    responses = [data.responses[i] for row in kept for i in range(data.first[row], data.first[row + 1])]
    return replace(
        data,
        responses=Ragged(np.concatenate(responses), _starts([len(response) for response in responses])),
        first=_starts([int(data.first[row + 1] - data.first[row]) for row in kept]),
        pairs=[data.pairs[row][pairs] for row, pairs in zip(kept, chosen, strict=True)],
        gaps=[data.gaps[row][pairs] for row, pairs in zip(kept, chosen, strict=True)],
        ids=[data.ids[row] for row in kept],
    )


def _starts(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _keys(path: Path) -> list[tuple[Any, ...]]:
    """A prompt's text and, where several rows have it, the how manieth this is."""
    seen: Counter[tuple[Any, ...]] = Counter()
    keys = []
    for messages in read_table(path, ["messages"])["messages"].to_pylist():
        text = tuple((message["role"], message["content"]) for message in messages)
        keys.append((text, seen[text]))
        seen[text] += 1
    return keys


def _pair_counts(path: Path) -> list[int]:
    return [len(pairs) for pairs in read_table(path, ["pairs"])["pairs"].to_pylist()]
