"""Judged rows become strict pairs; all rows of one prompt in a source become one Comparison.

Scores are compared only within a row: two annotators' scales need not be the same. Fractions are kept.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from components.core.config import DataPrepConfig
from components.core.records import Message
from components.data_prep.adapters import Judged
from components.data_prep.checks import normalised
from components.data_prep.dedup import conversation_texts

Pair = dict[str, Any]
Votes = dict[tuple[int, int], list[float]]


@dataclass
class Pairs:
    """Strict pairs, best first, and what became of the others."""

    strict: list[Pair]
    ties: int = 0
    small_gaps: int = 0
    conflicts: int = 0
    over_limit: int = 0

    @property
    def rule(self) -> str:
        """Why there is no pair."""
        if self.conflicts:
            return "conflicting_scores"
        return "small_gap" if self.small_gaps else "tie"


@dataclass
class PromptGroup:
    """One prompt of a source, its distinct responses, and how every row judged each two of them."""

    messages: list[Message]
    place: str
    meta: dict[str, Any]
    rows: int = 0
    repeated_responses: int = 0
    responses: list[str] = field(default_factory=list)
    votes: Votes = field(default_factory=dict)
    true_votes: Votes = field(default_factory=dict)
    response_meta: dict[str, dict[int, Any]] = field(default_factory=dict)
    _index: dict[str, int] = field(default_factory=dict)

    def add(self, item: Judged) -> None:
        self.rows += 1
        places = [self._place_of(response) for response in item.responses]
        self.repeated_responses += len(places) - len(set(places))
        _vote(self.votes, places, item.scores)
        if item.true_scores is not None:
            _vote(self.true_votes, places, item.true_scores)
        for key, values in item.meta.items():
            if _is_per_response(values, item):
                column = self.response_meta.setdefault(key, {})
                for index, value in zip(places, values, strict=True):
                    column.setdefault(index, value)

    def _place_of(self, response: str) -> int:
        text = normalised(response)
        if text not in self._index:
            self._index[text] = len(self.responses)
            self.responses.append(response)
        return self._index[text]


def _is_per_response(values: Any, item: Judged) -> bool:
    return isinstance(values, list) and len(values) == len(item.responses)


def _vote(votes: Votes, places: list[int], scores: list[float]) -> None:
    """Score differences of each two different responses. A response given twice counts with its mean score.

    Rounded, because fractions are not exact in binary: 0.4 - 0.3 is more than 0.1, and means of equal scores differ.
    """
    of: dict[int, list[float]] = {}
    for index, score in zip(places, scores, strict=True):
        of.setdefault(index, []).append(score)
    means = {index: math.fsum(values) / len(values) for index, values in of.items()}
    for first, second in combinations(sorted(means), 2):
        votes.setdefault((first, second), []).append(round(means[first] - means[second], 9))


def group(rows: Iterable[tuple[str, Judged]]) -> Iterator[PromptGroup]:
    """Rows (place, item) by prompt, in the order of each prompt's first row. Holds one source's rows in memory."""
    groups: dict[tuple[str, ...], PromptGroup] = {}
    for place, item in rows:
        key = tuple(normalised(text) for text in conversation_texts(item.messages))
        if key not in groups:
            scalars = {name: value for name, value in item.meta.items() if not _is_per_response(value, item)}
            groups[key] = PromptGroup(item.messages, place, scalars)
        groups[key].add(item)
    yield from groups.values()


def strict_pairs(votes: Votes, min_gap: float = 0.0, limit: int | None = None) -> Pairs:
    """Pairs whose rows agree on a difference above `min_gap`; the gap is the mean of theirs.

    A row that calls two responses equal leaves the others' verdict standing; rows that contradict each other drop the
    pair. Over the limit the widest gaps stay (Bai et al. 2022 drop the weakest).
    """
    found = Pairs([])
    for (first, second), gaps in votes.items():
        clear = [gap for gap in gaps if abs(gap) > min_gap]
        if not clear:
            found.ties += not any(gaps)
            found.small_gaps += any(gaps)
        elif min(clear) < 0 < max(clear):
            found.conflicts += 1
        else:
            chosen, rejected = (first, second) if clear[0] > 0 else (second, first)
            gap = math.fsum(map(abs, clear)) / len(clear)  # whatever the order of the rows
            found.strict.append({"chosen": chosen, "rejected": rejected, "gap": gap})
    found.strict.sort(key=lambda pair: (-pair["gap"], pair["chosen"], pair["rejected"]))
    if limit is not None:
        found.over_limit = max(0, len(found.strict) - limit)
        del found.strict[limit:]
    return found


def pair_limit(config: DataPrepConfig, role: str) -> int | None:
    """The most pairs of a prompt that a role's rows have."""
    return config.pmp_pairs_per_prompt if role == "pmp" else config.max_pairs_per_prompt


def compact(pairs: list[Pair]) -> tuple[list[int], list[Pair]]:
    """(responses that some pair needs, the pairs counted within those)."""
    used = sorted({pair[side] for pair in pairs for side in ("chosen", "rejected")})
    new = {old: index for index, old in enumerate(used)}
    return used, [{**pair, "chosen": new[pair["chosen"]], "rejected": new[pair["rejected"]]} for pair in pairs]
