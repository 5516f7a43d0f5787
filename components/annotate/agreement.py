"""How far annotators agree: Krippendorff's alpha, and each annotator against the majority of the others.

    alpha = 1 - observed disagreement / disagreement expected by chance

after K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011). Written here because the library
`krippendorff` is GPL-3.0, which an Apache-2.0 project cannot depend on; it is the tests' reference where it is there.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

from components.annotate.results import Answer
from components.annotate.tasks import Task

Floats = npt.NDArray[np.float64]
Level = Literal["nominal", "ordinal", "interval"]
LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval")


def ratings(answers: Iterable[Answer], tasks: Mapping[str, Task]) -> tuple[Floats, list[str]]:
    """(scores, annotators): an array (annotators, units) of what `collect` kept, NaN where there is none. A unit is a
    response; they are sorted by prompt id and place in the prompt's responses."""
    cells = {
        (answer.annotator, (tasks[answer.task].prompt.id, index)): score
        for answer in answers
        for index, score in enumerate(tasks[answer.task].unshuffled(answer.scores))
    }
    annotators = sorted({annotator for annotator, _ in cells})
    units = sorted({unit for _, unit in cells})
    scores = np.array([[cells.get((annotator, unit), math.nan) for unit in units] for annotator in annotators])
    return scores.reshape(len(annotators), len(units)), annotators


def alpha(scores: Floats, level: Level) -> float:
    """Krippendorff's alpha of an array (annotators, units) with NaN for missing values.

    1 is perfect agreement, 0 what chance gives; NaN where it is undefined: no unit has two scores, or all scores that
    can be paired are the same. Krippendorff asks for 0.8, and for tentative conclusions 0.667.
    """
    scores = scores[:, np.sum(~np.isnan(scores), axis=0) >= 2]
    present = ~np.isnan(scores)
    values, codes = np.unique(scores[present], return_inverse=True)
    if len(values) < 2:
        return math.nan
    counts = np.zeros((scores.shape[1], len(values)))
    np.add.at(counts, (np.nonzero(present)[1], codes), 1)
    # Each unit's pairs count 1 / (its scores - 1), so that each score counts once (the paper's coincidence matrix).
    weights = 1 / (counts.sum(axis=1) - 1)
    coincidences = counts.T @ (counts * weights[:, None]) - np.diag((counts * weights[:, None]).sum(axis=0))
    totals = coincidences.sum(axis=1)
    distances = _distances(values, totals, level)
    expected = totals @ distances @ totals / (totals.sum() - 1)
    return float(1 - (coincidences * distances).sum() / expected)


def _distances(values: Floats, totals: Floats, level: Level) -> Floats:
    """Squared differences (values, values). On ordinal data a value's place is the mean rank of those that have it,
    which is the paper's sum over all ranks between two values."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    places = values if level == "interval" else np.cumsum(totals) - totals / 2
    return np.square(places[:, None] - places[None, :])


@dataclass(frozen=True)
class Share:
    """`hits` of `number`."""

    hits: int = 0
    number: int = 0

    @property
    def value(self) -> float:
        return self.hits / self.number if self.number else math.nan


def majority_agreement(answers: Iterable[Answer], tasks: Mapping[str, Task]) -> dict[str, Share]:
    """By annotator: of the pairs of responses that the annotator and a majority of the prompt's other annotators order
    at all, those that they order alike. Without its own vote a majority agrees with nobody by construction."""
    by_prompt: dict[str, dict[str, list[float]]] = {}
    for answer in answers:
        task = tasks[answer.task]
        by_prompt.setdefault(task.prompt.id, {})[answer.annotator] = task.unshuffled(answer.scores)
    hits, numbers = Counter[str](), Counter[str]()
    everybody = {annotator for judged in by_prompt.values() for annotator in judged}
    for judged in by_prompt.values():
        responses = len(next(iter(judged.values())))
        for first, second in combinations(range(responses), 2):
            votes = {who: _sign(scores[first] - scores[second]) for who, scores in judged.items()}
            total = sum(votes.values())
            for who, vote in votes.items():
                others = _sign(total - vote)
                numbers[who] += bool(vote and others)
                hits[who] += bool(vote and vote == others)
    return {who: Share(hits[who], numbers[who]) for who in sorted(everybody)}


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)
