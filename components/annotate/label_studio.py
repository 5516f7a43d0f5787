"""Tasks out to Label Studio, and its JSON export back in (checked with Label Studio 1.23 and its SDK 2.1).

A project holds tasks with equally many responses: a labeling config names every response, and the server refuses tasks
that lack one. Text is safe there as it is: the Text and Paragraphs tags show it as text, and JSON is all that it is in.
"""

import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

from components.annotate.results import Answer, rejected, scores_or_fault, timestamp
from components.annotate.tasks import Plan, Task, batches, displayable, displayed, score_names
from components.core.errors import UserError
from components.core.records import Rejected

SOURCE = "label_studio"
_SCORE = re.compile(r"score_[1-9][0-9]*")
# Line breaks. Paragraphs has no class of its own to name; without the second selector it runs lines together (1.23).
_STYLE = ".htx-text, [class*=phrase] { white-space: pre-wrap; }"


def files(tasks: Iterable[Task], plan: Plan) -> dict[str, str]:
    """By file name, for each project: `project.json`, which POST /api/projects takes, with the `config.xml` that can be
    pasted instead as labeling config, and `tasks.json` to import."""
    found = {}
    for name, batch in batches(tasks).items():
        found[f"{name}/config.xml"] = config(len(batch[0].order), plan)
        found[f"{name}/tasks.json"] = _json([{"data": _data(task)} for task in batch])
        found[f"{name}/project.json"] = _json(
            {
                "title": name,
                "label_config": found[f"{name}/config.xml"],
                "expert_instruction": html.escape(displayable(plan.guideline)),
                "show_instruction": True,
            }
        )
    return found


def config(responses: int, plan: Plan) -> str:
    """The labeling config: the conversation, and a Rating for each response.

    The guideline is no part of it: a dollar sign in a config begins the name of a task's field.
    """
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Style").text = _STYLE
    ElementTree.SubElement(
        view, "Paragraphs", name="conversation", value="$conversation", layout="dialogue", nameKey="role",
        textKey="content",
    )  # fmt: skip
    for place in range(1, responses + 1):
        name = f"response_{place}"
        ElementTree.SubElement(view, "Header", value=f"Response {place}")
        ElementTree.SubElement(
            view, "Text", name=name, value=f"${name}", valueType="text", saveTextResult="no", selectionEnabled="false"
        )
        ElementTree.SubElement(
            view, "Rating", name=f"score_{place}", toName=name, maxRating=str(plan.highest), required="true",
            requiredMessage=f"Score response {place}",
        )  # fmt: skip
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _data(task: Task) -> dict[str, Any]:
    turns, texts = displayed(task)
    return {"task": task.id, "conversation": turns, **texts}


def answers(exported: str | bytes, tasks: Iterable[Task], plan: Plan) -> Iterator[Answer | Rejected]:
    """What a project's JSON export says; drafts are rejected. Raises UserError where the file is no such export."""
    known = {task.id: task for task in tasks}
    for item in _items(exported):
        data = item.get("data")
        task_id = str(data.get("task", "")) if isinstance(data, dict) else ""
        for draft in item.get("drafts") or []:
            # Some exports give no more of a draft than its id.
            place = f"task {item.get('id')}, draft {draft.get('id') if isinstance(draft, dict) else draft}"
            yield rejected(Answer(task=task_id, annotator="", source=SOURCE, place=place), "draft")
        for annotation in item["annotations"]:
            answer = _answer(annotation, task_id, known.get(task_id), plan)
            place = f"task {item.get('id')}, annotation {annotation.get('id')}"
            answer = replace(answer, source=SOURCE, place=place)
            yield answer if answer.annotator else rejected(answer, "no_annotator")


def _items(exported: str | bytes) -> list[dict[str, Any]]:
    try:
        items = json.loads(exported)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", fix="export the project from Label Studio as JSON") from None
    # JSON-MIN, which leaves skipped tasks out, has no annotations; a snapshot can hold no more than their ids.
    if not isinstance(items, list) or not all(isinstance(item, dict) and _has_annotations(item) for item in items):
        what = "not an export in Label Studio's JSON format with whole annotations"
        raise UserError(what, fix="export as JSON, not as JSON-MIN or CSV")
    return items


def _has_annotations(item: dict[str, Any]) -> bool:
    annotations = item.get("annotations")
    return isinstance(annotations, list) and all(isinstance(one, dict) for one in annotations)


def _answer(annotation: dict[str, Any], task_id: str, task: Task | None, plan: Plan) -> Answer:
    scores: tuple[float, ...] = ()
    fault = "skipped" if annotation.get("was_cancelled") else ""
    if task is not None and not fault:
        values, fault = _ratings(annotation.get("result"))
        if not fault:
            scores, fault = scores_or_fault(values, score_names(task), plan.highest)
    # Some versions and endpoints give the whole user, of whom no more than the id is kept.
    user = annotation.get("completed_by")
    user = user.get("id") if isinstance(user, dict) else user
    seconds = annotation.get("lead_time")
    return Answer(
        task=task_id,
        annotator="" if user is None else str(user),
        scores=scores,
        fault=fault,
        updated=timestamp(annotation.get("updated_at") or annotation.get("created_at")),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
    )


def _ratings(result: object) -> tuple[dict[str, object], str]:
    """({question: score}, "") or ({}, why not). Answers to questions that a team added are left alone."""
    found: dict[str, object] = {}
    for region in result if isinstance(result, list) else ():
        name = region.get("from_name") if isinstance(region, dict) else None
        if not isinstance(name, str) or not _SCORE.fullmatch(name):
            continue
        if name in found:
            return {}, "scored_twice"
        value = region.get("value")
        found[name] = value.get("rating") if isinstance(value, dict) else None
    return found, ""
