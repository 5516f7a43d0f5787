import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.core.errors import UserError
from components.reward_model.losses import accuracy, pair_losses, pair_weights
from components.reward_model.model import RewardModel
from components.reward_model.train import plan_batches, prompt_groups
from components.training.data import ComparisonRows, Ragged, mask_of, pad

ROWS = [[5, 6, 7, 8, 9, 319], [20, 319], [30, 319, 32, 319]]


def test_pair_loss_by_hand() -> None:
    chosen, rejected = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, 1.0])
    expected = [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(2))]
    assert pair_losses(chosen, rejected).tolist() == pytest.approx(expected)
    with_margin = pair_losses(chosen, rejected, torch.tensor([0.5, 1.0, 0.0]))
    assert with_margin.tolist() == pytest.approx(
        [math.log(1 + math.exp(-0.5)), math.log(1 + math.e), math.log(1 + math.exp(2))]
    )


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_swapping_the_pair_flips_the_gap(chosen: float, rejected: float) -> None:
    forward = pair_losses(torch.tensor([chosen]), torch.tensor([rejected]))
    backward = pair_losses(torch.tensor([rejected]), torch.tensor([chosen]))
    assert float(backward - forward) == pytest.approx(chosen - rejected, abs=1e-4)


def test_every_prompt_weighs_the_same() -> None:
    weights = pair_weights(torch.tensor([0, 1, 1, 1, 2, 2]), 3)
    assert weights.tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 0.5, 0.5])


def test_ties_count_half() -> None:
    found = accuracy(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]))
    assert found.tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_score_does_not_depend_on_padding_or_batch_mates(
    model_folders: Callable[[str], Path], left: bool, kind: str
) -> None:
    """Padded rows go through transformers' own masks, and the last own token is found by hand."""
    model = RewardModel.from_base(model_folders("qwen2"), kind)
    mask = mask_of(ROWS, left=left)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        together = model(ROWS).tolist()
        hidden = model.trunk.base_model(
            pad(ROWS, 319, left=left), attention_mask=mask, position_ids=positions
        ).last_hidden_state
        ends = [-1 if left else len(row) - 1 for row in ROWS]
        padded = [float(model.read(hidden[i, end])) for i, end in enumerate(ends)]
    alone = [model.score([row], 100)[0] for row in ROWS]
    assert together == pytest.approx(alone, abs=1e-5)
    assert padded == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 4) for score in alone}) == 3


def test_saved_reward_model_scores_the_same(model_folders: Callable[[str], Path], tmp_path: Path) -> None:
    model = RewardModel.from_base(model_folders("llama"), "mlp")
    model.offset = 0.75
    model.save(tmp_path, model_folders("llama"))
    again = RewardModel.load(tmp_path)
    assert again.score(ROWS, 10) == model.score(ROWS, 10)
    model.offset = 0.0
    assert model.score(ROWS[:1], 10)[0] - again.score(ROWS[:1], 10)[0] == pytest.approx(0.75, abs=1e-6)


def test_folder_without_a_head_is_refused(model_folders: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="no reward head"):
        RewardModel.load(model_folders("qwen2"))


def _rows(pairs: list[int]) -> ComparisonRows:
    empty = Ragged(np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64))
    return ComparisonRows(empty, np.zeros(1), [np.zeros((n, 2), dtype=np.int64) for n in pairs], [], [])


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(1, 8), st.integers(1, 3))
def test_batches_keep_prompts_whole_and_take_each_once_an_epoch(pairs: list[int], size: int, epochs: int) -> None:
    batches = plan_batches(_rows(pairs), size, epochs, 0)
    taken = [prompt for batch in batches for prompt in batch]
    for epoch in range(epochs):
        assert sorted(taken[epoch * len(pairs) : (epoch + 1) * len(pairs)]) == list(range(len(pairs)))
    for batch in batches[:-1]:
        assert sum(pairs[p] for p in batch) >= size > sum(pairs[p] for p in batch[:-1])


def test_half_an_epoch_takes_half_the_prompts() -> None:
    assert sum(map(len, plan_batches(_rows([1] * 10), 3, 0.5, 0))) == 5


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(1, 200))
def test_groups_keep_prompts_whole_within_the_budget(sizes: list[int], budget: int) -> None:
    tokens = dict(enumerate(sizes))
    groups = prompt_groups(list(tokens), tokens, budget)
    assert sorted(p for group in groups for p in group) == list(tokens)
    for group in groups:
        assert len(group) == 1 or sum(tokens[p] for p in group) <= budget
