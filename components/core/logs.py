"""One form for the log of every process."""

import logging
from typing import TextIO


def log_to(stream: TextIO | None = None) -> None:
    """Log to `stream`, stderr when left out, in lines of time, level and logger."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=stream)
    logging.getLogger("botocore").setLevel(logging.WARNING)  # says at every start where it found its credentials
