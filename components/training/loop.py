"""The step loop that the trainers share: resume, seed, time, log, checkpoint, stop. A step's work is the trainer's."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from components.core.config import Trainer
from components.core.errors import Cancelled, UserError
from components.core.logs import SHOWN
from components.core.metrics import Metrics
from components.core.seeds import seed_for
from components.core.step import Step
from components.training.checkpoint import Checkpoints
from components.training.engine import Engine
from components.training.runtime import Runtime

log = logging.getLogger(__name__)

_SAY_SECONDS = 10.0  # between two lines of progress in the log


class Loop:
    """Use as `for number in loop.steps(total): ...; loop.log(...)`.

    `engines` are the models that change. `state` and `load_state` give and take whatever else must survive a kill.
    """

    def __init__(
        self,
        step: Step,
        config: Trainer,
        runtime: Runtime,
        engines: dict[str, Engine],
        state: Callable[[], dict[str, Any]] = dict,
        load_state: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.step, self.config, self.runtime, self.engines = step, config, runtime, engines
        self._state, self._load_state = state, load_state
        self.metrics = (
            Metrics(step.work / "metrics.jsonl", step=step.spec.step, run=step.spec.run, port=config.metrics_port)
            if runtime.is_main
            else None
        )
        self.checkpoints = Checkpoints(step, config.keep_checkpoints, self.metrics, runtime)
        self._line: dict[str, float] = {}
        self._skipped = 0
        self._said_at = -math.inf

    def steps(self, total: int) -> Iterator[int]:
        """Step numbers from where the last complete checkpoint ends; saves and stops between steps."""
        first = self._resume()
        for number in range(first, total):
            started = time.monotonic()
            # Dropout draws from (seed, step, rank): nothing to store, and a resumed step repeats itself exactly.
            torch.manual_seed(seed_for(self.step.spec.seed, self.step.spec.step, number, self.runtime.rank))
            yield number
            self._write_line(number + 1, total, time.monotonic() - started)
            cancelled = self.runtime.any(self.step.cancelled)
            every = self.config.checkpoint_every
            if cancelled or (every and (number + 1) % every == 0 and number + 1 < total):
                self._save(number + 1)
            if cancelled:
                self.checkpoints.wait()
                self.runtime.barrier()
                raise Cancelled(
                    f"{self.step.spec.step} was cancelled after step {number + 1} of {total}; its checkpoint is kept"
                )
        # Before the output is published and checkpoints are deleted, no rank may still be writing one.
        self.checkpoints.wait()
        self.runtime.barrier()

    def log(self, **values: float) -> None:
        """Numbers of the present step, already reduced over ranks; written when it ends."""
        self._line |= values

    def watch(self, norm: float, suspects: Callable[[], Sequence[str]]) -> int:
        """1 where an optimiser step was skipped because its gradient was not finite, else 0.

        Raises UserError after max_nonfinite_steps of them in a row, naming the samples that `suspects` finds.
        """
        if math.isfinite(norm):
            self._skipped = 0
            return 0
        self._skipped += 1
        log.warning("a gradient is not finite; the optimiser step is skipped (%d in a row)", self._skipped)
        if self._skipped >= self.config.max_nonfinite_steps:
            names = suspects()
            shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            raise UserError(
                f"loss or gradient not finite in {self._skipped} steps in a row; samples of the last: {shown}",
                fix="look at these rows, or lower the learning rate",
            )
        return 1

    def close(self) -> None:
        """The step is done and its output published: checkpoints may go."""
        if self.runtime.is_main:
            self.checkpoints.discard()
        if self.metrics is not None:
            self.metrics.close()

    def _write_line(self, number: int, total: int, seconds: float) -> None:
        line, self._line = self._line, {}
        if self.metrics is None:
            return
        if "training_tokens_total" in line:
            line["training_tokens_per_second"] = line["training_tokens_total"] / seconds
        self.metrics.log(
            number, training_steps_planned=total, training_steps_total=1, training_step_duration_seconds=seconds, **line
        )
        if number == total or time.monotonic() - self._said_at > _SAY_SECONDS:
            self._said_at = time.monotonic()
            numbers = ", ".join(f"{label} {line[name]:.4g}" for name, label in SHOWN.items() if name in line)
            log.info("step %d/%d: %s", number, total, numbers)

    def _save(self, number: int) -> None:
        # Every rank takes part: a sharded model gathers each weight on the way.
        tensors = {
            f"{name}/{key}": value for name, engine in self.engines.items() for key, value in engine.state().items()
        }
        part = next(iter(self.engines.values())).part()
        if part is not None:
            self.checkpoints.save(number, tensors, {**self._state(), "skipped_in_a_row": self._skipped}, part)

    def _resume(self) -> int:
        found = self.checkpoints.latest()
        number = found[0] if found else 0
        if found:
            _, tensors, state = found
            for name, engine in self.engines.items():
                prefix = f"{name}/"
                engine.load_state({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
            self._skipped = state.pop("skipped_in_a_row")
            self._load_state(state)
            log.info("going on after step %d", number)
        if self.metrics is not None:
            self.step.restore_metrics()
            self.metrics.rewind(number)
        return number
