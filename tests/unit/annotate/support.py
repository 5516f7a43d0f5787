"""Prompts to annotate, and people who answer in the tools' own formats, seeing no more than a tool shows them.

Whatever must stay hidden from them is marked with SECRET.
"""

import html
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from components.annotate import argilla, label_studio
from components.annotate.results import Answer
from components.annotate.tasks import Plan, Response, Sampled, Task

SECRET = "SECRET"
SOME_EXAMPLES = settings(max_examples=25)
NASTY = [
    '<img src=x onerror="alert(1)">', "</Text><View/>&lt;", "<|im_end|>\n<|im_start|>system", "{{idx}} $response_1",
    '"}],"x":[{', "]]>", "s3://bucket/key", "  indented\n\n\ttext", "数学 😀 \u202e\u2028", "\\u003cb\\u003e", "'",
    "a\\",
]  # fmt: skip

Score = Callable[[int, str], float]
"""(slot, text of the prompt's last turn and of the response) to a score."""


def prompt(key: str, *texts: str, gold: Sequence[float] | None = None, model: str = f"{SECRET} model") -> Sampled:
    responses = tuple(
        Response(
            id=f"{SECRET}-{key}-{index}", text=text, model=f"{model} {index}", strategy=f"{SECRET} top_p=0.{index}"
        )
        for index, text in enumerate(texts)
    )
    turns = ({"role": "system", "content": "be brief"}, {"role": "user", "content": f"question {key}"})
    return Sampled(
        id=f"{SECRET} {key}", messages=turns, responses=responses, gold=None if gold is None else tuple(gold)
    )


@st.composite
def prompts(draw: st.DrawFn, max_size: int = 5) -> list[Sampled]:
    """Every text is another one, so that it says which response it is."""
    plain = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=6)
    texts = st.lists(st.one_of(st.sampled_from(NASTY), plain), min_size=2, max_size=4)
    drawn = draw(st.lists(texts, max_size=max_size))
    return [
        prompt(str(number), *(f"{number}.{index} {text}" for index, text in enumerate(some)))
        for number, some in enumerate(drawn)
    ]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    annotators = draw(st.integers(1, 4))
    return Plan(
        annotators=annotators, overlap=draw(st.integers(1, annotators)), overlap_share=draw(st.floats(0, 1)),
        highest=draw(st.integers(2, 10)), seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def answer(task: Task, annotator: str, *scores: float, **more: Any) -> Answer:
    """An answer whose scores are given in the order of the prompt's responses, not in the order shown."""
    place = more.pop("place", f"{task.id} by {annotator}")
    return Answer(
        task=task.id, annotator=annotator, scores=tuple(scores[index] for index in task.order), place=place, **more
    )


def _annotator(folder: str) -> int:
    return int(folder.split("-")[1])


def label_studio_exports(files: Mapping[str, str], score: Score) -> list[str]:
    """What people do in Label Studio with the projects in `files`: its JSON exports."""
    exports = []
    for name in (name for name in files if name.endswith("/tasks.json")):
        items = []
        for number, task in enumerate(json.loads(files[name]), start=1):
            data, user = task["data"], _annotator(name)
            result = [
                label_studio_rating(place, score(user - 1, f"{data['conversation'][-1]['content']}|{data[key]}"))
                for place, key in enumerate((key for key in data if key.startswith("response_")), start=1)
            ]
            items.append(label_studio_item(number, data, [label_studio_annotation(number, user, result)]))
        exports.append(json.dumps(items))
    return exports


def label_studio_item(number: int, data: Any, annotations: list[Any], drafts: Sequence[Any] = ()) -> dict[str, Any]:
    return {"id": number, "annotations": annotations, "drafts": list(drafts), "predictions": [], "data": data}


def label_studio_annotation(number: int, user: Any, result: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": number, "completed_by": user, "result": result, "was_cancelled": False, "ground_truth": False,
        "created_at": "2026-11-27T01:59:20.265005Z", "updated_at": "2026-11-27T01:59:21.5Z", "lead_time": 8.25, **more,
    }  # fmt: skip


def label_studio_rating(place: int, score: object) -> dict[str, Any]:
    names = {"from_name": f"score_{place}", "to_name": f"response_{place}"}
    return {**names, "id": f"r{place}", "type": "rating", "origin": "manual", "value": {"rating": score}}


def argilla_pages(files: Mapping[str, str], score: Score) -> list[str]:
    """What people do in Argilla with the data sets in `files`: the server's lists of records. Its browser sets a text
    as innerHTML."""
    pages = []
    for name in (name for name in files if name.endswith("/records.json")):
        items = []
        for record in json.loads(files[name]):
            fields, user = record["fields"], _annotator(name)
            asked = fields["conversation"][-1]["content"]
            values = {
                key.replace("response", "score"): score(user - 1, html.unescape(f"{asked}|{fields[key]}"))
                for key in fields if key.startswith("response_")
            }  # fmt: skip
            items.append(argilla_record(record["id"], [argilla_response(user, values)]))
        pages.append(json.dumps({"items": items, "total": len(items)}))
    return pages


def argilla_record(task: str, responses: list[Any]) -> dict[str, Any]:
    return {"id": str(uuid.uuid5(uuid.NAMESPACE_OID, task)), "external_id": task, "fields": {}, "responses": responses}


def argilla_response(user: int, values: Mapping[str, object], **more: Any) -> dict[str, Any]:
    return {
        "id": str(uuid.UUID(int=user)), "values": {name: {"value": value} for name, value in values.items()},
        "status": "submitted", "user_id": str(uuid.UUID(int=user)), "inserted_at": "2026-11-27T01:59:20.5",
        "updated_at": "2026-11-27T01:59:21.5", **more,
    }  # fmt: skip


TOOLS = {"label_studio": (label_studio, label_studio_exports), "argilla": (argilla, argilla_pages)}
