"""How the steps of a run are getting on, read from their local folders."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.logs import SHOWN
from components.launch.run import read_state
from pipelines.runs import Run

_TAIL_BYTES = 16384
_WINDOW = 20  # lines of metrics that the estimate of the time left looks back


@dataclass(frozen=True)
class StepView:
    """One step as it is shown. Times are in seconds; `done` of `planned` counts optimiser steps or PPO iterations."""

    step: str
    state: str = "waiting"
    seconds: float | None = None
    done: int | None = None
    planned: int | None = None
    numbers: tuple[tuple[str, float], ...] = ()
    left: float | None = None
    error: str = ""
    exit_code: int = 0

    @property
    def detail(self) -> str:
        """Progress in one phrase, such as "120/400, loss 1.23, 5.1k tokens/s, 12 s left"."""
        parts = []
        if self.done is not None:
            parts.append(f"{self.done}/{self.planned}" if self.planned else str(self.done))
        parts += [_phrase(name, value) for name, value in self.numbers]
        if self.left is not None and self.state == "running":
            parts.append(f"{duration(self.left)} left")
        return ", ".join(parts)


def views(run: Run, since: float) -> list[StepView]:
    """All steps of a run; what ended before `since` belongs to an earlier attempt and counts as waiting."""
    return [_view(run.step_folder(place), place, since) for place in run.places()]


def _view(folder: Path, step: str, since: float) -> StepView:
    state = read_state(folder)
    if state is None or (state.ended_at or state.started_at) < since:
        return StepView(step)
    lines = _last_lines(folder / "metrics.jsonl") if state.state != "skipped" else []
    # A resumed step keeps the lines of its earlier attempt; its speed is that of this one.
    own = [line for line in lines if line.get("training_last_step_timestamp_seconds", 0) >= state.started_at]
    last: dict[str, Any] = own[-1] if own else {}
    return StepView(
        step,
        state=state.state,
        seconds=(state.ended_at or time.time()) - state.started_at,
        done=_whole(last.get("training_step")),
        planned=_whole(
            next((line["training_steps_planned"] for line in reversed(own) if "training_steps_planned" in line), None)
        ),
        numbers=tuple(_numbers(last)),
        left=_time_left(own[-_WINDOW:]),
        error=state.error,
        exit_code=state.exit_code,
    )


def _numbers(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, label in SHOWN.items():
        if isinstance(line.get(name), int | float):
            yield label, float(line[name])


def _time_left(lines: list[dict[str, Any]]) -> float | None:
    """Steps left times the mean duration of the last ones; None until two steps are over."""
    planned = next(
        (line["training_steps_planned"] for line in reversed(lines) if "training_steps_planned" in line), None
    )
    if planned is None or len(lines) < 2:
        return None
    first, last = lines[0], lines[-1]
    steps = last["training_step"] - first["training_step"]
    seconds = last["training_last_step_timestamp_seconds"] - first["training_last_step_timestamp_seconds"]
    return max(0.0, (planned - last["training_step"]) * seconds / steps) if steps > 0 else None


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of JSON at the end of a file that grows; a long run's file is not read again each time."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            pieces = file.read().split(b"\n")
    except OSError:
        return []
    found = []
    for piece in pieces:
        try:
            line = json.loads(piece)
        except ValueError:  # cut off at either end
            continue
        if isinstance(line, dict) and "training_step" in line:
            found.append(line)
    return found


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) else None


def _phrase(name: str, value: float) -> str:
    if name == "tokens/s":
        return f"{value / 1000:.1f}k tokens/s" if value >= 1000 else f"{value:.0f} tokens/s"
    return f"{name} {value:.3g}"


def duration(seconds: float) -> str:
    """A duration for people: 12 s, 3 min 20 s, 5 h 12 min."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
