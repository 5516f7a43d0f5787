"""Generalised advantage estimation and whitening, as pure functions of (responses, time) tensors and their mask.

A mask is 1 on a response's own tokens, which start at column 0.
"""

import torch


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns), both (responses, time) and 0 outside the mask (Schulman et al. 2015, eq. 16).

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   R_t = A_t + V_t

    The value after the last token is 0, also where the length limit cut the response: nothing is bootstrapped
    (recipe.md §4.3 step 5, §7).
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(following)
    for time in range(rewards.shape[1] - 1, -1, -1):
        own = mask[:, time]
        delta = rewards[:, time] + gamma * next_value - values[:, time]
        following = (delta + gamma * lam * following) * own
        next_value = values[:, time] * own
        advantages[:, time] = following
    return advantages, (advantages + values) * mask


def whiten(values: torch.Tensor, mask: torch.Tensor, epsilon: float = 1e-8) -> torch.Tensor:
    """Mean 0 and deviation 1 over the masked entries alone (biased variance); 0 outside. Fewer than two: unchanged."""
    count = mask.sum()
    if count < 2:
        return values * mask
    mean = (values * mask).sum() / count
    variance = ((values - mean) ** 2 * mask).sum() / count
    return (values - mean) * torch.rsqrt(variance + epsilon) * mask
