"""One form for the log of every process, and the numbers that a person is shown."""

import logging
import sys
from typing import TextIO

from components.core.errors import KubealignError

# What a person is shown of a step that runs, in the log and on the screen.
SHOWN = {
    "training_loss": "loss", "ppo_reward_mean": "reward", "ppo_kl": "KL", "training_tokens_per_second": "tokens/s",
}  # fmt: skip


class _Lines(logging.StreamHandler[TextIO]):
    """A signal's handler may raise in the middle of a line; logging would print that and go on as if nothing were."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, KubealignError):
            raise error
        super().handleError(record)


def log_to_stderr() -> None:
    """In lines of time, level and logger."""
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, handlers=[_Lines()])
    logging.getLogger("botocore").setLevel(logging.WARNING)  # says at every start where it found its credentials
