"""Which training rows stay, so that each source has its share and tool use no more rows than asked for.

The report mixes about 2000 ReAct rows into SFT (§3.4) and gives no weights of anything else (recipe.md §1.1): both are
options. No row is ever repeated: a source that is short of its share makes the mixture smaller.

Rows are chosen by a hash of what they hold, not by their place, with a fixed salt instead of the run's seed: order,
shards and runs make no difference, and a smaller choice is a part of a larger one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from components.core.errors import UserError

Keys = NDArray[np.uint64]
Mask = NDArray[np.bool_]


def at_most(keys: Keys, limit: int | None) -> Mask:
    """The rows that stay where at most `limit` may, such as `react_rows` of those that `templates.is_tool_use` knows.

    `keys` are 8 bytes of each row's digest. Apply this before `in_shares`, which then sees what is left.
    """
    return _chosen(keys, len(keys) if limit is None else limit, "limit")


def in_shares(keys: Keys, source: NDArray[np.integer], names: Sequence[str], weights: Sequence[float | None]) -> Mask:
    """The rows that stay so that sources have shares as their weights; all of them where no source has a weight.

    `keys` and `source`, a place in `names` and `weights`, are of the training rows of one role. Raises UserError where
    a source with a weight has none.
    """
    weighted = {place: weight for place, weight in enumerate(weights) if weight is not None}
    stays = np.ones(len(keys), bool)
    if not weighted:
        return stays
    rows = {place: np.flatnonzero(source == place) for place in weighted}
    for place, found in rows.items():
        if not len(found):
            what = f"source {names[place]} has a weight, but no training rows are left of it"
            raise UserError(what, where="data_prep.sources", fix="leave it out, or see what its rows were rejected for")
    counts = quotas({place: len(found) for place, found in rows.items()}, weighted)
    for place, found in rows.items():
        stays[found] = _chosen(keys[found], counts[place], "share")
    return stays


def quotas(rows: Mapping[int, int], weights: Mapping[int, float]) -> dict[int, int]:
    """Rows to take of each source: the most that have shares as the weights and repeat none.

    Whole numbers by largest remainders, so each is less than one row from its share of them all.
    """
    # As written: 0.1 is a tenth here, and not the binary fraction beside it, which would cost a row.
    exact = {source: Fraction(str(weight)) for source, weight in weights.items()}
    whole = sum(exact.values())
    size = int(min(rows[source] * whole / weight for source, weight in exact.items()))
    wanted = {source: size * weight / whole for source, weight in exact.items()}
    counts = {source: int(share) for source, share in wanted.items()}
    by_remainder = sorted(wanted, key=lambda source: (counts[source] - wanted[source], source))
    for source in by_remainder[: size - sum(counts.values())]:
        counts[source] += 1
    return counts


def _chosen(keys: Keys, count: int, purpose: str) -> Mask:
    """The `count` rows with the lowest hashes; all where there are fewer."""
    chosen = np.zeros(len(keys), bool)
    chosen[np.argsort(_hashes(keys, purpose), kind="stable")[:count]] = True
    return chosen


def _hashes(keys: Keys, purpose: str) -> Keys:
    """Each purpose has hashes of its own: else what one choice left, being lowest, would be the next one's favourites.

    The finaliser of SplitMix64 (Steele et al. 2014), one-to-one, so that different rows never tie.
    """
    salt = int.from_bytes(hashlib.sha256(f"kubealign mixture 1 {purpose}".encode()).digest()[:8], "big")
    mixed = keys ^ np.uint64(salt)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
