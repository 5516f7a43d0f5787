"""What an import is worth, as figures: counts, agreement, spam, cost. No time of day, so that the same is the same."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from components.annotate.agreement import LEVELS, Share, alpha, majority_agreement, ratings
from components.annotate.results import Answer, Results
from components.annotate.spam import Report
from components.annotate.tasks import Task


def figures(results: Results, tasks: Mapping[str, Task], spam: Mapping[str, Report]) -> dict[str, Any]:
    """All but what a judge alone has. Numbers that do not exist are null."""
    scores, _ = ratings(results.answers, tasks)
    found = {
        "counts": results.counts,
        "alpha": {level: alpha(scores, level) if scores.size else math.nan for level in LEVELS},
        "annotators": _annotators(results.answers, tasks, spam),
        "cost": {"answers": len(results.answers), "seconds": _seconds(results.answers)},
    }
    cleaned: dict[str, Any] = _finite(found)
    return cleaned


def _annotators(
    answers: Sequence[Answer], tasks: Mapping[str, Task], spam: Mapping[str, Report]
) -> dict[str, dict[str, Any]]:
    """Each one's signs of spam, those who were left out for them too, and agreement with the majority of the others."""
    agreement = majority_agreement(answers, tasks)
    counted = {answer.annotator for answer in answers}
    return {
        name: {
            **{key: _share(value) for key, value in asdict(report).items() if key != "annotator"},
            "majority": _share(asdict(agreement.get(name, Share()))),
            "counted": name in counted,
        }
        for name, report in spam.items()
    }


def _share(value: Any) -> Any:
    """A share as {hits, number, value}."""
    if isinstance(value, dict) and value.keys() == {"hits", "number"}:
        return {**value, "value": Share(**value).value}
    return value


def _seconds(answers: Sequence[Answer]) -> float | None:
    """Time of the answers whose tool measures one; None where none does."""
    known = [answer.seconds for answer in answers if answer.seconds is not None]
    return math.fsum(known) if known else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
