"""Start the pipeline's process, watch it, and end it in good order."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components.core.errors import Cancelled, KubealignError, UserError, report
from components.launch.last_words import error_of
from components.launch.local import TERMINATION_LOG, environment_with_code
from components.launch.processes import end_with_parent, kill_marked
from pipelines.progress import StepView, views
from pipelines.runs import Run, RunState

_POLL_SECONDS = 0.3
_STOP_SECONDS = 60.0  # more than a step's grace, so that its own orderly end comes first


def run_to_end(run: Run, resume: bool, backend: str, show: Callable[[list[StepView]], None]) -> None:
    """Run the pipeline of a run whose settings are on record. Raises what the step that failed has said."""
    with run.lock():
        started = time.time()
        run.set_state(RunState(state="running", started_at=started))
        try:
            _run(run, resume, backend, show, started)
        except BaseException as error:
            ended = RunState(state="failed", started_at=started, ended_at=time.time(), error=report(error))
            if isinstance(error, Cancelled | KeyboardInterrupt):
                ended.state = "cancelled"
            with contextlib.suppress(KubealignError, OSError):  # a full disk must not hide what went wrong
                run.set_state(ended)
            raise
        run.set_state(RunState(state="done", started_at=started, ended_at=time.time()))


def resume_command(run: Run) -> str:
    return f"kubealign run --resume {run.id} --root {shlex.quote(run.root)}"


def _run(run: Run, resume: bool, backend: str, show: Callable[[list[StepView]], None], started: float) -> None:
    with run.log.open("ab") as log, _stop_signals() as stop:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} run {run.id}\n".encode())
        log.flush()
        process = _start(run, resume, backend, log)
        try:
            code = _watch(process, stop, lambda: show(views(run, started)))
        finally:
            if process.poll() is None:  # an error of ours, not of the pipeline
                _kill(process, run)
    if stop.requested:
        raise Cancelled(f"run {run.id} was stopped", fix=f"go on with `{resume_command(run)}`")
    if code != 0:
        raise _failure(run, started, code)


def _start(run: Run, resume: bool, backend: str, log: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "pipelines.local_runner", "--root", run.root, "--run", run.id]
    return subprocess.Popen(
        command + (["--resume"] if resume else []),
        stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0,
        preexec_fn=end_with_parent(),  # noqa: PLW1509 (no thread yet)
        env={**environment_with_code(), "PYTHONUNBUFFERED": "1", "KUBEALIGN_BACKEND": backend},
    )  # fmt: skip


def _watch(process: "subprocess.Popen[bytes]", stop: "_Stop", show: Callable[[], None]) -> int:
    """Wait for the end, showing progress; pass a stop request on once and do not wait for ever after it."""
    asked_at: float | None = None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(_POLL_SECONDS)
            show()
            return code
        show()
        if stop.requested and asked_at is None:
            asked_at = time.monotonic()
            process.terminate()
        if asked_at is not None and (stop.urgent or time.monotonic() - asked_at > _STOP_SECONDS):
            return -signal.SIGKILL


class _Stop:
    """Asked to stop once: in good order. Asked by the keyboard again: at once."""

    def __init__(self) -> None:
        self.requested = False
        self.urgent = False

    def on_signal(self, number: int, _: object) -> None:
        self.urgent = self.requested and number == signal.SIGINT
        self.requested = True


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    stop = _Stop()
    old = {number: signal.signal(number, stop.on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _kill(process: "subprocess.Popen[bytes]", run: Run) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for place in run.places():
        kill_marked(f"KUBEALIGN_TERMINATION_LOG={run.step_folder(place) / TERMINATION_LOG}")
    process.wait()


def _failure(run: Run, started: float, code: int) -> KubealignError:
    for view in views(run, started):
        if view.state in ("failed", "cancelled"):
            return error_of(view.exit_code, f"{view.step}: {view.error}; log: {run.log}")
    last = last_line(run.log)
    what = f"the pipeline stopped with exit code {code}" + (f": {last.removeprefix('error: ')}" if last else "")
    return UserError(what, fix=f"see {run.log}")


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in path.read_bytes()[-8192:].decode(errors="replace").splitlines()]
        return next((line[:300] for line in reversed(lines) if any(letter.isalpha() for letter in line)), "")
    return ""
