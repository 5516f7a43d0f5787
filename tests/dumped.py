"""Specs run as `tests.several` runs them, with a record of what a step's output leaves out.

At the end of its last iteration each rank writes <output>/dumped-<rank>.pt: its part of every engine's state (the value
model's too), what else a checkpoint would hold, how many forward and backward passes each optimiser step took, and how
often the rank met the others. `python -m tests.dumped STEP --spec A,B` under torchrun, or `record` in a test's process.
"""

import os
import runpy
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from components.core import store
from components.core.metrics import read_metrics
from components.core.spec import make_spec
from components.training.engine import Engine
from components.training.loop import Loop
from components.training.runtime import Runtime
from tests.ranks import finished, start

SECONDS = 240  # for what takes thirty on a quiet machine: ranks that are out of step wait for ever


@dataclass(frozen=True)
class Dump:
    """One finished run."""

    output: Path
    model: str
    """Where its model lies."""
    state: dict[str, torch.Tensor]
    """By "<engine>/weights.<name>" and "<engine>/optimiser.<name>.<key>", whole tensors."""
    beside: dict[str, Any]
    passes: list[dict[str, list[int]]]
    """For each rank: the engine's name (with "-text" for ptx) -> passes of each accumulation, in order."""
    meetings: list[int]
    """For each rank: the collectives that it took part in."""

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.state.items() if "/weights." in name}

    def optimiser_steps(self, engine: str) -> set[int]:
        """As AdamW itself counted them, of every weight."""
        return {int(v) for k, v in self.state.items() if k.startswith(f"{engine}/optimiser.") and k.endswith(".step")}

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Without clock readings."""
        clocks = ("seconds", "timestamp", "per_second")
        lines = read_metrics(self.output / "metrics.jsonl")
        return [{name: v for name, v in line.items() if not any(word in name for word in clocks)} for line in lines]


def record(patch: Callable[..., None] = setattr) -> None:
    """Keep the record from now on; give a MonkeyPatch's setattr to have it undone."""
    passes: list[tuple[int, bool, int]] = []
    met = 0
    accumulate, steps = Engine.accumulate, Loop.steps

    def counted_accumulate(self: Engine, groups: Any, spare: Any, loss: Any, **options: Any) -> list[float]:
        calls = 0

        def counted(group: Any) -> Any:
            nonlocal calls
            calls += 1
            return loss(group)

        found = accumulate(self, groups, spare, counted, **options)
        passes.append((id(self), options.get("last", True), calls))
        return found

    def dumping_steps(self: Loop, total: int) -> Iterator[int]:
        nonlocal met
        passes.clear()
        met = 0
        yield from steps(self, total)
        found: dict[str, list[int]] = {}
        names = {id(engine): name for name, engine in self.engines.items()}
        for engine, last, calls in passes:
            found.setdefault(names[engine] if last else f"{names[engine]}-text", []).append(calls)
        # Every rank takes part in gathering sharded weights; the same keep only one copy of them.
        parts = {f"{name}/{k}": v for name, engine in self.engines.items() for k, v in engine.state().items()}
        own = next(iter(self.engines.values())).part() is not None
        dump = {"state": parts if own else {}, "beside": self._state(), "passes": found, "meetings": met}
        torch.save(dump, self.step.work / f"dumped-{self.runtime.rank}.pt")

    def counting(name: str) -> None:
        original = getattr(Runtime, name)

        def counted(self: Runtime, *arguments: Any) -> Any:
            nonlocal met
            met += 1
            return original(self, *arguments)

        patch(Runtime, name, counted)

    for name in ("barrier", "sum", "max", "gather"):
        counting(name)
    patch(Engine, "accumulate", counted_accumulate)
    patch(Loop, "steps", dumping_steps)


def read(output: Path) -> Dump:
    ranks = [torch.load(path, weights_only=True) for path in sorted(output.glob("dumped-*.pt"))]
    state = {name: value for rank in ranks for name, value in rank["state"].items()}
    return Dump(
        output, finished(output).outputs["model"], state, ranks[0]["beside"],
        [rank["passes"] for rank in ranks], [rank["meetings"] for rank in ranks],
    )  # fmt: skip


def launch(runs: dict[str, tuple[dict[str, str], dict[str, Any]]], folder: Path, processes: int = 2) -> dict[str, Dump]:
    """Run {"<step>-<name>": (inputs, settings)} one after the other in the same ranks; what each left behind."""
    specs = [
        make_spec(name.split("-")[0], run="test", seed=0, config=config, inputs=inputs, output=str(folder / name))
        for name, (inputs, config) in runs.items()
    ]
    for spec in specs:
        store.write_bytes(spec.uri, spec.model_dump_json().encode())
    process = start("tests.dumped", ",".join(spec.uri for spec in specs), processes)
    try:
        log, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        log, _ = process.communicate()
        raise AssertionError(f"not done after {SECONDS} s: ranks out of step?\n{log[-3000:]}") from None
    (folder / "log").write_text(log)
    # The first error; those of the ranks that it took along come after it.
    found = log.find("Traceback")
    assert process.returncode == 0, log[max(found - 500, 0) :][:4000]
    return {name: read(folder / name) for name in runs}


if __name__ == "__main__":
    record()
    runpy.run_module("tests.several", run_name="__main__")
