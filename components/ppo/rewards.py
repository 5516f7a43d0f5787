"""From reward-model scores to token rewards: running normalisation, truncation, KL penalty."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from components.core.config import KLController, PPOConfig


@dataclass
class RunningMoments:
    """Mean and variance of all raw scores so far, updated by rollout (Chan et al. 1979). Goes into checkpoints."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def update(self, scores: list[float]) -> None:
        """Merge the scores of one rollout, of all ranks together."""
        if not scores:
            return
        number = len(scores)
        mean = math.fsum(scores) / number
        squares = math.fsum((score - mean) ** 2 for score in scores)
        total = self.count + number
        delta = mean - self.mean
        self.squares += squares + delta**2 * self.count * number / total
        self.mean += delta * number / total
        self.count = total

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count > 1 else 1.0

    def normalise(self, score: float, kind: Literal["mean", "mean_std", "none"]) -> float:
        """Score minus the running mean (the report's words, §3.2.2), divided by the deviation with mean_std."""
        if kind == "none":
            return score
        return (score - self.mean) / (max(self.std, 1e-8) if kind == "mean_std" else 1.0)


def final_score(raw: float, truncated: bool, moments: RunningMoments, config: PPOConfig) -> float:
    """The score that the last token gets: normalised, clipped, and lowered where the response never ended."""
    if truncated and config.truncation == "replace":
        return config.truncation_score
    score = moments.normalise(raw, config.reward_normalisation)
    score = max(-config.reward_clip, min(config.reward_clip, score))
    return score + config.truncation_score if truncated and config.truncation == "subtract" else score


def token_rewards(
    log_probs: torch.Tensor,
    reference: torch.Tensor,
    score: float,
    coefficient: float,
    reduction: Literal["sum", "mean"],
) -> torch.Tensor:
    """(time,) rewards of one response: -coefficient (log pi_old - log pi_ref) on each token, the score on the last one.

    With "mean" the KL part is divided by the response's length, as ChatLearn does, so that the coefficient is for the
    whole response and not for each token (recipe.md §4.3).
    """
    penalty = coefficient * (log_probs - reference)
    if reduction == "mean":
        penalty = penalty / max(len(penalty), 1)
    rewards = -penalty
    rewards[-1] += score
    return rewards


@dataclass
class KLCoefficient:
    """The KL coefficient in force: fixed, or following a target (Ziegler et al. 2019, §2.2). Goes into checkpoints."""

    value: float

    def update(self, kl: float, responses: int, settings: KLController) -> None:
        """After each rollout: `kl` in nats a response, mean over its `responses`."""
        if settings.kind == "adaptive":
            error = max(-0.2, min(0.2, kl / settings.target - 1))
            self.value *= 1 + error * responses / settings.horizon
