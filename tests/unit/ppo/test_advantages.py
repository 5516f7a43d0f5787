import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.ppo.advantages import gae, whiten


def test_gae_of_three_tokens_by_hand() -> None:
    """gamma 1, lambda 0.5, rewards 0 0 1, values 0.5 0.2 0.4:

    delta_2 = 1 + 0 - 0.4 = 0.6; delta_1 = 0 + 0.4 - 0.2 = 0.2; delta_0 = 0 + 0.2 - 0.5 = -0.3
    A_2 = 0.6; A_1 = 0.2 + 0.5 * 0.6 = 0.5; A_0 = -0.3 + 0.5 * 0.5 = -0.05; R = A + V
    """
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.2, 0.4]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3), 1.0, 0.5)
    assert advantages[0].tolist() == pytest.approx([-0.05, 0.5, 0.6])
    assert returns[0].tolist() == pytest.approx([0.45, 0.7, 1.0])


def test_gae_discounts_rewards_and_values() -> None:
    """gamma 0.9, lambda 0.8: delta_1 = 2 - 1 = 1; delta_0 = 1 + 0.9 * 1 - 3 = -1.1; A_0 = -1.1 + 0.72 * 1 = -0.38."""
    advantages, returns = gae(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]]), torch.ones(1, 2), 0.9, 0.8)
    assert advantages[0].tolist() == pytest.approx([-0.38, 1.0])
    assert returns[0].tolist() == pytest.approx([2.62, 2.0])


def test_padding_changes_nothing_and_stays_zero() -> None:
    rewards, values = torch.tensor([[0.1, 1.0]]), torch.tensor([[0.3, 0.6]])
    alone = gae(rewards, values, torch.ones(1, 2), 0.99, 0.95)
    garbage = torch.tensor([[7.0, -9.0, 4.0]])
    padded = gae(
        torch.cat([rewards, garbage], 1), torch.cat([values, garbage], 1), torch.tensor([[1.0, 1, 0, 0, 0]]), 0.99, 0.95
    )
    for one, other in zip(alone, padded, strict=True):
        assert torch.allclose(one, other[:, :2])
        assert other[:, 2:].tolist() == [[0.0, 0.0, 0.0]]


def test_lambda_one_gives_the_sum_of_later_rewards() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.1, -2.0]])
    _, returns = gae(rewards, values, torch.ones(1, 3), 1.0, 1.0)
    assert returns[0].tolist() == pytest.approx([6.0, 5.0, 3.0])


@given(st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=2, max_size=5))
def test_whitening_sees_masked_tokens_alone(rows: list[list[float]]) -> None:
    width = max(len(row) for row in rows) + 2
    values = torch.full((len(rows), width), 1e3)
    mask = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        values[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    flat = torch.tensor([value for row in rows for value in row])
    found = whiten(values, mask)
    assert torch.all(found[mask == 0] == 0)
    expected = (flat - flat.mean()) / torch.sqrt(flat.var(unbiased=False) + 1e-8)
    assert torch.allclose(found[mask == 1], expected, atol=1e-3)


def test_whitening_by_hand() -> None:
    found = whiten(torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    assert found[0].tolist() == pytest.approx([-1.0, 1.0, 0.0])


def test_one_token_is_left_as_it_is() -> None:
    assert whiten(torch.tensor([[2.0, 5.0]]), torch.tensor([[1.0, 0.0]])).tolist() == [[2.0, 0.0]]
