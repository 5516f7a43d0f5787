"""A program run to its end, with its peak memory as the kernel counts it, and how busy others kept the machine."""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]
HOUSE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """What a program printed, and what it took."""

    output: str
    started: float
    peak_rss_bytes: int
    others_cores: float


def run(command: Sequence[str], threads: int) -> Ended:
    """Run with so many threads and no network. Raises SystemExit with the program's last words where it fails."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as err:
        started, busy = time.time(), _busy_seconds()
        child = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=HOUSE)
        # Not Popen.wait: wait4 alone tells this child's memory apart from all others'.
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        others = _busy_seconds() - busy - used.ru_utime - used.ru_stime
        out.seek(0)
        err.seek(0)
        if child.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {child.returncode}:\n{err.read()[-3000:]}")
        return Ended(out.read(), started, used.ru_maxrss * 1024, max(others / (time.time() - started), 0.0))


def _busy_seconds() -> float:
    """Seconds that all cores of this machine together have been at work, or taken away by its host."""
    columns = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(int, columns)
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")
