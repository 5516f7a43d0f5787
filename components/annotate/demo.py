"""The demo world's panel as annotators, for runs without people: each slot is one of them."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from components.annotate.results import Answer
from components.annotate.tasks import Plan, Task, batches, score_names
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


def exported(given: Iterable[Answer], tasks: Iterable[Task], tool: str) -> dict[str, str]:
    """The answers as people would have given them in the tool: its exports, a file a project."""
    of = {answer.task: answer for answer in given}
    write = {"label_studio": _label_studio, "argilla": _argilla}[tool]
    return {
        f"{name}.json": json.dumps(write([(task, of[task.id]) for task in batch]), indent=1) + "\n"
        for name, batch in batches(tasks).items()
    }


def _label_studio(answered: Sequence[tuple[Task, Answer]]) -> list[dict[str, Any]]:
    """As Label Studio's export in JSON, as far as an import reads it."""
    return [
        {
            "id": number,
            "data": {"task": task.id},
            "annotations": [
                {
                    "id": number,
                    "completed_by": answer.annotator,
                    "result": [
                        {"from_name": name, "type": "rating", "value": {"rating": int(score)}}
                        for name, score in zip(score_names(task), answer.scores, strict=True)
                    ],
                }
            ],
        }
        for number, (task, answer) in enumerate(answered, start=1)
    ]


def _argilla(answered: Sequence[tuple[Task, Answer]]) -> dict[str, Any]:
    """As Argilla's list of records, as far as an import reads it."""
    items = [
        {
            "id": task.id,
            "external_id": task.id,
            "responses": [
                {
                    "id": task.id,
                    "user_id": answer.annotator,
                    "status": "submitted",
                    "values": {
                        name: {"value": int(score)}
                        for name, score in zip(score_names(task), answer.scores, strict=True)
                    },
                }
            ],
        }
        for task, answer in answered
    ]
    return {"items": items, "total": len(items)}
