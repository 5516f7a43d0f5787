"""PPO's losses token by token, as pure functions of (tokens,) tensors. The caller sums and divides by global counts."""

import torch


def policy_losses(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, ratio, clipped) of each token: max(-A w, -A clip(w, 1 - clip, 1 + clip)) (Schulman et al. 2017, eq. 7)."""
    ratio = torch.exp(log_probs - old_log_probs)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), ratio, (clipped > plain).float()


def value_losses(values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """Half the larger of the squared errors of the value and of the value kept within `clip` of the rollout's."""
    kept = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (kept - returns) ** 2)
