"""The demo world's panel as annotators, for runs without people: each slot is one of them."""

import random
from collections.abc import Iterable, Mapping, Sequence

from components.annotate.results import Answer
from components.annotate.tasks import Plan, Task
from components.core.seeds import seed_for
from components.demo_world.annotators import PANEL

SOURCE = "demo_world"


def answers(tasks: Iterable[Task], true_scores: Mapping[str, Sequence[float]], plan: Plan) -> list[Answer]:
    """Marks of the panel, from 0 to 10, laid on the plan's scale. `true_scores` are in [0, 1], by prompt id and
    response, as components/demo_world/scorer.py gives them."""
    found = []
    for task in tasks:
        reader = PANEL[task.slot % len(PANEL)]
        rng = random.Random(seed_for(plan.seed, "demo annotator", task.id))
        marks = [reader.rate(true_scores[task.prompt.id][index], rng) for index in task.order]
        scores = tuple(1.0 + round((plan.highest - 1) * mark / 10) for mark in marks)
        name, place = f"{SOURCE}:{task.slot + 1}", f"task {task.id}"
        found.append(Answer(task=task.id, annotator=name, scores=scores, source=SOURCE, place=place))
    return found
