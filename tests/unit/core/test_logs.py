"""A signal that comes while a line is written still ends the process."""

import io
import logging

import pytest

from components.core.errors import Cancelled
from components.core.logs import _Lines


class Interrupted(io.StringIO):
    """A stream in whose middle a signal's handler raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> None:
        raise self.error


def say(error: Exception) -> None:
    log = logging.Logger("interrupted")
    log.addHandler(_Lines(Interrupted(error)))
    log.info("a line")


def test_cancellation_in_the_middle_of_a_line_is_not_lost() -> None:
    with pytest.raises(Cancelled, match="stop"):
        say(Cancelled("stop"))


def test_stream_that_cannot_be_written_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    say(ValueError("closed"))
    assert "Logging error" in capsys.readouterr().err
