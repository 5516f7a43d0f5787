"""A step in processes that really die: ranks by fork, a chosen moment of death, and a record of what was trained on.

A fork of a process that has torch in memory starts at once; a new process takes ten seconds and more. What is patched
here is patched in the child alone.
"""

import importlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from components.core import store, store_local
from components.core.metrics import Metrics, parse_metrics
from components.core.spec import StepSpec, read_result
from components.core.step import Step, main
from components.training import checkpoint
from components.training.engine import Engine
from components.training.loop import Loop

SECONDS = 120  # for what takes three on a quiet machine


@dataclass(frozen=True)
class Death:
    """The moment to die: at the `count`th time that `place` is reached in step (or for checkpoint) `number`."""

    place: str
    number: int
    count: int = 1
    rank: int = 0
    by: signal.Signals = signal.SIGKILL


@dataclass(frozen=True)
class Run:
    """What one start of a step left behind."""

    output: str
    record: Path
    codes: list[int]

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """fp32 weights and moments at the end, as a checkpoint would hold them."""
        parts = [load_file(path) for path in sorted(self.record.glob("state-*.safetensors"))]
        assert len(parts) == len(self.codes)
        return {name: value for part in parts for name, value in part.items()}

    @cached_property
    def beside(self) -> dict[str, Any]:
        """The rest of a checkpoint: PPO's running moments and KL coefficient."""
        found: dict[str, Any] = json.loads((self.record / "state.json").read_text())
        return found

    def samples(self, rank: int = 0) -> list[dict[str, Any]]:
        """What went through a backward pass, in order: step, model, micro-batches of rows (PPO: whole sequences).

        A row's number is its id, in these tests' data.
        """
        path = self.record / f"samples-{rank}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def dealt(self) -> list[tuple[int, str, list[Any]]]:
        """The same of all ranks together: each mini-batch's rows, however they were dealt."""
        found = []
        for parts in zip(*(self.samples(rank) for rank in range(len(self.codes))), strict=True):
            rows = sorted(row for part in parts for group in part["rows"] for row in group)
            found.append((parts[0]["step"], parts[0]["model"], rows))
        return found

    @property
    def first(self) -> int:
        """The step it started with."""
        return int((self.record / "first").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Without clock readings."""
        lines = parse_metrics(store.read_bytes(store.join(self.output, "metrics.jsonl")))
        return [{name: value for name, value in line.items() if not _is_clock(name)} for line in lines]

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.record.glob("log-*")))

    def result(self) -> Any:
        result = read_result(self.output)
        assert result is not None, self.log[-3000:]
        return result


def _is_clock(name: str) -> bool:
    return any(word in name for word in ("seconds", "timestamp", "per_second"))


def run(
    spec: StepSpec,
    record: Path,
    death: Death | None = None,
    ranks: int = 1,
    on_death: Callable[[], None] = lambda: None,
) -> Run:
    """Start the step's ranks and wait for their end. When one dies the others are killed, after `on_death`."""
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    # What takes seconds to import, once for all.
    importlib.import_module(f"components.{spec.step}.__main__")
    if spec.config["lora"]["rank"]:
        importlib.import_module("components.training.lora")
    if spec.config["zero"]["stage"]:
        importlib.import_module("components.training.zero")
    record.mkdir(parents=True)
    fork = multiprocessing.get_context("fork")
    port = _free_port()
    processes = [fork.Process(target=_rank, args=(spec, record, death, rank, ranks, port)) for rank in range(ranks)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + SECONDS
    try:
        while waited := [process.sentinel for process in processes if process.is_alive()]:
            assert multiprocessing.connection.wait(waited, max(0.0, deadline - time.monotonic())), "still running"
            if any(process.exitcode == -signal.SIGKILL for process in processes):
                on_death()
                break
    finally:
        for process in processes:
            process.kill()
            process.join()
    return Run(spec.output, record, [process.exitcode or 0 for process in processes])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank(spec: StepSpec, record: Path, death: Death | None, rank: int, ranks: int, port: int) -> None:
    log = os.open(record / f"log-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    logging.root.handlers.clear()  # pytest's
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    _record(record, rank)
    if death is not None and death.rank == rank:
        _arm(death, spec.step)
    sys.exit(main(spec.step, importlib.import_module(f"components.{spec.step}.__main__").work, ["--spec", spec.uri]))


_now = -1
"""The step under way in this process."""


def _record(folder: Path, rank: int) -> None:
    """Write what is trained on as it happens, and the state at the end of the last step."""
    samples = (folder / f"samples-{rank}.jsonl").open("w")
    names: dict[int, str] = {}
    steps, accumulate = Loop.steps, Engine.accumulate

    def recorded_steps(self: Loop, total: int) -> Iterator[int]:
        global _now
        names.update({id(engine): name for name, engine in self.engines.items()})
        for number in steps(self, total):
            if _now < 0 and rank == 0:
                (folder / "first").write_text(str(number))
            _now = number
            yield number
        found = {f"{name}/{key}": v for name, engine in self.engines.items() for key, v in engine.state().items()}
        save_file({key: value.detach().clone() for key, value in found.items()}, folder / f"state-{rank}.safetensors")
        if rank == 0:
            (folder / "state.json").write_text(json.dumps(self._state()))

    def recorded_accumulate(self: Engine, groups: Any, *rest: Any, **options: Any) -> list[float]:
        rows = [[getattr(item, "sequence", item) for item in group] for group in groups]
        samples.write(json.dumps({"step": _now, "model": names[id(self)], "rows": rows}) + "\n")
        samples.flush()
        return accumulate(self, groups, *rest, **options)

    Loop.steps, Engine.accumulate = recorded_steps, recorded_accumulate  # type: ignore[method-assign]


def _arm(death: Death, step: str) -> None:
    left = death.count

    def reached(number: int) -> None:
        nonlocal left
        if number == death.number:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), death.by)

    def patch(owner: Any, name: str, number: Callable[..., int], *, after: bool = False) -> None:
        original = getattr(owner, name)

        def patched(*arguments: Any, **options: Any) -> Any:
            if not after:
                reached(number(*arguments, **options))
            value = original(*arguments, **options)
            if after:
                reached(number(*arguments, **options))
            return value

        setattr(owner, name, patched)

    def step_of(path: Path) -> int:
        """Whose checkpoint a path in the store is part of."""
        return next((int(p.removeprefix("step-")) for p in path.parts if p.startswith("step-")), -1)

    def half_copied(source: Path, target: Path, progress: Any) -> Any:
        if source.name == "state.safetensors" and step_of(target) == death.number:
            target.parent.mkdir(parents=True, exist_ok=True)
            data = source.read_bytes()
            target.write_bytes(data[: len(data) // 2])
            reached(death.number)
        return copy(source, target, progress)

    copy = store_local._copy
    match death.place:
        case "accumulate":
            patch(Engine, "accumulate", lambda *_, **__: _now)
        case "optimiser":
            patch(Engine, "step", lambda *_, **__: _now, after=True)
        case "policy update":
            patch(importlib.import_module("components.ppo.train").PPO, "_update_policy", lambda *_: _now)
        case "line":
            patch(Metrics, "log", lambda *_, **__: _now, after=True)
        case "written":
            patch(checkpoint.store, "publish", lambda _, uri: step_of(Path(uri)))
        case "copying":
            store_local._copy = half_copied
        case "moving":
            patch(store_local, "_move_dir", lambda _, target: step_of(target))
        case "published":
            # By the thread that writes checkpoints, which bears the number.
            patch(checkpoint.Checkpoints, "_prune", lambda _: int(threading.current_thread().name.rpartition("-")[2]))
        case "finishing":
            patch(Step, "finish", lambda *_: _now)
        case "outputs published":
            patch(store, "write_bytes", lambda uri, *_, **__: _now if uri.endswith("/result.json") else -1)
        case place:
            raise ValueError(place)
