"""Every prompt counts once in a step's loss, however many pairs it has and however it is cut into micro-batches."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from components.core.config import RewardConfig
from components.reward_model.train import _accumulate
from components.training.data import ComparisonRows, Ragged

# Three prompts: scores 3, 2, 1 in the right order; 0 and 1 in the wrong one; 2 and 0.
SCORES = [3, 2, 1, 0, 1, 2, 0]
DATA = ComparisonRows(
    responses=Ragged(np.array(SCORES, np.int32), np.arange(8)),
    first=np.array([0, 3, 5, 7]),
    pairs=[np.array([[0, 1], [0, 2], [1, 2]]), np.array([[0, 1]]), np.array([[0, 1]])],
    gaps=[np.array([0.5, 1, 0.5], np.float32), np.array([0.1], np.float32), np.array([2], np.float32)],
    ids=["a", "b", "c"],
)


class OnPaper:
    """An engine whose model scores a response with its only token. Remembers the groups it was given."""

    def __init__(self) -> None:
        self.runtime = SimpleNamespace(device=torch.device("cpu"))
        self.groups: list[list[int]] = []

    def __call__(self, score: Any, rows: list[np.ndarray]) -> torch.Tensor:
        return torch.tensor([float(row[0]) for row in rows])

    def accumulate(
        self, groups: list[list[int]], spare: list[int], loss: Callable[[list[int]], Any], figures: int
    ) -> list[float]:
        self.groups = groups
        found = [loss(group)[1] for group in groups]
        return [sum(float(values[i]) for values in found) for i in range(figures)]


def nll(gap: float) -> float:
    return math.log(1 + math.exp(-gap))


@pytest.mark.parametrize("budget", [1, 3, 5, 100])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_loss_is_the_mean_over_prompts_of_the_mean_over_pairs(budget: int, world: int) -> None:
    config = RewardConfig().model_copy(update={"micro_batch_tokens": budget})  # fewer than a real run may have
    sums = []
    for rank in range(world):
        engine = OnPaper()
        sums.append(_accumulate(engine, DATA, [0, 1, 2], config, SimpleNamespace(rank=rank, world=world)))  # type: ignore[arg-type]
        assert all(sum(prompt in group for group in engine.groups) <= 1 for prompt in range(3))
    expected = ((2 * nll(1) + nll(2)) / 3 + nll(-1) + nll(2)) / 3
    assert sum(one.loss for one in sums) == pytest.approx(expected)
    assert sum(one.accuracy for one in sums) == pytest.approx(4 / 5)
    assert {one.pairs for one in sums} == {5}
