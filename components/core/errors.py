"""The three ways a step can fail, and the exit code and the one line that each of them ends in.

Raise where the fact is known: `raise UserError("what", where="file, URI or option", fix="how to mend it")`.
Format in one place: the outermost `main` prints `report(exc)` and exits with `exit_code_for(exc)`.
"""

import errno


class KubealignError(Exception):
    """A failure that is understood. `str()` is "where: what; fix", so it must never carry a secret."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        # Only `what` goes to Exception.args: pickle, which brings errors back from worker processes, calls cls(*args)
        # and then restores `where` and `fix` from __dict__.
        super().__init__(what)
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        what = f"{self.where}: {self.args[0]}" if self.where else str(self.args[0])
        return f"{what}; {self.fix}" if self.fix else what


class UserError(KubealignError):
    """The user must change something; trying again as it is fails again."""

    exit_code = 1


class RetryableError(KubealignError):
    """Nothing is wrong with the request: the same command may well work later (EX_TEMPFAIL)."""

    exit_code = 75


class Cancelled(KubealignError):
    """Somebody asked the step to stop (128 + SIGTERM)."""

    exit_code = 143


# In the words of every rank whose peer has gone: a consequence, which tells a launcher to look for the cause elsewhere.
LOST_PEER = "lost the connection to another rank"

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_WORTH_A_RETRY = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ENETUNREACH, errno.EHOSTUNREACH}


def from_os_error(exc: OSError, where: str = "") -> KubealignError:
    """Say what an operating system error means for the user; `where` defaults to the file that the error names."""
    where = where or str(exc.filename or "")
    what = exc.strerror or str(exc) or type(exc).__name__
    if exc.errno in _DISK_FULL:
        return UserError(f"disk full: {where or what}", fix="free space there or choose another place")
    if isinstance(exc, ConnectionError | TimeoutError) or exc.errno in _WORTH_A_RETRY:
        return RetryableError(what, where=where, fix="try again")
    return UserError(what, where=where)


def _understood(exc: BaseException) -> KubealignError | None:
    if isinstance(exc, KeyboardInterrupt):
        return Cancelled("interrupted")
    if isinstance(exc, OSError):
        return from_os_error(exc)
    return exc if isinstance(exc, KubealignError) else None


def exit_code_for(exc: BaseException) -> int:
    """Exit code of a process that ends with `exc`: 1 for everything that is not known to be worth a retry."""
    if isinstance(exc, SystemExit):
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    known = _understood(exc)
    return known.exit_code if known else 1


def report(exc: BaseException) -> str:
    """The one line for the user: what, where, how to mend. Never empty, never more than a line."""
    known = _understood(exc)
    line = str(known) if known else f"unexpected {type(exc).__name__}: {exc}"
    return " ".join(line.split())
