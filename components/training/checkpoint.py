"""Checkpoints: complete or absent, written in the background, the newest readable one used."""

import json
import logging
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from components.core import store
from components.core.errors import KubealignError, UserError, report
from components.core.metrics import Metrics
from components.core.step import Step

log = logging.getLogger(__name__)
_NUMBER = re.compile(r"step-(\d+)/MANIFEST\.json")


class Checkpoints:
    """The folder checkpoints/ of a step: step-<n>/ with state.safetensors (tensors) and state.json (the rest).

    Generators are not stored: every random draw of a trainer is seeded from its coordinates (core/seeds.py).
    """

    def __init__(self, step: Step, keep: int, metrics: Metrics | None) -> None:
        self.uri = store.join(step.spec.output, "checkpoints")
        self.scratch = step.work / "checkpoint-scratch"
        self.step = step
        self.fingerprint = step.spec.fingerprint()
        self.keep = keep
        self.metrics = metrics
        self._writer: threading.Thread | None = None

    def numbers(self) -> list[int]:
        """Complete checkpoints, oldest first."""
        found = (_NUMBER.fullmatch(entry.key) for entry in store.open_store(self.uri).list())
        return sorted(int(match.group(1)) for match in found if match)

    def latest(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest readable checkpoint of these very settings, or None. A damaged one is passed over, and said so."""
        for number in reversed(self.numbers()):
            uri = store.join(self.uri, f"step-{number}")
            try:
                folder = store.fetch(uri, self.scratch / f"read-{number}")
                state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                tensors = load_file(folder / "state.safetensors")
            except UserError as error:
                log.warning("checkpoint %d is damaged and passed over: %s", number, error)
                continue
            if state.pop("fingerprint") != self.fingerprint:
                log.warning("checkpoint %d is of other settings and passed over", number)
                continue
            return number, tensors, state
        return None

    def save(self, number: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Copy the state now and write it while training goes on; waits for the one before it."""
        self.wait()
        # clone also where the tensor is on the CPU already: the optimiser changes it in place.
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        state = {**state, "fingerprint": self.fingerprint}
        self._writer = threading.Thread(target=self._write, args=(number, copies, state), name=f"checkpoint-{number}")
        self._writer.start()

    def _write(self, number: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        started = time.monotonic()
        folder = self.scratch / f"write-{number}"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            save_file(tensors, folder / "state.safetensors")
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
            store.publish(folder, store.join(self.uri, f"step-{number}"))
            self.step.save_metrics()
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
        for number in self.numbers()[: -self.keep]:
            store.delete(store.join(self.uri, f"step-{number}"))

    def wait(self) -> None:
        """Until the one being written is done."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def discard(self) -> None:
        """Delete all: the step is done, and its output holds the weights."""
        self.wait()
        store.delete(self.uri)
        shutil.rmtree(self.scratch, ignore_errors=True)


def scratch_folder(step: Step, name: str) -> Path:
    """An empty local folder for output that is about to be published."""
    folder = step.work / f"{name}-scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
