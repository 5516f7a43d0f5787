"""The programs of the cluster as processes of this machine, that outlive whoever started them."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster.harness.machine import STATE
from tests.programs import program

_STOP_SECONDS = 15


class Process:
    """One long-lived program; its process id and log lie in the cluster's folder."""

    def __init__(self, name: str, command: list[str], env: dict[str, str] | None = None) -> None:
        self.name, self.command, self._env = name, command, env or {}
        self.log = STATE / "log" / name
        self._pid_file = STATE / "pid" / name

    def start(self) -> None:
        if self.pid() is not None:
            return
        for path in (self.log, self._pid_file):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [_resolved(self.command[0]), *self.command[1:]], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **self._env}, cwd="/",
            )  # fmt: skip
        self._pid_file.write_text(f"{process.pid} {_started(process.pid)}")

    def pid(self) -> int | None:
        """The id of our process, while it lives; a number that another process has got since does not count."""
        with contextlib.suppress(OSError, ValueError):
            pid, started = self._pid_file.read_text().split()
            if _started(int(pid)) == started:
                return int(pid)
        return None

    def kill(self, number: int = signal.SIGTERM) -> None:
        """Signal it and wait for its end."""
        pid = self.pid()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            if not _ended_within(pid, _STOP_SECONDS):
                os.kill(pid, signal.SIGKILL)
                _ended_within(pid, _STOP_SECONDS)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        self._pid_file.unlink(missing_ok=True)

    def last_lines(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_bytes()[-2000:].decode(errors="replace")
        return ""


def _resolved(name: str) -> str:
    """A program of the machine, or "@name" for one that we build."""
    return str(program(name[1:])) if name.startswith("@") else name


def _started(pid: int) -> str:
    """The start time in the kernel's ticks; "" for what has ended, a zombie too."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""


def _ended_within(pid: int, seconds: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def until(what: str, done: Callable[[], object], seconds: float, pause: float = 0.25) -> None:
    """Ask until it is so; for servers that tell nobody when they are ready. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if done():
                return
        except Exception as error:  # noqa: BLE001 (not ready shows itself in many ways)
            last = error
        time.sleep(pause)
    raise TimeoutError(f"{what}: not within {seconds:.0f} s" + (f" ({last})" if last else ""))
