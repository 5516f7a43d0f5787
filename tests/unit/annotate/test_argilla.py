"""Argilla's formats: what its own SDK says of an export, what a real server answered, and broken files."""

import html
import importlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.annotate.argilla import answers, files, settings
from components.annotate.results import Answer, collect
from components.annotate.tasks import Plan, make_tasks
from components.core.errors import UserError
from components.core.records import Rejected
from tests.unit.annotate.support import NASTY, argilla_record, argilla_response, prompt
from tests.unit.annotate.test_label_studio import RECORDED_PLAN, recorded_tasks

PLAN = Plan(annotators=1, overlap=1)
TASKS, _ = make_tasks([prompt("a", "x", "y")], PLAN)
(TASK,) = TASKS
USER = "00000000-0000-0000-0000-000000000001"


def read(*responses: Any, task: str = TASK.id) -> list[Answer | Rejected]:
    return list(answers(json.dumps({"items": [argilla_record(task, list(responses))], "total": 1}), TASKS, PLAN))


def scores(*values: object) -> dict[str, object]:
    return {f"score_{place}": value for place, value in enumerate(values, start=1)}


def test_settings_ask_for_a_rating_of_every_response() -> None:
    asked = settings(3, Plan(highest=5, guideline="# how"))
    assert asked["guidelines"] == "# how"
    assert [question["name"] for question in asked["questions"]] == ["score_1", "score_2", "score_3"]
    assert all(question["required"] for question in asked["questions"])
    assert asked["questions"][2]["settings"] == {
        "type": "rating",
        "options": [{"value": score} for score in range(1, 6)],
    }
    assert [field["name"] for field in asked["fields"]] == ["conversation", "response_1", "response_2", "response_3"]
    assert not any(field["settings"]["use_markdown"] for field in asked["fields"])


def test_no_tag_of_a_text_reaches_the_browser() -> None:
    tasks, _ = make_tasks([prompt("<u>", *NASTY, "")], PLAN)
    ((name, text),) = ((name, text) for name, text in files(tasks, PLAN).items() if name.endswith("records.json"))
    (record,) = json.loads(text.encode())
    fields = record["fields"]
    assert name == f"annotator-1-responses-{len(NASTY) + 1}/records.json" and record["id"] == tasks[0].id
    assert "<" not in text and ">" not in text
    shown = [html.unescape(fields[f"response_{place}"]) for place in range(1, len(NASTY) + 2)]
    assert shown == [response or "(empty)" for response in tasks[0].shown()]
    assert html.unescape(fields["conversation"][-1]["content"]) == "question <u>"


def test_scores_are_read() -> None:
    (one,) = read(argilla_response(1, scores(2, 7)))
    assert one == Answer(
        task=TASK.id, annotator=USER, scores=(2.0, 7.0), updated=1795744761.5, source="argilla",
        place=f"record {argilla_record(TASK.id, [])['id']}, response {USER}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("response", "rule"),
    [
        (argilla_response(1, {}, status="discarded"), "skipped"),
        (argilla_response(1, scores(2, 7), status="discarded"), "skipped"),
        (argilla_response(1, scores(2, 7), status="draft"), "draft"),
        (argilla_response(1, scores(2, 7), status=None), "draft"),
        (argilla_response(1, scores(2)), "incomplete"),
        ({**argilla_response(1, {}), "values": None}, "incomplete"),
        ({**argilla_response(1, {}), "values": {"score_1": 3, "score_2": [4]}}, "incomplete"),
        (argilla_response(1, scores(2, 8)), "bad_score"),
        (argilla_response(1, scores(2, "7")), "bad_score"),
        (argilla_response(1, scores(2, 7), user_id=None), "no_annotator"),
    ],
)
def test_a_response_without_scores_says_why(response: Any, rule: str) -> None:
    results = collect(TASKS, read(response))
    assert [row.rule for row in results.rejected] == [rule] and not results.answers


def test_an_unknown_record_is_rejected() -> None:
    results = collect(TASKS, read(argilla_response(1, scores(2, 7)), task="0123456789abcdef"))
    assert [row.rule for row in results.rejected] == ["unknown_task"]


@pytest.mark.parametrize(
    "exported",
    [
        "", b"\xff", "[]", "{}", '{"items": [1]}', '{"items": [{"id": 1}]}', '{"items": [{"responses": [1]}]}',
        # SDK 2.8's records.json, in which a discarded answer looks like any other.
        '[{"id": "a", "responses": {"score_1": [{"value": 3, "user_id": "u"}]}, "status": "pending"}]',
    ],
)  # fmt: skip
def test_another_file_is_refused_with_what_to_do(exported: str | bytes) -> None:
    with pytest.raises(UserError, match="list of records|include=responses"):
        list(answers(exported, TASKS, PLAN))


def test_what_a_real_server_answered_is_read() -> None:
    """Recorded of an Argilla 2.8 server, into which its SDK had read the export from disk."""
    tasks = recorded_tasks()
    pages = json.loads((Path(__file__).parent / "recorded" / "argilla.json").read_text())
    results = collect(tasks, (answer for page in pages for answer in answers(json.dumps(page), tasks, RECORDED_PLAN)))
    assert results.counts == {"draft": 1, "skipped": 1, "rows": 3, "answers": 4, "unanswered": 2}
    found: dict[str, list[tuple[float, ...]]] = {}
    for answer in results.answers:
        found.setdefault(answer.annotator, []).append(answer.scores)
    assert sorted(sorted(some) for some in found.values()) == [[(3, 5), (4, 5), (6, 1)], [(6, 1)]]
    fields = {item["external_id"]: item["fields"] for page in pages for item in page["items"]}
    exported = files(tasks, RECORDED_PLAN)
    records = [record for name in exported if name.endswith("records.json") for record in json.loads(exported[name])]
    assert fields == {record["id"]: record["fields"] for record in records}


class _Server(BaseHTTPRequestHandler):
    """As much of a server as the SDK's client asks for before it builds any settings."""

    def do_GET(self) -> None:
        body = json.dumps({"id": USER, "username": "u", "role": "owner", "version": "2.8.0"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_sdk_takes_data_set_settings_and_records(tmp_path: Path) -> None:
    reason = "argilla, which the project does not need, is not installed"
    sdk = pytest.importorskip("argilla", reason=reason)
    server = HTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        sdk.Argilla(api_url=f"http://127.0.0.1:{server.server_port}", api_key="k")
        tasks, _ = make_tasks([prompt("a", *NASTY)], PLAN)
        for name, text in files(tasks, PLAN).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        folder = tmp_path / f"annotator-1-responses-{len(NASTY)}"
        asked = sdk.Settings.from_json(folder / ".argilla" / "settings.json")
        asked.validate()
        assert asked.questions[0].values == list(range(1, 8)) and asked.fields[0].use_markdown is False
        model = sdk.Dataset._load_dataset_model(folder / ".argilla" / "dataset.json")
        assert model.name == folder.name and model.guidelines == PLAN.guideline
        (record,) = importlib.import_module("argilla.records._io").JsonIO._records_from_json(folder / "records.json")
        assert record.id == tasks[0].id
        assert record.fields["response_1"] == html.escape(tasks[0].shown()[0], quote=False)
    finally:
        server.shutdown()
        server.server_close()
