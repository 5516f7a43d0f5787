"""Who samples the responses of a rollout: the trainer's own policy, or an engine beside it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from components.training.sampling import Response, sample


class RolloutBackend(Protocol):
    """Samples with the newest weights it was given.

    It returns ids alone. Log-probabilities are recomputed by the trainer: an engine's kernels and precision differ, and
    PPO's ratio must be 1 before the first update.
    """

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        stop_ids: Sequence[int],
    ) -> list[Response]:
        """One response a prompt, in order, each drawn from its own seed; a stop id ends it and stays in its ids."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take over the policy's parameters under their Hugging Face names, as `named_parameters()` gives them.

        To be called after every update of the policy and before the next `generate`, by every rank. The tensors are
        read, never kept, so an iterator that gathers a sharded parameter at a time is enough.
        """
        ...


@dataclass(frozen=True)
class LocalSampler:
    """Samples with the trainer's own policy. `batch_tokens` bounds the cache: see `sample`."""

    model: PreTrainedModel
    batch_tokens: int

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        stop_ids: Sequence[int],
    ) -> list[Response]:
        return sample(
            self.model,
            prompts,
            seeds=seeds,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            stop_ids=stop_ids,
            batch_tokens=self.batch_tokens,
        )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Nothing to do: the weights are the policy's own. The iterator is left unread."""
