"""Steps as processes of this machine: torchrun for what trains, plain Python for the rest."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import components
from components.core.config import Resources, step_config
from components.core.errors import Cancelled, KubealignError, UserError
from components.core.spec import StepSpec
from components.launch.backend import ENVIRONMENT, TRAINING_STEPS
from components.launch.last_words import (
    error_of,
    is_consequence,
    killing_signal,
    read_last_words,
    sentences,
    signal_error,
)
from components.launch.processes import end_with_parent, kill_marked

log = logging.getLogger(__name__)

TERMINATION_LOG = "termination.log"
_REPORT_SECONDS = 5.0  # torchrun's own time to say what happened, after its workers have had theirs


class LocalBackend:
    """`grace_seconds` is what a step gets between being told to stop and being killed: time for a checkpoint."""

    name = "local"

    def __init__(self, grace_seconds: float = 30.0) -> None:
        self.grace_seconds = grace_seconds

    def adopts(self, spec: StepSpec) -> bool:
        """Never: processes end with their launcher."""
        return False

    def run(self, spec: StepSpec) -> None:
        step, resources = spec.step, step_config(spec.step, spec.config).resources
        last_words = spec.work.resolve() / TERMINATION_LOG
        last_words.parent.mkdir(parents=True, exist_ok=True)
        marker = f"KUBEALIGN_TERMINATION_LOG={last_words}"
        if kill_marked(marker):
            log.warning("%s: ended processes of an earlier attempt whose launcher was killed", step)
        last_words.unlink(missing_ok=True)
        tail: deque[str] = deque(maxlen=200)
        with _Child(self.grace_seconds, marker) as child:
            code = child.wait(self._command(step, spec.uri, resources), self._environment(resources, last_words), tail)
        if child.cancelled:
            raise Cancelled(f"{step} was cancelled")
        if code != 0:
            raise _failure(step, code, last_words, list(tail))

    def _command(self, step: str, spec_uri: str, resources: Resources) -> list[str]:
        worker = ["-m", f"components.{step}", "--spec", spec_uri]
        if step not in TRAINING_STEPS:
            return [sys.executable, *worker]
        # A machine's own name does not always resolve; the loopback address always works.
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        numbers = [f"--nproc-per-node={resources.processes}", f"--shutdown-timeout={max(1, int(self.grace_seconds))}"]
        return [sys.executable, *torchrun, *numbers, *worker]

    def _environment(self, resources: Resources, last_words: Path) -> dict[str, str]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = resources.threads or max(1, cores // resources.processes)
        return {
            **environment_with_code(),
            **ENVIRONMENT,
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ENVIRONMENT["OMP_WAIT_POLICY"]),
            "KUBEALIGN_METRICS_ADDRESS": os.environ.get("KUBEALIGN_METRICS_ADDRESS", "127.0.0.1"),
            "KUBEALIGN_TERMINATION_LOG": str(last_words),
        }


def environment_with_code() -> dict[str, str]:
    """This environment, with the rooms importable wherever the child is started (they may not be installed)."""
    code = str(Path(components.__file__).resolve().parent.parent)
    paths = [code, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


class _Child:
    """One child, its output, and the signals that are passed on to it while it lives."""

    def __init__(self, grace_seconds: float, marker: str) -> None:
        self.cancelled = False
        self._grace = grace_seconds
        self._marker = marker
        self._process: subprocess.Popen[str] | None = None
        self._timer: threading.Timer | None = None
        self._restore: dict[int, Any] = {}

    def __enter__(self) -> "_Child":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._restore[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._restore.items():
            signal.signal(number, handler)
        if self._timer is not None:
            self._timer.cancel()

    def wait(self, command: list[str], environment: dict[str, str], tail: deque[str]) -> int:
        """Start the child and pass its output on until it ends; returns its exit code (negative: the signal)."""
        # A process group of its own: a signal to the whole group of the launcher would reach torchrun twice, and the
        # second one breaks off its orderly shutdown.
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment,
            process_group=0, preexec_fn=end_with_parent(),  # noqa: PLW1509 (no thread yet)
        )  # fmt: skip
        if self.cancelled:
            self.stop()
        reader = threading.Thread(target=self._pass_on, args=(self._process, tail), daemon=True)
        reader.start()
        code = self._process.wait()
        kill_marked(self._marker)  # workers whose torchrun was killed would train on, and keep the pipe open
        reader.join()
        return code

    def stop(self) -> None:
        """Tell the child to stop, and kill it when it has not done so in time."""
        self.cancelled = True
        if self._process is not None and self._timer is None:
            self._process.terminate()
            self._timer = threading.Timer(self._grace + _REPORT_SECONDS, self._kill)
            self._timer.daemon = True
            self._timer.start()

    def _on_signal(self, number: int, _: object) -> None:
        if number == signal.SIGINT and self.cancelled:
            self._kill()  # somebody at the keyboard who does not want to wait
        else:
            self.stop()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        kill_marked(self._marker)

    def _pass_on(self, process: "subprocess.Popen[str]", tail: deque[str]) -> None:
        for line in process.stdout or ():
            tail.append(line.rstrip())
            try:
                sys.stdout.write(line)
                sys.stdout.flush()
            except OSError:  # nobody reads us any more: whoever started us was killed
                self.stop()


def _failure(step: str, code: int, last_words: Path, tail: list[str]) -> KubealignError:
    said = read_last_words(last_words)
    number = killing_signal(tail) or (-code if code < 0 else None)
    # A rank that was killed says nothing; then its peers have the last word, and it is about what followed.
    if number is not None and (said is None or is_consequence(error_of(*said))):
        return signal_error(step, number)
    if said is not None:
        return error_of(*said)
    spoken = list(sentences(tail))
    return UserError(f"{step} failed with exit code {code}" + (f"; its last line: {spoken[-1]}" if spoken else ""))
