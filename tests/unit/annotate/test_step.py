"""The step in its four modes, as its caller starts it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.annotate.step import work
from components.core import store
from components.core.spec import StepResult, make_spec, read_result
from components.core.step import main
from components.demo_world.generate import rows as demo_rows
from tests.chat_server import ChatServer
from tests.unit.annotate.support import label_studio_annotation, label_studio_item, label_studio_rating
from tests.unit.annotate.test_judge import longer

PROMPTS = 30
MODELS = ("secret-base", "secret-chat")
CONFIG: dict[str, Any] = {"overlap_share": 0.5}
Run = Callable[..., StepResult]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What sample_responses publishes, written by hand: graded answers of the demo world."""
    folder = tmp_path_factory.mktemp("sampled")
    responses, producers = [], []
    for number, row in enumerate(demo_rows("reward_model", 3, PROMPTS)):
        shown = [{"id": f"r{number}.{place}", "text": text} for place, text in enumerate(row["responses"])]
        meta = {name: value for name, value in row["meta"].items() if name != "grades"}
        responses.append({"id": f"p{number}", "messages": row["messages"], "responses": shown, "meta": meta})
        for place, response in enumerate(shown):
            producers.append({
                "prompt": f"p{number}", "response": response["id"], "model": MODELS[place % 2],
                "strategy": "secret-strategy", "fate": "kept",
            })  # fmt: skip
    for name, rows in (("responses", responses), ("producers", producers)):
        (folder / name).mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        store.publish(folder / name, str(folder / f"published-{name}"))
    return {name: str(folder / f"published-{name}") for name in ("responses", "producers")}


@pytest.fixture
def run(inputs: dict[str, str], tmp_path: Path) -> Run:
    """run(place, exit code, more inputs, settings...): the result of the step, None where there never was one."""

    def start(place: str, code: int = 0, given: dict[str, str] | None = None, **config: Any) -> Any:
        output = tmp_path / place
        spec = make_spec(
            "annotate", run="test", seed=0, config=CONFIG | config, inputs=inputs | (given or {}), output=str(output)
        )
        store.write_bytes(spec.uri, spec.model_dump_json().encode())
        assert main("annotate", work, ["--spec", spec.uri]) == code
        return read_result(str(output))

    return start


def scored(result: StepResult) -> list[dict[str, Any]]:
    path = Path(result.outputs["scored"]) / "scored.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("tool", ["label_studio", "argilla"])
def test_exported_tasks_do_not_say_who_wrote_what(run: Run, tool: str) -> None:
    result = run("out", mode="export", tool=tool)
    files = [path for path in Path(result.outputs["tasks"]).rglob("*") if path.is_file()]
    assert len(files) > 3 and result.metrics["tasks"] == 30 + 2 * sum_overlap(result)
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "secret" not in text and '"r0.0"' not in text and "true_scores" not in text


def sum_overlap(result: StepResult) -> int:
    """Prompts with three annotators instead of one."""
    return (result.metrics["tasks"] - PROMPTS) // 2


@pytest.mark.parametrize("tool", ["label_studio", "argilla"])
def test_demo_is_the_same_as_importing_what_its_annotators_handed_in(run: Run, tool: str) -> None:
    demo = run("demo", mode="demo", tool=tool)
    again = run("import", given={"results": demo.outputs["results"]}, mode="import", tool=tool)
    rows = scored(demo)
    assert [row["meta"]["prompt"] for row in rows] == sorted(f"p{number}" for number in range(PROMPTS))
    assert [{**row, "true_scores": None} for row in rows] == [{**row, "true_scores": None} for row in scored(again)]
    assert demo.metrics == again.metrics
    assert all(row["meta"]["models"] == [*MODELS, *MODELS] for row in rows)
    assert all(row["meta"]["kind"] for row in rows)


def test_the_demo_knows_the_truth_and_its_panel_mostly_finds_it(run: Run) -> None:
    truth = {f"p{number}": row for number, row in enumerate(demo_rows("reward_model", 3, PROMPTS))}
    right = wrong = 0
    for row in scored(run("out", mode="demo", overlap_share=1.0)):
        known = truth[row["meta"]["prompt"]]
        assert row["responses"] == known["responses"] and row["true_scores"] == known["true_scores"]
        for one in range(4):
            for other in range(one):
                gap = (row["scores"][one] - row["scores"][other]) * (
                    known["true_scores"][one] - known["true_scores"][other]
                )
                right, wrong = right + (gap > 0), wrong + (gap < 0)
    assert right > 10 * wrong > 0


def test_importing_twice_changes_nothing(run: Run, tmp_path: Path) -> None:
    """Neither the step done again nor every file handed in twice."""
    results = Path(run("demo", mode="demo").outputs["results"])
    first = run("one", given={"results": str(results)}, mode="import")
    (tmp_path / "one" / "result.json").unlink()
    assert run("one", given={"results": str(results)}, mode="import").manifests == first.manifests
    twice = tmp_path / "twice"
    twice.mkdir()
    for path in results.glob("annotator*.json"):
        for copy in ("a", "b"):
            (twice / f"{copy}-{path.name}").write_bytes(path.read_bytes())
    assert run("two", given={"results": str(twice)}, mode="import").manifests == first.manifests


def test_import_before_anybody_has_answered_says_where_what_goes(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handed_in = tmp_path / "handed-in"
    run("out", 1, given={"results": str(handed_in)}, mode="import")
    said = capfd.readouterr().err.splitlines()[-1]
    tasks = tmp_path / "out" / "output" / "tasks"
    assert said == (
        f"error: {handed_in}: no results of annotators yet; hand out the tasks in {tasks}, put there what label_studio "
        "exports, and start again"
    )
    assert list(tasks.rglob("tasks.json"))
    handed_in.mkdir()
    for path in Path(run("demo", mode="demo").outputs["results"]).glob("annotator*.json"):
        (handed_in / path.name).write_bytes(path.read_bytes())
    assert len(scored(run("out", given={"results": str(handed_in)}, mode="import"))) == PROMPTS


def people(run: Run, folder: Path, score: Callable[[int, int, int], int]) -> dict[str, str]:
    """Results of people who give score(annotator, number of the task, place) to the response at each place."""
    tasks = Path(run("tasks", mode="export", overlap_share=1.0).outputs["tasks"])
    folder.mkdir()
    for path in tasks.glob("*/tasks.json"):
        user = int(path.parent.name.split("-")[1])
        items = []
        for number, task in enumerate(json.loads(path.read_text(encoding="utf-8")), start=1):
            places = range(1, sum(name.startswith("response_") for name in task["data"]) + 1)
            result = [label_studio_rating(place, score(user, number, place)) for place in places]
            note = label_studio_annotation(number, user, result, lead_time=60.0)
            items.append(label_studio_item(number, task["data"], [note]))
        (folder / f"{path.parent.name}.json").write_text(json.dumps(items), encoding="utf-8")
    return {"results": str(folder)}


def test_report_by_hand(run: Run, tmp_path: Path) -> None:
    """Everybody always prefers the first place shown, which is another response for each: a bias of position, no
    agreement. Four responses at 60 s a task."""
    given = people(run, tmp_path / "people", lambda user, number, place: 8 - place)
    result = run("out", given=given, mode="import", overlap_share=1.0)
    report = json.loads((Path(result.outputs["scored"]) / "report.json").read_text())
    assert report == result.metrics
    assert report["counts"] == {"answers": 90, "rows": PROMPTS, "unanswered": 0}
    assert report["cost"] == {"answers": 90, "seconds": 90 * 60.0}
    assert abs(report["alpha"]["interval"]) < 0.2
    for name in ("1", "2", "3"):
        about = report["annotators"][name]
        assert about["flags"] == ["position"] and about["counted"]
        assert about["first_place"] == {"hits": 30, "number": 30, "value": 1.0}
        assert about["position_p"] == pytest.approx(2 / 2**30)


def test_whoever_is_flagged_counts_unless_told_otherwise(run: Run, tmp_path: Path) -> None:
    """The first one gives everything a 4; the others prefer the first place to the last one in every other task."""
    given = people(run, tmp_path / "people", lambda user, number, place: 4 if user == 1 else 3 + (number + place) % 2)
    kept = run("kept", given=given, mode="import", overlap_share=1.0)
    assert kept.metrics["annotators"]["1"]["flags"] == ["constant"]
    assert kept.metrics["counts"]["answers"] == 90
    left_out = run("out", given=given, mode="import", overlap_share=1.0, exclude_flagged=True)
    assert left_out.metrics["annotators"]["1"]["flags"] == ["constant"]
    by_name = run("named", given=given, mode="import", overlap_share=1.0, excluded=["1"])
    for result in (left_out, by_name):
        assert result.metrics["counts"] == {"excluded_annotator": 30, "answers": 60, "rows": PROMPTS, "unanswered": 30}
        assert [row["meta"]["annotators"] for row in scored(result)] == [2] * PROMPTS
        assert {tuple(sorted(row["scores"])) for row in scored(result)} <= {
            (3.0, 3.0, 4.0, 4.0),
            (3.5,) * 4,
            (3.0, 3.5, 3.5, 4.0),
        }
    assert [about["counted"] for about in left_out.metrics["annotators"].values()] == [False, True, True]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    running = ChatServer(longer, json.loads)
    yield running
    running.close()


def test_judge_that_breaks_down_is_not_asked_again_what_it_has_answered(run: Run, server: ChatServer) -> None:
    """30 prompts of 4 responses: 6 pairs in both orders each, 360 questions with a verdict."""
    endpoint = {"url": server.url, "model": "judge", "attempts": 1}
    judge = {**endpoint, "max_failed_share": 0.0, "concurrency": 2}
    good = server.reply
    server.reply = lambda asked, times: good(asked, times) if len(server.requests) <= 200 else (503, {}, b"")
    run("out", 75, mode="judge", judge=judge)
    answered = {json.dumps(request["asked"]) for request in server.requests[:180]}
    server.reply, server.requests = good, []
    result = run("out", mode="judge", judge=judge)
    assert len(server.requests) < 200
    # Questions of tasks whose verdicts were all there; the last ones before the breakdown were of unfinished tasks.
    assert len(answered & {json.dumps(request["asked"]) for request in server.requests}) < 12 * 3
    assert result.metrics["cost"]["questions"] == 360
    assert result.metrics["judge"] == {"model": "judge", "pairs": 180, "inconsistent": 0}
    rows = scored(result)
    assert len(rows) == PROMPTS and all(row["meta"]["annotators"] == 1 for row in rows)
    for row in rows:
        best = max(range(4), key=lambda place: len(row["responses"][place]))
        assert row["scores"][best] == max(row["scores"])
    assert "secret" not in json.dumps([request["messages"] for request in server.requests])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mode": "judge"}, "annotate.judge: no judge; give annotate.judge.url and annotate.judge.model"),
        ({"mode": "import"}, "annotate: no input results was given; hand out the tasks in "),
    ],
)
def test_bad_request_gets_one_line(
    run: Run, capfd: pytest.CaptureFixture[str], config: dict[str, Any], said: str
) -> None:
    run("out", 1, **config)
    assert said in capfd.readouterr().err.splitlines()[-1]


def test_file_that_is_no_export_is_named(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "people").mkdir()
    (tmp_path / "people" / "mine.json").write_text("{}")
    run("out", 1, given={"results": str(tmp_path / "people")}, mode="import")
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {tmp_path}/people/mine.json: not an export in Label Studio's JSON format")
