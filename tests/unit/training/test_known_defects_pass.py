"""Defects of other trainers that one forward pass can show; the table is in test_known_defects.py."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from components.core.chatml import IGNORE, ChatTokenizer
from components.ppo.rollout import Experience, response_values, statistics
from components.reward_model.losses import pair_losses
from components.reward_model.model import RewardModel
from components.training import scoring
from components.training.models import load_policy
from components.training.scoring import response_log_probs, response_tokens, token_nll
from tests import ragged
from tests.dumped import Dump
from tests.steps import run_step

Trained = Callable[[str, int], Dump]
FEW = settings(max_examples=15)
ROWS = st.lists(st.lists(st.integers(33, 300), min_size=2, max_size=12), min_size=2, max_size=5)
VOCABULARY = 320


@pytest.fixture(scope="module")
def model(model_folders: Callable[[str], Path]) -> PreTrainedModel:
    return load_policy(model_folders("qwen2"))


@pytest.fixture(scope="module")
def scorer(model_folders: Callable[[str], Path]) -> RewardModel:
    torch.manual_seed(3)
    return RewardModel.from_base(model_folders("qwen2"), "mlp")


def _gradients(model: torch.nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@given(rows=ROWS, shift=st.integers(1, 200))
@FEW
def test_packed_examples_attend_to_each_other_trl1230(
    model: PreTrainedModel, scorer: RewardModel, rows: list[list[int]], shift: int
) -> None:
    """Other tokens in the first row leave loss and gradients of the others as they are (trl#1230, OpenRLHF#587), which
    are also what the others give without it."""
    masked = [[IGNORE] * len(rows[0]), *rows[1:]]
    others = [[33 + (token + shift) % 260 for token in rows[0]], *rows[1:]]
    starts = [1] * len(rows)
    for root, loss in (
        (model, lambda given: token_nll(model, given, masked[-len(given) :]).sum()),
        (model, lambda given: response_tokens(model, given, starts[-len(given) :])[0][-1]),
        (scorer, lambda given: scorer(given)[-1]),
    ):
        values = [loss(given) for given in (rows, others, rows[1:])]
        first, *rest = [_gradients(root, value) for value in values]
        for value, gradients in zip(values[1:], rest, strict=True):
            assert float(value.detach()) == pytest.approx(float(values[0].detach()), abs=1e-4, rel=1e-5)
            for one, other in zip(first, gradients, strict=True):
                assert torch.allclose(one, other, atol=1e-4, rtol=1e-4)


@given(rows=st.lists(st.lists(st.integers(33, 300), min_size=1, max_size=9), min_size=2, max_size=5))
@FEW
def test_first_token_of_a_segment_is_a_target_trl805(model: PreTrainedModel, rows: list[list[int]]) -> None:
    """With a label on every token a row has one target less than tokens: nothing is predicted from the row before."""
    with torch.no_grad():
        together = token_nll(model, rows, rows)
        alone = torch.cat([token_nll(model, [row], [row]) for row in rows])
    assert len(together) == sum(len(row) - 1 for row in rows)
    assert torch.allclose(together, alone, atol=1e-5)


def test_kl_is_a_mean_over_responses_and_not_columns_openinstruct756() -> None:
    """Responses of 1 and 3 tokens by hand: k1 sums log-ratios, k3 sums 1/w - 1 + log w; then the mean over the two."""

    def item(gaps: list[float], values: list[float]) -> Experience:
        zeros, gap = torch.zeros(len(gaps)), torch.tensor(gaps)
        return Experience(
            sequence=[1, 2] + [5] * len(gaps), start=2, truncated=len(gaps) == 3, raw_score=2.0 * len(gaps),
            log_probs=gap, reference=zeros, values=torch.tensor(values), advantages=zeros,
            returns=torch.tensor([1.0, 2.0, 4.0])[: len(gaps)],
        )  # fmt: skip

    found = statistics([item([math.log(2)], [0.0]), item([0.0, -math.log(2), 0.0], [1.0, 1.0, 1.0])])
    assert found["ppo_kl"] == pytest.approx(0.0, abs=1e-6)
    k3 = (0.5 - 1 + math.log(2)) + (2 - 1 - math.log(2))
    assert found["ppo_kl_k3"] == pytest.approx(k3 / 2)
    assert found["ppo_response_length_tokens"] == 2.0 and found["ppo_truncated_ratio"] == 0.5
    assert (found["ppo_reward_mean"], found["ppo_reward_std"]) == (4.0, 2.0)
    # Returns 1 1 2 4, values 0 1 1 1, left over 1 0 1 3: variances 1.5 and 1.1875.
    assert found["ppo_value_explained_variance_ratio"] == pytest.approx(1 - 1.1875 / 1.5)


@given(rows=ROWS, temperature=st.floats(0.3, 3.0), gaps=st.lists(st.floats(-3, 3), min_size=1, max_size=9))
@FEW
def test_entropy_or_k3_is_negative_rlhfbook216(
    model: PreTrainedModel, rows: list[list[int]], temperature: float, gaps: list[float]
) -> None:
    """Entropy is that of the whole distribution at the sampling temperature, token by token, between 0 and ln V; the
    k3 estimate of KL is never negative (rlhf-book#216)."""
    with torch.no_grad():
        found = response_tokens(model, rows, [1] * len(rows), temperature)[1]
        logits = [model(torch.tensor([row])).logits[0, :-1] / temperature for row in rows]
    expected = torch.distributions.Categorical(logits=torch.cat(logits).double()).entropy()
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert bool((found >= 0).all()) and bool((found <= math.log(VOCABULARY) + 1e-5).all())
    zeros = torch.zeros(len(gaps))
    item = Experience(
        sequence=[0] * (1 + len(gaps)), start=1, truncated=False, raw_score=0.0, log_probs=torch.tensor(gaps),
        reference=zeros, values=zeros, advantages=zeros, returns=zeros,
    )  # fmt: skip
    assert statistics([item])["ppo_kl_k3"] >= -1e-6


class Largest(TorchDispatchMode):
    """The most rows of any tensor over the vocabulary, and the most elements of any at all."""

    rows = elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor) and value.ndim:
                self.elements = max(self.elements, value.numel())
                # (hidden, vocabulary) is the output layer, seen from its other side.
                if value.shape[-1] == VOCABULARY and value.shape != (32, VOCABULARY):
                    self.rows = max(self.rows, value.numel() // VOCABULARY)
        return result


PIECE = 40


@pytest.mark.parametrize("small", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize("step", list(ragged.SETTINGS))
def test_logits_of_every_token_are_kept_trl3678(
    model_folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, small: bool
) -> None:
    """Of one micro-batch with all eight rows no tensor of tokens x vocabulary is made, in sampling, scoring, forward or
    backward: logits are for scored positions alone and, where these are many, in pieces (trl#3678, #234)."""
    tokenizer = ChatTokenizer.load(model_folders("qwen2"))
    given = ragged.inputs(step, model_folders("qwen2"), tmp_path / "in")
    config = ragged.SETTINGS[step] | {"micro_batch_tokens": ragged.budget(step, tokenizer, 1)}
    if step == "ppo" and not small:
        config |= {"ptx": {"coefficient": 0.0}}  # every token of a document is scored
    if small:
        monkeypatch.setattr(scoring, "_LOGITS", PIECE * VOCABULARY)
    with Largest() as largest:
        run_step(step, tmp_path / "out", given, config)
    if step in ("pmp", "reward_model"):
        assert largest.rows == 0
        return
    if step == "sft":
        tokens = sum(len(row.input_ids) for row in ragged.chats(tokenizer))
        scored = sum(sum(label != IGNORE for label in row.labels) for row in ragged.chats(tokenizer))
        assert scored < 0.7 * tokens
    else:
        tokens, scored = 8 * min(ragged.PROMPT_LENGTHS), 8 * 6
    assert 0 < largest.rows <= (PIECE if small else scored)
    assert largest.elements < tokens * VOCABULARY


@given(rows=ROWS, size=st.integers(1, 30))
@FEW
def test_logits_in_pieces_give_other_gradients_trl234(model: PreTrainedModel, rows: list[list[int]], size: int) -> None:
    """Pieces of any size have the values and gradients of the whole: SFT loss, log-probabilities and entropy."""
    found = []
    for elements in (1 << 27, size * VOCABULARY):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scoring, "_LOGITS", elements)
            nll = token_nll(model, rows, rows)
            log_probs, entropy = response_tokens(model, rows, [1] * len(rows), 0.8, entropy_gradient=True)
            weighted = log_probs * torch.linspace(-1, 1, len(log_probs))
            gradients = _gradients(model, nll.mean() + weighted.mean() + entropy.mean())
        found.append([nll.detach(), log_probs.detach(), entropy.detach(), *gradients])
    for whole, pieces in zip(*found, strict=True):
        assert torch.allclose(whole, pieces, atol=1e-5)


@given(rows=ROWS, data=st.data())
@FEW
def test_reordering_by_length_is_not_undone_verl1440(
    model: PreTrainedModel, scorer: RewardModel, rows: list[list[int]], data: st.DataObject
) -> None:
    """Log-probabilities, values and scores follow their rows through any order and any micro-batches (verl#1440)."""
    order = data.draw(st.permutations(range(len(rows))))
    budget = data.draw(st.integers(1, 60))

    def figures(given: list[list[int]], tokens: int) -> list[list[torch.Tensor]]:
        parts = [row[:1] for row in given], [row[1:] for row in given]
        log_probs = response_log_probs(model, *parts, temperature=1.0, batch_tokens=tokens)
        values = response_values(scorer, given, [1] * len(given), tokens)
        return [log_probs, values, [torch.tensor(score) for score in scorer.score(given, tokens)]]

    shuffled = figures([rows[i] for i in order], budget)
    for one, other in zip(figures(rows, 10_000), shuffled, strict=True):
        for place, i in enumerate(order):
            assert torch.allclose(one[i], other[place], atol=1e-5)


def test_score_head_in_sixteen_bits_trlx442(model_folders: Callable[[str], Path]) -> None:
    """Head and log-sigmoid compute in fp32 whatever the weights are, and gaps of any size stay finite (trlx#442)."""
    model = RewardModel.from_base(model_folders("qwen2"), "linear", dtype=torch.bfloat16)
    hidden = torch.randn(50, 32).bfloat16()
    found = model.read(hidden)
    assert found.dtype == torch.float32
    assert torch.allclose(found, hidden.float() @ model.head[0].weight.float()[0], atol=1e-6)  # type: ignore[operator]
    assert model([[5, 6], [7]]).dtype == torch.float32
    chosen = torch.tensor([1e4, -1e4, 1.0], dtype=torch.bfloat16, requires_grad=True)
    losses = pair_losses(chosen, torch.tensor([-1e4, 1e4, 1.0], dtype=torch.bfloat16))
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert losses.tolist() == pytest.approx([0.0, 2e4, math.log(2)], rel=1e-2)
    assert chosen.grad is not None and chosen.grad.tolist() == pytest.approx([0.0, -1.0, -0.5])
