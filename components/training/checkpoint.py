"""Checkpoints: complete or absent, written in the background, the newest complete one used.

    checkpoints/step-<n>/<token>-<part>-of-<parts>/   state.safetensors (tensors by name), state.json (the rest)

Each rank that holds a share of the state publishes its part by itself; a checkpoint is complete when all parts of one
token are there. The token is drawn anew at each start, so parts of two attempts at the same step never mix.
"""

import json
import logging
import re
import shutil
import threading
import time
import uuid
from collections import defaultdict
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from components.core import store
from components.core.errors import KubealignError, UserError, report
from components.core.metrics import Metrics
from components.core.step import Step
from components.training.runtime import Runtime

log = logging.getLogger(__name__)
_PART = re.compile(r"step-(\d+)/(([0-9a-f]+)-(\d+)-of-(\d+))/MANIFEST\.json")
# Settings that do not change what is computed, so a run may go on with others.
_FREE = {"checkpoint_every", "keep_checkpoints", "metrics_port", "resources", "zero", "micro_batch_tokens", "rollout"}
_FREE |= {"gradient_checkpointing", "compile", "frozen_on_cpu", "max_nonfinite_steps"}


class Checkpoints:
    """The folder checkpoints/ of a step, as one rank sees it.

    Generators are not stored: every random draw of a trainer is seeded from its coordinates (core/seeds.py).
    """

    def __init__(self, step: Step, keep: int, metrics: Metrics | None, runtime: Runtime) -> None:
        self.uri = store.join(step.spec.output, "checkpoints")
        self.scratch = step.work / f"checkpoint-scratch-{runtime.rank}"
        self.step, self.keep, self.metrics, self.runtime = step, keep, metrics, runtime
        self.token = runtime.gather(uuid.uuid4().hex[:12])[0]
        self._writer: threading.Thread | None = None

    def complete(self) -> list[tuple[int, list[str]]]:
        """(step number, folders of all parts) of complete checkpoints alone, oldest first.

        Two attempts may have written the same step.
        """
        found: dict[tuple[int, str, int], list[str]] = defaultdict(list)
        for entry in store.open_store(self.uri).list():
            if match := _PART.fullmatch(entry.key):
                number, folder, token, _, parts = match.groups()
                found[int(number), token, int(parts)].append(folder)
        return [(key[0], sorted(folders)) for key, folders in sorted(found.items()) if len(folders) == key[2]]

    def latest(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest complete checkpoint, or None. A damaged one is passed over, and said so.

        Raises UserError where it was made with other settings or inputs, naming what differs.
        """
        for number, folders in reversed(self.complete()):
            try:
                read = [self._read(number, folder) for folder in folders]
            except UserError as error:
                log.warning("checkpoint %d is damaged and passed over: %s", number, error)
                continue
            state = read[0][1]
            self._check(number, state.pop("made_by"))
            return number, {name: value for tensors, _ in read for name, value in tensors.items()}, state
        return None

    def _read(self, number: int, folder: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        uri = store.join(self.uri, f"step-{number}", folder)
        path = store.fetch(uri, self.scratch / f"read-{number}-{folder}")
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return load_file(path / "state.safetensors"), state

    def _made_by(self) -> dict[str, Any]:
        """What decides the result, flat, for a comparison that can name what differs."""
        spec = self.step.spec
        settings = {key: value for key, value in spec.config.items() if key not in _FREE}
        inputs = {name: spec.input_digests.get(name) or uri for name, uri in spec.inputs.items()}
        return flat({"seed": spec.seed, "inputs": inputs | spec.raw_digests, spec.step: settings})

    def _check(self, number: int, made_by: dict[str, Any]) -> None:
        now = self._made_by()
        differing = sorted(key for key in now.keys() | made_by.keys() if now.get(key) != made_by.get(key))
        if differing:
            shown = ", ".join(f"{key} (was {made_by.get(key)}, is {now.get(key)})" for key in differing[:5])
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise UserError(
                f"checkpoint {number} was made with other settings: {shown}{more}",
                where=self.uri,
                fix="put them back to go on, or delete the checkpoints to start anew",
            )

    def save(self, number: int, tensors: dict[str, torch.Tensor], state: dict[str, Any], part: tuple[int, int]) -> None:
        """Copy the state now and write it while training goes on; waits for the one before it."""
        self.wait()
        # A copy also where the tensor is on the CPU already: the optimiser changes it in place.
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        state = {**state, "made_by": self._made_by()}
        name = f"{self.token}-{part[0]}-of-{part[1]}"
        self._writer = threading.Thread(
            target=self._write, args=(number, name, copies, state), name=f"checkpoint-{number}"
        )
        self._writer.start()

    def _write(self, number: int, name: str, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        started = time.monotonic()
        folder = self.scratch / f"write-{number}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            save_file(tensors, folder / "state.safetensors")
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
            if self.runtime.is_main:
                # First: whoever goes on from this checkpoint, on another machine too, needs the lines up to it.
                self.step.save_metrics()
            store.publish(folder, store.join(self.uri, f"step-{number}", name))
            if self.runtime.is_main:
                self._prune()
        except (KubealignError, OSError) as error:
            # Training is worth more than one checkpoint; the alert on the counter tells a person.
            log.error("checkpoint %d could not be written: %s", number, report(error))
            self._count("checkpoint_failures_total", 1)
        else:
            self._count("checkpoint_last_success_timestamp_seconds", time.time())
            self._count("checkpoint_duration_seconds", time.monotonic() - started)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _count(self, name: str, value: float) -> None:
        if self.metrics is not None:
            self.metrics.count(name, value)

    def _prune(self) -> None:
        """Delete all before the last `keep` complete ones, the incomplete among them too."""
        kept = sorted({number for number, _ in self.complete()})[-self.keep :]
        entries = store.open_store(self.uri).list()
        numbers = {int(match.group(1)) for entry in entries if (match := re.match(r"step-(\d+)/", entry.key))}
        for number in numbers:
            if kept and number < kept[0]:
                store.delete(store.join(self.uri, f"step-{number}"))

    def wait(self) -> None:
        """Until the one being written is done."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def discard(self) -> None:
        """Delete all: the step is done, and its output holds the weights. The main rank's; others are past writing."""
        store.delete(self.uri)
        for folder in self.step.work.glob("checkpoint-scratch-*"):
            shutil.rmtree(folder, ignore_errors=True)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
