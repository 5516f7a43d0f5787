"""The life of a step, the same for all: read spec.json, do the work, publish, write result.json last.

`python -m components.<step> --spec URI` is all that a step is started with, on a laptop and in a pod.
"""

import argparse
import contextlib
import logging
import os
import platform
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import components
from components.core import store
from components.core.config import step_config
from components.core.errors import Cancelled, UserError, exit_code_for, report
from components.core.logs import log_to_stderr
from components.core.spec import StepResult, StepSpec, is_done, read_spec

log = logging.getLogger(__name__)


class Step:
    """What a running step knows. `work` is its local folder: the output folder itself where that is local."""

    def __init__(self, spec: StepSpec) -> None:
        self.spec = spec
        self.config: Any = step_config(spec.step, spec.config, where=spec.uri)
        self.rank = int(os.environ.get("RANK", "0"))
        self.cancelled = False
        self.broken_off: Cancelled | None = None
        self._started = time.time()
        self.work = spec.work
        self.work.mkdir(parents=True, exist_ok=True)

    def has_input(self, name: str) -> bool:
        return bool(self.spec.inputs.get(name))

    def input(self, name: str) -> Path:
        """A published input as a verified local folder; one that was given raw, by hand, as it lies."""
        if not self.has_input(name):
            raise UserError(f"{self.spec.step}: input {name!r} is missing; give it as --input {name}=URI")
        raw = store.local_path(self.spec.inputs[name]) if name in self.spec.raw_digests else None
        if raw is not None:
            return raw
        return store.fetch(self.spec.inputs[name], self.work / "inputs" / name)

    def fetch_inputs(self) -> None:
        """Fetch every published input once, before the ranks of this machine read them."""
        for name, digest in self.spec.input_digests.items():
            if digest is not None:
                self.input(name)

    def scratch(self, name: str) -> Path:
        """An empty local folder for output that is about to be published."""
        folder = self.work / f"{name}-scratch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def output_uri(self, name: str = "") -> str:
        return store.join(self.spec.output, "output", name) if name else store.join(self.spec.output, "output")

    def publish(self, folder: Path, name: str = "") -> tuple[str, str]:
        """Publish a local folder as an output: (URI, manifest digest)."""
        uri = self.output_uri(name)
        return uri, store.publish(folder, uri)

    def save_metrics(self) -> None:
        """Copy metrics.jsonl beside the other outputs, where the work folder is elsewhere."""
        path = self.work / "metrics.jsonl"
        if store.local_path(self.spec.output) is None and path.exists():
            store.write_bytes(store.join(self.spec.output, "metrics.jsonl"), path.read_bytes())

    def restore_metrics(self) -> None:
        """Bring metrics.jsonl back when a step goes on on another machine."""
        path, uri = self.work / "metrics.jsonl", store.join(self.spec.output, "metrics.jsonl")
        if store.local_path(self.spec.output) is None and not path.exists() and store.exists(uri):
            path.write_bytes(store.read_bytes(uri))

    def finish(
        self, folders: dict[str, Path], metrics: dict[str, Any], peak_rss_bytes: int | None = None
    ) -> StepResult:
        """Publish every folder at output/<its name> and write result.json, the step's last act."""
        outputs, manifests = {}, {}
        for name, folder in folders.items():
            outputs[name], manifests[name] = self.publish(folder, name)
        self.save_metrics()
        result = StepResult(
            step=self.spec.step,
            run=self.spec.run,
            fingerprint=self.spec.fingerprint(),
            code=self.spec.code,
            outputs=outputs,
            manifests=manifests,
            metrics=metrics,
            started_at=self._started,
            seconds=time.time() - self._started,
            peak_rss_bytes=peak_rss_bytes or peak_rss(),
            versions=versions(),
        )
        store.write_bytes(store.join(self.spec.output, "result.json"), result.model_dump_json(indent=1).encode())
        return result


def peak_rss() -> int:
    """Peak resident memory of this process, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions() -> dict[str, str]:
    """Versions of what decides the numbers; nothing is imported for it."""
    found = {"kubealign": components.__version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "numpy", "pyarrow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def main(step_name: str, work: Callable[[Step], None], arguments: list[str] | None = None) -> int:
    """Entry point of every step; returns its exit code (0 done, 1 user error, 75 try again, 143 cancelled)."""
    parser = argparse.ArgumentParser(prog=f"python -m components.{step_name}")
    parser.add_argument("--spec", required=True, help="URI of the step's spec.json")
    options = parser.parse_args(arguments)
    log_to_stderr()
    step = None
    try:
        spec = read_spec(options.spec)
        if spec.step != step_name:
            raise UserError(f"{options.spec} is for step {spec.step}, not {step_name}")
        if is_done(spec):
            log.info("%s is already done", step_name)
            return 0
        step = Step(spec)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: _cancel(step))
        work(step)
    except Exception as raised:
        # Raised inside some libraries the Cancelled comes out as another exception (Thread.start: a KeyError).
        error = step.broken_off if step and step.broken_off else raised
        if not isinstance(error, (Cancelled, UserError)):
            log.exception("%s failed", step_name)
        _say_last_words(report(error), exit_code_for(error))
        return exit_code_for(error)
    return 0


def _cancel(step: Step) -> None:
    """A trainer sees the flag at its next step and saves a checkpoint; other steps have nothing to save."""
    if step.spec.step in ("data_prep", "evaluate", "annotate") or step.cancelled:
        step.broken_off = Cancelled(f"{step.spec.step} was cancelled")
        raise step.broken_off
    step.cancelled = True


def _say_last_words(message: str, code: int) -> None:
    """One line in the log and in the pod's termination log; the rank that failed first is the one that is kept."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    path = Path(os.environ.get("KUBEALIGN_TERMINATION_LOG", "/dev/termination-log"))
    with contextlib.suppress(OSError):  # outside a pod there is no such file, and the line above has been said
        if not path.exists() and "KUBEALIGN_TERMINATION_LOG" not in os.environ:
            return
        with path.open("a+", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(f"{code} {message}\n")
