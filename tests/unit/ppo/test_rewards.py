import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.core.config import KLController, PPOConfig
from components.ppo.rewards import KLCoefficient, RunningMoments, final_score, token_rewards


def test_kl_reward_by_hand() -> None:
    """-0.5 (log pi - log ref) on each token; the score 2 on the last one alone."""
    policy, reference = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.0, -0.5])
    assert token_rewards(policy, reference, 2.0, 0.5, "sum").tolist() == pytest.approx([-0.25, 0.5, 2.0])
    assert token_rewards(policy, reference, 2.0, 0.5, "mean").tolist() == pytest.approx([-0.25 / 3, 0.5 / 3, 2.0])


def test_equal_policies_leave_the_score_alone() -> None:
    log_probs = torch.tensor([-1.0, -3.0])
    assert token_rewards(log_probs, log_probs, -0.7, 0.04, "sum").tolist() == pytest.approx([0.0, -0.7])


SCORES = st.lists(st.lists(st.floats(-100, 100), max_size=8), min_size=1, max_size=6)


@given(SCORES)
def test_moments_are_those_of_all_scores_however_they_came(rollouts: list[list[float]]) -> None:
    moments = RunningMoments()
    for scores in rollouts:
        moments.update(scores)
    everything = [score for scores in rollouts for score in scores]
    assert moments.count == len(everything)
    if everything:
        assert moments.mean == pytest.approx(statistics.fmean(everything), abs=1e-9)
    if len(everything) > 1:
        assert moments.std == pytest.approx(statistics.pstdev(everything), abs=1e-6)


def test_running_mean_is_subtracted_and_deviation_divides_only_when_asked() -> None:
    moments = RunningMoments()
    moments.update([1.0, 3.0])
    moments.update([5.0, 7.0])
    assert moments.normalise(6.0, "mean") == pytest.approx(2.0)
    assert moments.normalise(6.0, "mean_std") == pytest.approx(2.0 / 5**0.5)
    assert moments.normalise(6.0, "none") == 6.0


def test_moments_survive_a_checkpoint() -> None:
    moments = RunningMoments()
    moments.update([1.0, 4.0, 2.5])
    again = RunningMoments(moments.count, moments.mean, moments.squares)
    for each in (moments, again):
        each.update([0.25])
    assert again == moments


@pytest.mark.parametrize(("kind", "expected"), [("replace", -1.0), ("subtract", 1.0), ("none", 2.0)])
def test_truncated_responses_are_penalised(kind: str, expected: float) -> None:
    config = PPOConfig(truncation=kind)
    assert final_score(2.0, True, RunningMoments(), config) == expected
    assert final_score(2.0, False, RunningMoments(), config) == 2.0


def test_score_is_clipped_after_normalisation() -> None:
    config = PPOConfig(reward_clip=1.5)
    moments = RunningMoments(count=2, mean=100.0, squares=2.0)
    assert final_score(101.0, False, moments, config) == 1.0
    assert final_score(200.0, False, moments, config) == 1.5
    assert final_score(0.0, False, moments, config) == -1.5


def test_fixed_coefficient_stays_and_adaptive_one_follows_its_target() -> None:
    fixed, adaptive = KLCoefficient(0.04), KLCoefficient(0.04)
    fixed.update(50.0, 64, KLController())
    adaptive.update(6.6, 100, KLController(kind="adaptive", target=6.0, horizon=1000))
    assert fixed.value == 0.04
    assert adaptive.value == pytest.approx(0.04 * (1 + 0.1 * 100 / 1000))
    adaptive.update(1000.0, 100, KLController(kind="adaptive", target=6.0, horizon=1000))
    assert adaptive.value == pytest.approx(0.04 * 1.01 * 1.02)
