"""People who read the true score, each in their own way: paid annotators, and forum readers who vote."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Annotator:
    """One person: how lenient, how unsteady, and how often not looking at all."""

    leniency: float
    unsteadiness: float
    carelessness: float

    def rate(self, true_score: float, rng: random.Random) -> int:
        """A mark from 0 to 10."""
        if rng.random() < self.carelessness:
            return rng.randint(0, 10)
        return round(10 * min(1.0, max(0.0, true_score + self.leniency + rng.gauss(0, self.unsteadiness))))


PANEL = (
    Annotator(leniency=0.0, unsteadiness=0.06, carelessness=0.01),
    Annotator(leniency=0.1, unsteadiness=0.10, carelessness=0.03),
    Annotator(leniency=-0.1, unsteadiness=0.12, carelessness=0.05),
)
READERS = 8


def panel_scores(true_scores: list[float], rng: random.Random) -> list[float]:
    """The mean mark of the panel, one for each answer: the labels of the reward model."""
    return [round(sum(one.rate(true, rng) for one in PANEL) / len(PANEL), 3) for true in true_scores]


def votes(true_scores: list[float], rng: random.Random) -> list[float]:
    """Upvotes among a handful of passing readers, one count for each answer: the labels of PMP."""
    return [float(sum(rng.random() < 0.1 + 0.8 * true for _ in range(READERS))) for true in true_scores]
