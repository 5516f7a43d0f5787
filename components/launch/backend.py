"""What a place that runs steps must do."""

from pathlib import Path
from typing import Protocol

from components.core.config import Resources

# Started by torchrun, one process a device; the others are one plain process.
TRAINING_STEPS = ("base_model", "sft", "pmp", "reward_model", "ppo")


class TrainingBackend(Protocol):
    """Starts a step that has its spec.json and waits for its end.

    A backend on a cluster will need the same four things: what to run, where its spec is, how many processes, and a
    local folder for what it has to remember.
    """

    name: str

    def run(self, step: str, spec_uri: str, resources: Resources, work: Path) -> None:
        """Return when the step has ended well.

        Raises UserError, RetryableError or Cancelled with the step's own last words. When this process gets SIGTERM or
        SIGINT, the step is told to stop, may write its checkpoint, and Cancelled is raised.
        """
        ...
