"""How a job is getting on, whichever kind it is."""

from enum import Enum
from typing import Any


class JobState(Enum):
    """`UNSEEN`: no operator has touched it yet. `QUEUED`: suspended, which is how a queue holds a job back."""

    UNSEEN = "unseen"
    QUEUED = "queued"
    PENDING = "pending"
    RUNNING = "running"
    RESTARTING = "restarting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED)


def true_conditions(found: dict[str, Any]) -> dict[str, str]:
    """Type and message of every condition that holds now."""
    conditions = found.get("status", {}).get("conditions") or []
    return {c["type"]: c.get("message", "") for c in conditions if c.get("status") == "True"}
