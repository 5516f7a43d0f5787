"""Processes that do not outlive the one that started them."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> Callable[[], None]:
    """A `preexec_fn`: the child gets SIGTERM when the thread that started it ends, even by SIGKILL (Linux only)."""
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before the fork: after it, little is safe

    def in_child() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before prctl was called
            os._exit(143)

    return in_child


def kill_marked(marker: str) -> int:
    """Kill every process that has `marker` ("NAME=value") in its environment; returns how many there were.

    torchrun's workers live in sessions of their own, so this is what finds them once torchrun itself is gone.
    """
    count = 0
    for environ in Path("/proc").glob("[0-9]*/environ"):
        pid = int(environ.parent.name)
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            if pid != os.getpid() and marker.encode() in environ.read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                count += 1
    return count
