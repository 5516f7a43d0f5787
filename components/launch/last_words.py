"""What a step's end means: by the last words that it left, else by what its log says last."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from components.core.errors import LOST_PEER, Cancelled, KubealignError, RetryableError, UserError

# What a signal that nobody sent is a sign of, and what mends it.
_SIGNS = {
    7: (
        "died of signal 7 (SIGBUS), as when /dev/shm is full",
        "raise resources.shared_memory, which is part of resources.memory",
    ),
    9: (
        "was killed (signal 9), most likely for lack of memory",
        "lower micro_batch_tokens or batch_size, or give it more memory (resources.memory)",
    ),
}


def read_last_words(path: Path) -> tuple[int, str] | None:
    """The exit code and the message that the rank that failed first has left, or None."""
    with contextlib.suppress(OSError, ValueError):
        code, _, message = path.read_text(encoding="utf-8", errors="replace").strip().partition(" ")
        return int(code), message
    return None


def error_of(code: int, message: str) -> KubealignError:
    """The error that an exit code stands for."""
    kinds: dict[int, type[KubealignError]] = {kind.exit_code: kind for kind in (RetryableError, Cancelled)}
    return kinds.get(code, UserError)(message)


def is_consequence(error: KubealignError) -> bool:
    """Whether this is as a rule what another process's end has led to, and not the cause."""
    return isinstance(error, Cancelled) or LOST_PEER in str(error)


def signal_error(where: str, number: int) -> KubealignError:
    """A process that ended by this signal, which nobody had sent to stop it."""
    if number == 6:  # NCCL's watchdog ends its process like this, and says so in the log alone
        return RetryableError(f"{where}: a process aborted (signal 6), as it does when it has {LOST_PEER}")
    what, fix = _SIGNS.get(number, (f"died of signal {number}", "see its log"))
    return UserError(f"{where}: a process {what}", fix=fix)


def killing_signal(lines: Iterable[str]) -> int | None:
    """The signal that torchrun says is the root cause; those that it lists before are its own, to the other ranks."""
    said = list(lines)
    cause = next((number for number, line in enumerate(said) if "Root Cause" in line), len(said))
    found = (re.search(r"Signal (\d+) \(SIG\w+\) received by PID", line) for line in said[cause:])
    return next((int(match[1]) for match in found if match and match[1] != "15"), None)


def sentences(lines: Iterable[str]) -> Iterator[str]:
    """Lines that say something, without the frame that torchrun draws around its summary."""
    for line in lines:
        stripped = line.strip()
        if any(letter.isalpha() for letter in stripped) and "torch.distributed" not in line and "elastic" not in line:
            yield stripped[:500]
