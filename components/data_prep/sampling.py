"""Complexity-first diverse sampling: Algorithm 1 of InsTag (Lu et al., 2308.07074) with caps.

    sort the rows by their number of tags, most first, then by id
    pass after pass over the rows that are left: take a row if it has a tag that this pass has not covered yet
    end: enough rows, or a pass that adds none (recipe.md §3.1: rows without tags would make it go on for ever)

The caps are a default of ours for the report's "balanced" (recipe.md §3.1, [D]). A row that a pass would take but a cap
forbids is out for good, because what is taken never becomes less.

Walking over all that is left in every pass is quadratic: a pool where everybody asks for mathematics has as many passes
as rows. Here a pass asks each tag for its next row instead. A tag not covered yet stands in no row that this pass has
gone by, so the first of these rows is the one that the walk would stop at: same rows, same order. A pass looks only at
tags that still have rows, and takes a row of each; all passes together touch each (row, tag) once, in a heap.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple


class Candidate(NamedTuple):
    """A row to choose from. No two have the same `id`, so the order of the input does not matter. A tag counts once."""

    id: str
    tags: Collection[str]
    category: str = ""
    source: str = ""
    language: str = ""


@dataclass(frozen=True)
class Caps:
    """At most so many chosen rows with the same tag, or of the same category, source or language; None sets no limit.

    A row whose category, source or language is empty belongs to none.
    """

    tag: int | None = None
    category: int | None = None
    source: int | None = None
    language: int | None = None


@dataclass(frozen=True)
class Variety:
    """What InsTag measures of a set of rows: complexity (mean number of tags) and diversity (coverage of a tag set)."""

    rows: int
    mean_tags: float
    coverage: float


@dataclass(frozen=True)
class Sample:
    """What was chosen, and out of what. `chosen` holds indices of the candidates in the order of their choice."""

    chosen: list[int]
    passes: list[int]
    """Rows of each pass."""
    filled: int
    """Rows at the end of `chosen` that add no tag."""
    capped: dict[str, int]
    """Rows refused, by the first of tag, category, source and language whose cap forbids them."""
    before: Variety
    after: Variety


def sample(
    candidates: Sequence[Candidate],
    size: int,
    caps: Caps = Caps(),
    *,
    fill: bool = False,
    tag_set: Collection[str] | None = None,
) -> Sample:
    """Choose `size` rows, or fewer where tags or caps allow no more.

    `fill` goes on with rows that add no tag, in the same order (recipe.md §3.1: "if required"). `tag_set` is what
    coverage is a share of; without one, the tags of the candidates.
    """
    numbered = _Tags(candidates)
    order = sorted(range(len(candidates)), key=lambda row: (-len(numbered.rows[row]), candidates[row].id))
    gate = _Gate(candidates, caps)
    chosen: list[int] = []
    passes: list[int] = []
    if size > 0:
        for number, rank in diverse([numbered.rows[row] for row in order], lambda rank: gate.admits(order[rank])):
            passes.extend([0] * (number + 1 - len(passes)))
            passes[number] += 1
            chosen.append(order[rank])
            if len(chosen) == size:
                break
    by_tags = len(chosen)
    if fill:
        asked = {*chosen, *gate.refused}
        for row in order:
            if len(chosen) < size and row not in asked and gate.admits(row):
                chosen.append(row)
    known = set(numbered.names) if tag_set is None else set(tag_set)
    return Sample(
        chosen, passes, len(chosen) - by_tags, dict(Counter(gate.refused.values())),
        before=variety((candidate.tags for candidate in candidates), known),
        after=variety((candidates[row].tags for row in chosen), known),
    )  # fmt: skip


def variety(rows: Iterable[Collection[str]], tag_set: Collection[str]) -> Variety:
    """Complexity and diversity of rows given by their tags (InsTag). Without a tag set everything is covered."""
    known, seen, number, tags = set(tag_set), set[str](), 0, 0
    for row in rows:
        distinct = set(row)
        number += 1
        tags += len(distinct)
        seen |= distinct
    coverage = len(seen & known) / len(known) if known else 1.0
    return Variety(number, tags / number if number else 0.0, coverage)


def diverse(rows: Sequence[Collection[int]], admits: Callable[[int], bool]) -> Iterator[tuple[int, int]]:
    """(pass, rank) of the rows that the passes take, in that order.

    `rows[rank]` are a row's tags, as numbers from 0 without gaps; `admits` is asked once about a row that a pass takes.
    """
    waiting: list[list[int]] = [[] for _ in range(1 + max((tag for row in rows for tag in row), default=-1))]
    for rank in range(len(rows) - 1, -1, -1):
        for tag in rows[rank]:
            waiting[tag].append(rank)  # last first, so that pop() gives the next one
    gone = bytearray(len(rows))

    def head(tag: int) -> int | None:
        """The first row with this tag that is still there."""
        ranks = waiting[tag]
        while ranks and gone[ranks[-1]]:
            ranks.pop()
        return ranks[-1] if ranks else None

    alive = list(range(len(waiting)))
    for number in count():
        queue = [(first, tag) for tag in alive if (first := head(tag)) is not None]
        if not queue:
            return
        alive = [tag for _, tag in queue]
        heapq.heapify(queue)
        covered: set[int] = set()
        while queue:
            rank, tag = heapq.heappop(queue)
            if tag in covered:
                continue
            if not gone[rank]:
                gone[rank] = True
                if admits(rank):
                    covered.update(rows[rank])
                    yield number, rank
                    continue
            if (following := head(tag)) is not None:
                heapq.heappush(queue, (following, tag))


class _Tags:
    """The candidates' tags as numbers, each once a row."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.names: dict[str, int] = {}
        self.rows = [self._numbers(candidate.tags) for candidate in candidates]

    def _numbers(self, tags: Collection[str]) -> tuple[int, ...]:
        return tuple({self.names.setdefault(tag, len(self.names)): None for tag in tags})


class _Gate:
    """Lets a row in as long as none of its caps is reached."""

    def __init__(self, candidates: Sequence[Candidate], caps: Caps) -> None:
        self._candidates, self._caps = candidates, caps
        self._taken: Counter[tuple[str, str]] = Counter()
        self.refused: dict[int, str] = {}

    def admits(self, row: int) -> bool:
        groups = list(self._groups(self._candidates[row]))
        for kind, name, limit in groups:
            if self._taken[kind, name] >= limit:
                self.refused[row] = kind
                return False
        self._taken.update((kind, name) for kind, name, _ in groups)
        return True

    def _groups(self, candidate: Candidate) -> Iterator[tuple[str, str, int]]:
        """(kind, name, cap) of every group that the row is in and that has a cap."""
        caps = self._caps
        if caps.tag is not None:
            yield from (("tag", tag, caps.tag) for tag in set(candidate.tags))
        if caps.category is not None and candidate.category:
            yield "category", candidate.category, caps.category
        if caps.source is not None and candidate.source:
            yield "source", candidate.source, caps.source
        if caps.language is not None and candidate.language:
            yield "language", candidate.language, caps.language
