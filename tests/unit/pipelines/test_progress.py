"""What is shown of a run is read from what its steps write."""

import io
import json
from pathlib import Path

from rich.console import Console

from components.launch.run import StepState
from pipelines.display import Lines, display
from pipelines.progress import StepView, duration, views
from pipelines.runs import Run


def write_step(run: Run, step: str, state: StepState, lines: list[dict[str, float]], tail: str = "") -> None:
    folder = run.step_folder(step)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(state.model_dump_json())
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def line(step: int, at: float, **more: float) -> dict[str, float]:
    return {"training_step": step, "training_last_step_timestamp_seconds": at, "training_steps_planned": 40, **more}


def test_running_step_shows_steps_loss_speed_and_time_left(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "r")
    lines = [line(8, 50.0), line(9, 110.0), line(10, 112.0, training_loss=1.5, training_tokens_per_second=5100.0)]
    write_step(run, "sft", StepState(step="sft", state="running", started_at=100.0), lines, tail='{"training_st')
    view = next(view for view in views(run, since=0) if view.step == "sft")
    # Step 8 was taken by an earlier attempt; a step takes 2 s now.
    assert view.left == 60.0
    assert view.detail == "10/40, loss 1.5, 5.1k tokens/s, 60 s left"


def test_step_of_an_earlier_attempt_counts_as_waiting(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "r")
    write_step(run, "sft", StepState(step="sft", state="failed", started_at=1.0, ended_at=2.0), [])
    assert {view.state for view in views(run, since=3.0)} == {"waiting"}


def test_piped_progress_is_one_line_a_change() -> None:
    stream = io.StringIO()
    lines = Lines(Console(file=stream))
    waiting, running = StepView("sft"), StepView("sft", "running", 1.0)
    for view in (waiting, waiting, running, running, StepView("sft", "done", 3.0, 4, 4, (("loss", 0.25),))):
        lines.update([view])
    said = [text.split(" ", 1)[1] for text in stream.getvalue().splitlines()]
    assert said == ["sft: running", "sft: done after 3 s: 4/4, loss 0.25"]


def test_terminal_shows_every_step_in_a_table() -> None:
    stream = io.StringIO()
    with display(Console(file=stream, force_terminal=True, width=80)) as shown:
        shown.update([StepView("sft", "running", 1.0, 1, 2), StepView("ppo")])
    assert "sft" in stream.getvalue()
    assert "waiting" in stream.getvalue()
    assert "1/2" in stream.getvalue()


def test_durations_for_people() -> None:
    said = {0.4: "0 s", 99: "99 s", 100: "1 min 40 s", 3600: "60 min 00 s", 18720: "5 h 12 min"}
    assert {seconds: duration(seconds) for seconds in said} == said
