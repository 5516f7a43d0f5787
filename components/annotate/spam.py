"""Signs that an annotator does not look: too fast, always the same score, against the known answers, by position.

They are reasons to look at somebody's work, not verdicts; whoever is found out is left out by `collect(excluded=...)`.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from components.annotate.agreement import Share
from components.annotate.results import Answer
from components.annotate.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What is too much. All are defaults of ours, with the numbers that they were set by."""

    words_per_second: float = 12.0
    """Median speed above which a task cannot have been read: three times the silent reading of an adult, 238 words a
    minute (Brysbaert 2019)."""
    equal_share: float = 0.8
    """Share of tasks whose responses all get one score. Ties are verdicts too, and some prompts have few others."""
    gold_agreement: float = 0.7
    """Least share of the gold pairs in the known order. Two of InstructGPT's labellers agreed in 73 % of comparisons,
    and gold pairs are to be clearer than those."""
    position_p: float = 0.001
    """Two-sided probability below which the preference for the first or the last place is no accident: one honest
    annotator in a thousand."""
    least: int = 5
    """Tasks, and gold pairs, without which nothing is said of speed and ties, and of gold."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured of an annotator. `flags` name the checks that failed; NaN where nothing could be measured."""

    annotator: str
    tasks: int
    words_per_second: float
    equal: Share
    gold: Share
    first_place: Share
    position_p: float
    flags: list[str] = field(default_factory=list)


def check(
    answers: Iterable[Answer], tasks: Mapping[str, Task], thresholds: Thresholds = Thresholds()
) -> dict[str, Report]:
    """A report of each annotator on the answers that `collect` kept."""
    of: dict[str, list[Answer]] = {}
    for answer in answers:
        of.setdefault(answer.annotator, []).append(answer)
    return {annotator: _report(annotator, of[annotator], tasks, thresholds) for annotator in sorted(of)}


def _report(annotator: str, answers: Sequence[Answer], tasks: Mapping[str, Task], limits: Thresholds) -> Report:
    speeds = [speed for answer in answers if (speed := _speed(answer, tasks[answer.task])) is not None]
    speed = statistics.median(speeds) if speeds else math.nan
    equal = Share(sum(len(set(answer.scores)) == 1 for answer in answers), len(answers))
    gold = _gold(answers, tasks)
    first = [answer.scores[0] - answer.scores[-1] for answer in answers]
    first_place = Share(sum(gap > 0 for gap in first), sum(gap != 0 for gap in first))
    p = binomial_p(first_place.hits, first_place.number)
    flags = {
        "too_fast": len(speeds) >= limits.least and speed > limits.words_per_second,
        "constant": equal.number >= limits.least and equal.value > limits.equal_share,
        "gold": gold.number >= limits.least and gold.value < limits.gold_agreement,
        "position": p < limits.position_p,
    }
    return Report(
        annotator=annotator, tasks=len(answers), words_per_second=speed, equal=equal, gold=gold,
        first_place=first_place, position_p=p, flags=[name for name, raised in flags.items() if raised],
    )  # fmt: skip


# A Chinese character is a word, as in data_prep's n-grams.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def _speed(answer: Answer, task: Task) -> float | None:
    """Words per second; None where the tool measured no time."""
    if answer.seconds is None:
        return None
    texts = [*(turn["content"] for turn in task.prompt.messages), *task.shown()]
    words = sum(len(_WORD.findall(text)) for text in texts)
    return words / answer.seconds if answer.seconds > 0 else math.inf


def _gold(answers: Iterable[Answer], tasks: Mapping[str, Task]) -> Share:
    """Of the pairs with different known scores, those that the annotator orders that way; a tie is a miss."""
    hits = number = 0
    for answer in answers:
        task = tasks[answer.task]
        scores, gold = task.unshuffled(answer.scores), task.prompt.gold
        for first, second in combinations(range(len(scores)), 2):
            if gold is not None and gold[first] != gold[second]:
                number += 1
                hits += (scores[first] - scores[second]) * (gold[first] - gold[second]) > 0
    return Share(hits, number)


def binomial_p(hits: int, number: int) -> float:
    """Probability of a result at least as far from the middle under a fair coin, two-sided and exact; 1 for none.

    As places are shuffled, whoever looks at texts alone prefers the first shown to the last shown in half of the tasks,
    whatever the number of responses; ties are left out, as in a sign test.
    """
    tail, term = 0, 1
    for successes in range(min(hits, number - hits) + 1):
        tail += term
        term = term * (number - successes) // (successes + 1)
    return min(1.0, 2 * tail / 2**number)
