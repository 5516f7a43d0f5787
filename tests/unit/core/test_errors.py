import errno
import os
import pickle

import pytest

from components.core.errors import (
    Cancelled,
    KubealignError,
    RetryableError,
    UserError,
    exit_code_for,
    from_os_error,
    report,
)


def os_error(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("x"), 1),
        (RetryableError("x"), 75),
        (Cancelled("x"), 143),
        (KubealignError("x"), 1),
        (os_error(errno.ENOSPC), 1),
        (os_error(errno.EIO), 75),
        (ConnectionResetError("peer"), 75),
        (TimeoutError(), 75),
        (os_error(errno.EACCES), 1),
        (KeyboardInterrupt(), 143),
        (SystemExit(7), 7),
        (SystemExit(None), 0),
        (SystemExit("a message"), 1),
        (ZeroDivisionError("a bug"), 1),
    ],
)
def test_every_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert exit_code_for(error) == code


def test_report_says_what_where_and_how_to_mend() -> None:
    error = UserError("must be > 0", where="tiny.yaml: ppo.clip", fix="set it to 0.2")
    assert report(error) == "tiny.yaml: ppo.clip: must be > 0; set it to 0.2"
    assert report(UserError("only this")) == "only this"


@pytest.mark.parametrize(
    "error", [UserError("two\nlines  and\ttabs"), ValueError("a\nb"), ValueError(), KeyboardInterrupt()]
)
def test_report_is_one_line_and_never_empty(error: BaseException) -> None:
    line = report(error)
    assert line.strip() == line != ""
    assert not set("\n\t\r") & set(line)


def test_full_disk_is_named_with_its_path_and_mended_by_the_user() -> None:
    assert report(os_error(errno.ENOSPC, "/data/x")).startswith("disk full: /data/x; free space")
    assert report(os_error(errno.ENOSPC)).startswith("disk full: No space left on device")
    assert isinstance(from_os_error(os_error(errno.EDQUOT), "/data"), UserError)


def test_unknown_error_is_named_by_type() -> None:
    assert report(ZeroDivisionError("division by zero")) == "unexpected ZeroDivisionError: division by zero"


def test_error_from_a_worker_process_keeps_kind_place_and_fix() -> None:
    error = pickle.loads(pickle.dumps(RetryableError("down", where="s3://b", fix="try again")))
    assert (type(error), str(error)) == (RetryableError, "s3://b: down; try again")
