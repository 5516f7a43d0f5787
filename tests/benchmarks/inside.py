"""A look inside one of our own runs, in this process: data-loading share, checkpoint time, and where the time goes.

The profiler is on after the warm-up steps only. It slows Python down and not torch, so the data-loading share that it
gives is an upper bound. Timings of the trainers come from runs without it (run.py).
"""

import argparse
import cProfile
import importlib
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.core.step import main as run_step
from components.training import data
from components.training.checkpoint import Checkpoints
from components.training.loop import Loop
from tests.benchmarks.ours import STEPS, prepare
from tests.benchmarks.process import Line

_DATA = str(Path(data.__file__))


def look(stage: str, workload: Path, steps: int, warmup: int, checkpoint_every: int, top: int, settings: Line) -> Line:
    """Run the stage; {data_loading_share, checkpoint_blocking_seconds, checkpoint_write_seconds}."""
    profile = cProfile.Profile()
    blocking, writing, seconds = _Calls(Checkpoints, "save"), _Calls(Checkpoints, "_write"), 0.0
    original = Loop.steps

    def profiled(loop: Loop, total: int) -> Iterator[int]:
        nonlocal seconds
        for number in original(loop, total):
            if number < warmup:
                yield number
                continue
            started = time.perf_counter()
            profile.enable()
            yield number
            profile.disable()
            seconds += time.perf_counter() - started

    Loop.steps = profiled  # type: ignore[method-assign]
    step = importlib.import_module(f"components.{STEPS[stage]}.__main__")
    with tempfile.TemporaryDirectory() as scratch:
        uri = prepare(stage, workload, Path(scratch) / "run", steps, checkpoint_every, settings)
        if run_step(STEPS[stage], step.work, ["--spec", uri]):
            raise SystemExit(f"{stage} failed")
    stats = pstats.Stats(profile)
    if top:
        stats.sort_stats("tottime").print_stats(top)
    line: Line = {"data_loading_share": _seconds_in(stats, _DATA) / seconds}
    if blocking.seconds:
        line["checkpoint_blocking_seconds"] = statistics.median(blocking.seconds)
        line["checkpoint_write_seconds"] = statistics.median(writing.seconds)
    return line


class _Calls:
    """Times the calls of a method, in whatever thread they are."""

    def __init__(self, owner: type, name: str) -> None:
        self.seconds: list[float] = []
        inner = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            made = inner(*arguments, **named)
            self.seconds.append(time.perf_counter() - started)
            return made

        setattr(owner, name, timed)


def _seconds_in(stats: pstats.Stats, file: str) -> float:
    """Seconds in the functions of a file and in what they call, each call counted once."""
    found = 0.0
    for (place, _, _), (_, _, _, _, callers) in stats.stats.items():  # type: ignore[attr-defined]
        if place == file:
            found += sum(cumulative for (caller, _, _), (_, _, _, cumulative) in callers.items() if caller != file)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=list(STEPS), required=True)
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--checkpoint-every", type=int, default=0)
    parser.add_argument("--top", type=int, default=0, help="print so many of the costliest functions")
    parser.add_argument("--settings", type=json.loads, default={}, help="other settings of the step, as JSON")
    options = parser.parse_args()
    line = look(**vars(options))
    print("RESULT " + json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
