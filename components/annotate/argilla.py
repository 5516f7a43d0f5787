"""Tasks out to Argilla, and the answers of its server back in (checked with server and SDK 2.8).

Each data set is a folder for `rg.Dataset.from_disk`. The answers come from the server's own list of records, not from
the SDK's `to_disk`, `to_json` or `to_dict`: those leave the status of an answer out, so that one which was discarded
looks like one that was submitted (SDK 2.8, records/_resource.py: RecordResponses.to_dict).
"""

import html
import json
from collections.abc import Iterable, Iterator
from typing import Any

from components.annotate.results import Answer, rejected, scores_or_fault, timestamp
from components.annotate.tasks import Plan, Task, batches, displayable, displayed, score_names
from components.core.errors import UserError
from components.core.records import Rejected

SOURCE = "argilla"
_FAULTS = {"submitted": "", "discarded": "skipped"}


def files(tasks: Iterable[Task], plan: Plan) -> dict[str, str]:
    """By file name, for each data set: `.argilla/dataset.json`, `.argilla/settings.json` and `records.json`."""
    found = {}
    for name, batch in batches(tasks).items():
        contents = {
            ".argilla/dataset.json": {"name": name, "guidelines": plan.guideline, "allow_extra_metadata": False},
            ".argilla/settings.json": settings(len(batch[0].order), plan),
            "records.json": [_record(task) for task in batch],
        }
        for file, content in contents.items():
            found[f"{name}/{file}"] = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    return found


def settings(responses: int, plan: Plan) -> dict[str, Any]:
    """What `rg.Settings.from_json` reads: the conversation as a chat, and a rating question for each response."""
    places = range(1, responses + 1)
    fields = [{"name": f"response_{place}", "title": f"Response {place}", "type": "text"} for place in places]
    options = [{"value": score} for score in range(1, plan.highest + 1)]
    questions = [{"name": f"score_{place}", "title": f"Score of response {place}"} for place in places]
    return {
        "guidelines": plan.guideline,
        "fields": [
            {"name": field["name"], "title": field["title"], "required": True,
             "settings": {"type": field["type"], "use_markdown": False}, "type": field["type"]}
            for field in [{"name": "conversation", "title": "Conversation", "type": "chat"}, *fields]
        ],
        "questions": [
            {**question, "required": True, "settings": {"type": "rating", "options": options}, "type": "rating"}
            for question in questions
        ],
        "vectors": [],
        "metadata": [],
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "mapping": None,
    }  # fmt: skip


def _record(task: Task) -> dict[str, Any]:
    turns, texts = displayed(task, _escaped)
    return {"id": task.id, "fields": {"conversation": turns, **texts}}


def _escaped(text: str) -> str:
    """A field without Markdown is set as its element's innerHTML (argilla-frontend 2.8, TextField.vue, ChatField.vue),
    so that a tag in a response would run."""
    return html.escape(displayable(text), quote=False)


def answers(exported: str | bytes, tasks: Iterable[Task], plan: Plan) -> Iterator[Answer | Rejected]:
    """What `GET /api/v1/datasets/{id}/records?include=responses` says; drafts are rejected. Raises UserError where the
    file is no such answer."""
    known = {task.id: task for task in tasks}
    for record in _records(exported):
        task_id = str(record.get("external_id", ""))
        for response in record["responses"]:
            answer = _answer(record, response, task_id, known.get(task_id), plan)
            if response.get("status") not in _FAULTS:
                yield rejected(answer, "draft")
            else:
                yield answer if answer.annotator else rejected(answer, "no_annotator")


def _records(exported: str | bytes) -> list[dict[str, Any]]:
    try:
        page = json.loads(exported)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", fix="save the server's list of records; see the README") from None
    items = page.get("items") if isinstance(page, dict) else None
    if not isinstance(items, list) or not all(_is_record(item) for item in items):
        what = "not a list of records with their responses, as Argilla's server gives it"
        raise UserError(what, fix="get /api/v1/datasets/ID/records?include=responses; the SDK's files lack the status")
    return items


def _is_record(item: object) -> bool:
    responses = item.get("responses") if isinstance(item, dict) else None
    return isinstance(responses, list) and all(isinstance(response, dict) for response in responses)


def _answer(record: dict[str, Any], response: dict[str, Any], task_id: str, task: Task | None, plan: Plan) -> Answer:
    scores: tuple[float, ...] = ()
    fault = _FAULTS.get(str(response.get("status")), "draft")
    if task is not None and not fault:
        given = response.get("values")
        of = given.items() if isinstance(given, dict) else ()
        values = {name: one.get("value") for name, one in of if isinstance(one, dict)}
        scores, fault = scores_or_fault(values, score_names(task), plan.highest)
    user = response.get("user_id")
    return Answer(
        task=task_id,
        annotator="" if user is None else str(user),
        scores=scores,
        fault=fault,
        updated=timestamp(response.get("updated_at")),
        source=SOURCE,
        place=f"record {record.get('id')}, response {response.get('id')}",
    )
