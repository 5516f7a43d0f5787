"""Label Studio's formats: what its own SDK says of an export, what a real server exported, and broken files."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from components.annotate.label_studio import answers, config, files
from components.annotate.results import Answer, collect
from components.annotate.tasks import Plan, Task, make_tasks
from components.core.errors import UserError
from components.core.records import Rejected
from tests.unit.annotate.support import (
    NASTY,
    label_studio_annotation,
    label_studio_item,
    label_studio_rating,
    prompt,
)

PLAN = Plan(annotators=1, overlap=1)
TASKS, _ = make_tasks([prompt("a", "x", "y")], PLAN)
(TASK,) = TASKS


def read(annotation: Any, task: str = TASK.id, drafts: Any = ()) -> list[Answer | Rejected]:
    exported = json.dumps([label_studio_item(1, {"task": task}, [annotation], drafts)])
    return list(answers(exported, TASKS, PLAN))


def result(*scores: object) -> list[Any]:
    return [label_studio_rating(place, score) for place, score in enumerate(scores, start=1)]


def test_a_config_asks_for_a_rating_of_every_response() -> None:
    view = ElementTree.fromstring(config(3, Plan(highest=5)))
    rated = [
        (tag.get("name"), tag.get("toName"), tag.get("maxRating"), tag.get("required")) for tag in view.iter("Rating")
    ]
    assert rated == [(f"score_{place}", f"response_{place}", "5", "true") for place in (1, 2, 3)]
    assert [(tag.get("value"), tag.get("valueType")) for tag in view.iter("Text")] == [
        (f"$response_{place}", "text") for place in (1, 2, 3)
    ]


def test_a_project_has_the_config_and_the_guideline_as_text() -> None:
    found = files(TASKS, Plan(annotators=1, overlap=1, guideline='<b>"$conversation"'))
    project = json.loads(found["annotator-1-responses-2/project.json"])
    assert project["label_config"] == found["annotator-1-responses-2/config.xml"] == config(2, PLAN)
    assert project["expert_instruction"] == "&lt;b&gt;&quot;$conversation&quot;" and project["show_instruction"]


def test_text_stays_in_its_field() -> None:
    tasks, _ = make_tasks([prompt("a", *NASTY, "\x00", "\ud800")], PLAN)
    found = files(tasks, PLAN)
    name = f"annotator-1-responses-{len(NASTY) + 2}"
    ((data,),) = (item.values() for item in json.loads(found[f"{name}/tasks.json"].encode()))
    shown = [data[f"response_{place}"] for place in range(1, len(NASTY) + 3)]
    assert shown == [text.replace("\x00", "\ufffd").replace("\ud800", "\ufffd") for text in tasks[0].shown()]
    assert data.keys() == {"task", "conversation", *(f"response_{place}" for place in range(1, len(NASTY) + 3))}


def test_scores_are_read_by_name_whatever_their_order_and_company() -> None:
    remark = {"from_name": "remark", "to_name": "response_1", "type": "textarea", "value": {"text": ["good"]}}
    annotation = label_studio_annotation(9, {"id": 4, "email": "who@example.org"}, [*reversed(result(2, 7)), remark])
    (one,) = read(annotation)
    assert one == Answer(
        task=TASK.id, annotator="4", scores=(2.0, 7.0), updated=1795744761.5, seconds=8.25, source="label_studio",
        place="task 1, annotation 9",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("annotation", "fault"),
    [
        (label_studio_annotation(1, 1, [], was_cancelled=True), "skipped"),
        (label_studio_annotation(1, 1, result(2, 7), was_cancelled=True), "skipped"),
        (label_studio_annotation(1, 1, result(2)), "incomplete"),
        (label_studio_annotation(1, 1, result(2, None)), "incomplete"),
        (label_studio_annotation(1, 1, None), "incomplete"),
        (label_studio_annotation(1, 1, ["?", {"from_name": ["score_1"]}]), "incomplete"),
        (label_studio_annotation(1, 1, result(2, 8)), "bad_score"),
        (label_studio_annotation(1, 1, result(2, "7")), "bad_score"),
        (label_studio_annotation(1, 1, [*result(2, 7), *result(3)]), "scored_twice"),
    ],
)
def test_an_annotation_without_scores_says_why(annotation: Any, fault: str) -> None:
    assert [row.rule for row in collect(TASKS, read(annotation)).rejected] == [fault]


def test_strangers_and_drafts_are_rejected() -> None:
    assert [row.rule for row in collect(TASKS, read(label_studio_annotation(1, None, result(1, 2)))).rejected] == [
        "no_annotator"
    ]
    unknown = read(label_studio_annotation(1, 1, result(1, 2)), task="0123456789abcdef")
    assert [row.rule for row in collect(TASKS, unknown).rejected] == ["unknown_task"]
    drafts = [{"id": 5, "user": "who@example.org", "result": result(1, 1)}, 6]
    results = collect(TASKS, read(label_studio_annotation(1, 1, result(1, 2)), drafts=drafts))
    assert [(row.rule, row.place) for row in results.rejected] == [
        ("draft", "task 1, draft 5"),
        ("draft", "task 1, draft 6"),
    ]
    assert len(results.answers) == 1


@pytest.mark.parametrize(
    "exported",
    [
        "", "{", b"\xff", "{}", "[1]", "id,task\n1,a",
        '[{"id": 1, "task": "a", "score_1": [{"rating": 4}], "annotator": 1}]',  # JSON-MIN
        '[{"id": 1, "annotations": [7]}]', "[" * 100_000,
    ],
)  # fmt: skip
def test_another_file_is_refused_with_what_to_do(exported: str | bytes) -> None:
    with pytest.raises(UserError, match="as JSON"):
        list(answers(exported, TASKS, PLAN))


# Exported by a Label Studio 1.23.2 server with two users, to whom it had shown these tasks.
RECORDED = Path(__file__).parent / "recorded" / "label_studio.json"
RECORDED_PLAN = Plan(annotators=2, overlap=2, overlap_share=1.0, seed=3)
SHOWN = ['<img src=x onerror="alert(1)">', "plain", "", "<|im_end|> & </Text>"]


def recorded_tasks() -> list[Task]:
    some = [prompt(str(number), SHOWN[number], SHOWN[number + 1]) for number in range(3)]
    return make_tasks(some, RECORDED_PLAN)[0]


def test_what_a_real_server_exported_is_read() -> None:
    tasks = recorded_tasks()
    exports = json.loads(RECORDED.read_text())
    given = [answer for export in exports for answer in answers(json.dumps(export), tasks, RECORDED_PLAN)]
    results = collect(tasks, given)
    assert results.counts == {
        "draft": 2, "incomplete": 1, "skipped": 1, "superseded": 2, "rows": 3, "answers": 4, "unanswered": 2,
    }  # fmt: skip
    assert {answer.annotator: sorted(a.scores for a in results.answers if a.annotator == answer.annotator)
            for answer in results.answers} == {"1": [(3, 5), (4, 5), (6, 1)], "2": [(6, 1)]}  # fmt: skip
    assert sorted(answer.seconds or 0 for answer in results.answers) == [9.25, 10.25, 11, 11]
    data = [item["data"] for export in exports for item in export]
    assert sorted(data, key=str) == sorted(
        (item["data"] for name, text in files(tasks, RECORDED_PLAN).items() if name.endswith("tasks.json")
         for item in json.loads(text)), key=str,
    )  # fmt: skip


def test_the_sdk_takes_config_tasks_and_scores() -> None:
    reason = "label-studio-sdk, which the project does not need, is not installed"
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason=reason).LabelInterface
    tasks, _ = make_tasks([prompt("a", *NASTY)], PLAN)
    number = len(NASTY)
    label = interface(config(number, PLAN))
    label.validate()
    assert {name: [str(one) for one in tag.to_name] for name, tag in label._controls.items()} == {
        f"score_{place}": [f"response_{place}"] for place in range(1, number + 1)
    }
    for task in json.loads(files(tasks, PLAN)[f"annotator-1-responses-{number}/tasks.json"]):
        assert label.validate_task(task)
        del task["data"]["conversation"]
        assert not label.validate_task(task)
    assert label.validate_annotation({"result": result(*([7] * number))})
    assert not label.validate_annotation({"result": result(8)})
