import math

import pytest
import torch

from components.ppo.losses import policy_losses, value_losses


def test_policy_loss_by_hand() -> None:
    """Ratios 1, 1.5, 0.5, 1.5, 0.5 with clip 0.2 and advantages 1, 1, 1, -1, -1."""
    ratio = torch.tensor([1.0, 1.5, 0.5, 1.5, 0.5])
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    losses, found, clipped = policy_losses(torch.log(ratio), torch.zeros(5), advantages, 0.2)
    assert found.tolist() == pytest.approx(ratio.tolist())
    assert losses.tolist() == pytest.approx([-1.0, -1.2, -0.5, 1.5, 0.8])
    assert clipped.tolist() == [0.0, 1.0, 0.0, 0.0, 1.0]


def test_clipped_tokens_have_no_gradient() -> None:
    log_probs = torch.log(torch.tensor([1.5, 1.1])).requires_grad_()
    policy_losses(log_probs, torch.zeros(2), torch.ones(2), 0.2)[0].sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([0.0, -1.1])


def test_value_clip_is_a_band_around_the_rollouts_value() -> None:
    """clip 0.15, old 1: value 1.5 counts as 1.15; against return 2 the clipped error 0.85 is larger than 0.5, against
    return 0 the plain error 1.5 is."""
    values, old = torch.tensor([1.5, 1.5, 1.1]), torch.ones(3)
    losses = value_losses(values, old, torch.tensor([2.0, 0.0, 2.0]), 0.15)
    assert losses.tolist() == pytest.approx([0.5 * 0.85**2, 0.5 * 1.5**2, 0.5 * 0.9**2])


def test_ratio_one_gives_minus_the_advantage() -> None:
    log_probs = torch.tensor([-1.3, -0.2])
    losses, ratio, clipped = policy_losses(log_probs, log_probs, torch.tensor([0.7, -2.0]), 0.2)
    assert losses.tolist() == pytest.approx([-0.7, 2.0])
    assert ratio.tolist() == [1.0, 1.0]
    assert not math.fsum(clipped.tolist())
