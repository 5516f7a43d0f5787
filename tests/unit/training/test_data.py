import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.training.data import label_count, mask_of, micro_batches, pad, rows_at, share

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 100))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = micro_batches(range(len(lengths)), np.array(lengths), budget)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[row] for row in group) <= budget


@given(LENGTHS, st.integers(1, 5))
def test_ranks_share_every_row_once(lengths: list[int], world: int) -> None:
    parts = [share(range(len(lengths)), np.array(lengths), rank, world) for rank in range(world)]
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))


@given(st.integers(1, 17), st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
def test_rows_follow_shuffled_passes_wherever_reading_starts(count: int, start: int, size: int, seed: int) -> None:
    whole = rows_at(0, 4 * count + 80, count, seed)
    assert rows_at(start, start + size, count, seed) == whole[start : start + size]
    for epoch in range(3):
        assert sorted(whole[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_each_pass_has_its_own_order() -> None:
    assert rows_at(0, 50, 50, 0) != rows_at(50, 100, 50, 0)


def test_padding_and_mask_on_both_sides() -> None:
    rows = [[5, 6, 7], [8]]
    assert pad(rows, 0).tolist() == [[5, 6, 7], [8, 0, 0]]
    assert pad(rows, 0, left=True).tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask_of(rows).tolist() == [[1, 1, 1], [1, 0, 0]]
    assert mask_of(rows, left=True).tolist() == [[1, 1, 1], [0, 0, 1]]


def test_mask_keeps_a_rows_own_padding_id() -> None:
    assert mask_of([[3, 0, 3], [0]]).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_first_label_is_no_target() -> None:
    assert label_count(np.array([4, -100, 5, 6])) == 2


def test_padding_gives_what_embeddings_take() -> None:
    assert pad([np.array([1, 2], dtype=np.int32)], 9).dtype == torch.int64
