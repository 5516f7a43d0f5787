"""What a place that runs steps must do."""

from typing import Protocol

from components.core.spec import StepSpec

# Started by torchrun, one process a device (sampling too); the others are one plain process.
TRAINING_STEPS = ("base_model", "sft", "pmp", "reward_model", "ppo", "sample_responses")

# Of every step, wherever it runs.
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Threads that wait by spinning halve the speed as soon as another program wants a core.
    "OMP_WAIT_POLICY": "passive",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class TrainingBackend(Protocol):
    """Starts a step that has its spec.json and waits for its end."""

    name: str

    def adopts(self, spec: StepSpec) -> bool:
        """Whether what an earlier launcher started is still at work on just this step.

        Then nothing of it may be touched, and `run` attends to its end. Raises UserError where something else is at
        work in the same place.
        """
        ...

    def run(self, spec: StepSpec) -> None:
        """Return when the step has ended well.

        Raises UserError, RetryableError or Cancelled with the step's own last words. When this process gets SIGTERM or
        SIGINT, the step is told to stop, may write its checkpoint, and Cancelled is raised.
        """
        ...
