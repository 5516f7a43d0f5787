"""The raw rows of all sources, cut into units: the pieces that processes and shards work on.

Units hold a fixed number of rows of one source. What a unit becomes depends on its rows alone, and units are put
together by their number, so that the output does not depend on who worked on which.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

from components.core.config import Source, Sources
from components.core.records import DATA_ROLES
from components.data_prep.readers import RawRow
from components.data_prep.sources import raw_rows

UNIT_ROWS = 1024


@dataclass(frozen=True)
class Unit:
    """`source` is the place within the role's sources."""

    number: int
    role: str
    source: int
    rows: list[RawRow]


def units(sources: Sources, data_root: str, seed: int, shard: int = 0, shards: int = 1) -> Iterator[Unit]:
    """Every `shards`-th unit from number `shard` on. All rows are read, for where a unit begins nobody knows."""
    numbers = count()
    for role in DATA_ROLES:
        for index, source in enumerate(getattr(sources, role)):
            for rows in _pieces(source, role, data_root, seed):
                number = next(numbers)
                if number % shards == shard:
                    yield Unit(number, role, index, rows)


def _pieces(source: Source, role: str, data_root: str, seed: int) -> Iterator[list[RawRow]]:
    rows = raw_rows(source, role, data_root, seed)
    while piece := list(islice(rows, UNIT_ROWS)):
        yield piece
