"""Mixture: shares as the weights, as many rows as they allow, none twice, whatever the order of the rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import UserError
from components.data_prep.mixture import at_most, in_shares, quotas

KEYS = st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=60).map(lambda keys: np.array(keys, np.uint64))
WEIGHTS = st.integers(1, 1000).map(lambda n: n / 100)


@pytest.mark.parametrize(
    ("rows", "weights", "expected"),
    [
        ([300, 700], [0.3, 0.7], [300, 700]),  # in binary fractions 0.3 and 0.7 would give 999 rows
        ([300, 700], [3, 7], [300, 700]),
        ([1000, 50], [0.9, 0.1], [450, 50]),
        ([1000, 50], [1, 1], [50, 50]),
        ([10, 10, 10], [1, 1, 1], [10, 10, 10]),
        ([100, 100, 1], [1, 1, 1], [1, 1, 1]),
        ([7, 5], [2, 1], [7, 3]),  # 10.5 rows in all: 6.67 and 3.33 of 10
        ([5, 1], [1, 10], [0, 1]),
        ([1], [0.2], [1]),
    ],
)
def test_quotas_by_hand(rows: list[int], weights: list[float], expected: list[int]) -> None:
    found = quotas(dict(enumerate(rows)), dict(enumerate(weights)))
    assert [found[place] for place in range(len(rows))] == expected


@given(given=st.lists(st.tuples(st.integers(1, 500), WEIGHTS), min_size=1, max_size=6))
def test_quotas_fit_keep_the_shares_and_cannot_be_larger(given: list[tuple[int, float]]) -> None:
    rows, weights = [dict(enumerate(column)) for column in zip(*given, strict=True)]
    counts = quotas(rows, weights)
    total, whole = sum(counts.values()), sum(weights.values())
    for place, count in counts.items():
        assert 0 <= count <= rows[place]
        assert abs(count - total * weights[place] / whole) < 1 + 1e-9
    assert any((total + 1) * weights[place] / whole > rows[place] - 1e-9 for place in rows)


@given(keys=KEYS, limit=st.integers(0, 70), data=st.data())
def test_a_limit_leaves_the_same_rows_in_any_order_and_more_of_them_when_it_is_higher(
    keys: np.ndarray, limit: int, data: st.DataObject
) -> None:
    kept = set(keys[at_most(keys, limit)].tolist())
    assert len(kept) == min(limit, len(keys))
    shuffled = np.array(data.draw(st.permutations(keys.tolist())), np.uint64)
    assert set(shuffled[at_most(shuffled, limit)].tolist()) == kept
    assert kept <= set(keys[at_most(keys, limit + 1)].tolist())
    assert at_most(keys, None).all()


@given(keys=KEYS, data=st.data())
def test_shares_are_the_same_rows_in_any_order(keys: np.ndarray, data: st.DataObject) -> None:
    source = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(keys), max_size=len(keys))), np.int16)
    weights: list[float | None] = [data.draw(WEIGHTS) if (source == place).any() else None for place in range(3)]
    order = np.array(data.draw(st.permutations(range(len(keys)))), np.int64)
    stays = in_shares(keys, source, "abc", weights)
    assert (in_shares(keys[order], source[order], "abc", weights) == stays[order]).all()
    held = {place: int((source == place).sum()) for place, weight in enumerate(weights) if weight is not None}
    if held:
        counts = quotas(held, {place: weight for place, weight in enumerate(weights) if weight is not None})
        assert {place: int(stays[source == place].sum()) for place in held} == counts


def test_without_weights_all_rows_stay() -> None:
    assert in_shares(np.arange(5, dtype=np.uint64), np.zeros(5, np.int16), ["a"], [None]).all()


def test_a_weight_without_rows_is_a_user_error() -> None:
    with pytest.raises(UserError, match="source b has a weight, but no training rows"):
        in_shares(np.arange(5, dtype=np.uint64), np.zeros(5, np.int16), ["a", "b"], [1, 2])


def test_what_a_limit_left_is_not_favoured_by_the_shares() -> None:
    """2000 of 4000 rows pass the limit; half of everything stays after it, and so half of those."""
    keys = np.random.default_rng(0).integers(0, 2**63, 12_000).astype(np.uint64)
    tool_use = np.arange(len(keys)) < 4000
    stays = np.ones(len(keys), bool)
    stays[tool_use] = at_most(keys[tool_use], 2000)
    left, of_tools = keys[stays], tool_use[stays]
    source = np.zeros(len(left), np.int16)
    other = np.random.default_rng(1).integers(0, 2**63, 5000).astype(np.uint64)
    mixed = in_shares(
        np.concatenate([left, other]), np.concatenate([source, np.ones(5000, np.int16)]), ["a", "b"], [1, 1]
    )[: len(left)]
    assert mixed.sum() == 5000
    assert abs(mixed[of_tools].mean() - 0.5) < 0.05


def test_neighbouring_keys_are_chosen_evenly() -> None:
    chosen = at_most(np.arange(10_000, dtype=np.uint64), 5000)
    assert abs(chosen[:5000].sum() - 2500) < 200
