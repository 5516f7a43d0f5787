"""Bradley-Terry on pairs, as pure functions of tensors."""

import torch
import torch.nn.functional as F


def pair_losses(chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | None = None) -> torch.Tensor:
    """-log sigma(r_chosen - r_rejected - margin), (pairs,) -> (pairs,), in fp32 (Askell et al. 2021 eq. 3.1)."""
    gap = chosen.float() - rejected.float()
    return -F.logsigmoid(gap if margin is None else gap - margin)


def pair_weights(prompt_of_pair: torch.Tensor, prompts: int) -> torch.Tensor:
    """(pairs,) weight of each pair: 1 / (pairs of its prompt), so that every prompt counts once (InstructGPT §3.5)."""
    counts = torch.bincount(prompt_of_pair, minlength=prompts)
    return 1.0 / counts[prompt_of_pair].float()


def accuracy(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """(pairs,) 1 where the chosen one scores higher, 1/2 at a tie, 0 below."""
    return (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
