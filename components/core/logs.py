"""One form for the log of every process, and the numbers that a person is shown."""

import logging

# What a person is shown of a step that runs, in the log and on the screen.
SHOWN = {
    "training_loss": "loss", "ppo_reward_mean": "reward", "ppo_kl": "KL", "training_tokens_per_second": "tokens/s",
}  # fmt: skip


def log_to_stderr() -> None:
    """In lines of time, level and logger."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)  # says at every start where it found its credentials
