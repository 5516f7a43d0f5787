"""Decisions about many rows, on facts made by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from components.data_prep.reduce import RoleFacts, _groups, _refuse_duplicates, _refuse_heldout_prompts


def facts(role: str, rows: list[tuple[int, bool, int]], **columns: list[int]) -> RoleFacts:
    """`rows` are (source, train, content)."""
    count = len(rows)
    numbers = {"key": [0] * count, "cut_key": [0] * count, "content": [content for *_, content in rows], **columns}
    return RoleFacts(
        role,
        np.array([source for source, *_ in rows], np.int16),
        np.zeros(count, bool),
        np.array([train for _, train, _ in rows], bool),
        {name: np.array(values, np.uint64) for name, values in numbers.items()},
        np.array([""] * count, object),
        pa.chunked_array([[[]] * count], pa.list_(pa.string())),
        pa.chunked_array([[[]] * count], pa.list_(pa.string())),
        np.arange(count),
        np.ones(count, np.int64),
    )


@given(rows=st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(1, 4)), min_size=1, max_size=30))
def test_of_equal_rows_the_first_stays(rows: list[tuple[int, bool, int]]) -> None:
    """Training rows whatever their source, held-out ones within theirs."""
    found = facts("sft", rows)
    _refuse_duplicates(found)
    seen: set[Any] = set()
    for (source, train, content), rule in zip(rows, found.rule.tolist(), strict=True):
        scope = (train or source + 2, content)
        assert rule == ("duplicate" if scope in seen else "")
        seen.add(scope)


def test_prompts_that_are_judged_by_the_same_rows_are_duplicates() -> None:
    """Rows 0 and 2 judge one prompt, 1 and 4 another in another order; 3 is a third, with one judgement of the same."""
    found = facts("pmp", [(0, True, content) for content in (5, 7, 7, 7, 5)])
    found.first[:] = [0, 1, 0, 3, 1]
    found.size[:] = [2, 2, 2, 1, 2]
    _refuse_duplicates(found)
    assert found.rule.tolist() == ["", "duplicate", "", "", ""], "the members follow at the end of decide()"


def test_rows_of_a_prompt_are_grouped_within_their_source_and_without_refused_ones() -> None:
    source, group = np.array([0, 0, 1, 0, 0], np.int16), np.array([9, 9, 9, 8, 9], np.uint64)
    first, size = _groups(source, group, np.array([False, True, True, True, True]))
    assert first.tolist() == [0, 1, 2, 3, 1]
    assert size.tolist() == [1, 2, 1, 1, 2]


def test_held_out_prompts_of_others_are_not_trained_on_whole_or_cut() -> None:
    rows = [(0, True, 1), (0, False, 2), (0, True, 3), (0, True, 4)]
    found = facts("sft", rows, key=[7, 7, 1, 2], cut_key=[0, 0, 7, 0])
    _refuse_heldout_prompts({"sft": found}, np.array([7], np.uint64))
    assert found.rule.tolist() == ["heldout_prompt", "", "cut_into_other_part", ""]
