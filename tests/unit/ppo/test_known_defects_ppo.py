"""Defects of other PPO trainers; the table is in tests/unit/training/test_known_defects.py."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import components.ppo.train as ppo
from components.core.chatml import ChatTokenizer
from components.core.config import PPOConfig
from components.ppo.losses import policy_losses
from components.ppo.rewards import KLCoefficient, RunningMoments
from components.ppo.rollout import Experience, response_values, reward
from components.reward_model.model import RewardModel
from components.training.data import mask_of, pad
from components.training.engine import Engine
from components.training.models import load_policy
from components.training.scoring import response_log_probs
from tests import ragged
from tests.dumped import Dump, read, record
from tests.steps import comparisons, run_step, weights


@dataclass
class Watched:
    """A PPO run: its rollouts after `reward`, and the ratios of each pass with the number of optimiser steps before."""

    dump: Dump
    rollouts: list[list[Experience]] = field(default_factory=list)
    ratios: list[tuple[int, torch.Tensor]] = field(default_factory=list)


Watch = Callable[..., Watched]


@pytest.fixture
def given_inputs(model_folders: Callable[[str], Path], tmp_path: Path) -> dict[str, str]:
    return ragged.inputs("ppo", model_folders("qwen2"), tmp_path / "in")


@pytest.fixture
def watched(given_inputs: dict[str, str], tmp_path: Path) -> Iterator[Watch]:
    """watched(setting=...): PPO on ragged prompts with a policy that ends some of its responses."""
    with pytest.MonkeyPatch.context() as patch:
        record(patch.setattr)

        def run(**changes: Any) -> Watched:
            rollouts, ratios, steps = [], [], 0
            step, original = Engine.step, ppo.reward

            def counted(self: Engine, learning_rate: float) -> float:
                nonlocal steps
                steps += 1
                return step(self, learning_rate)

            def spied_reward(experience: list[Experience], *rest: Any) -> None:
                original(experience, *rest)
                rollouts.append(experience)

            def spied_losses(*arguments: Any) -> Any:
                found = policy_losses(*arguments)
                ratios.append((steps, found[1].detach()))
                return found

            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(Engine, "step", counted)
                inner.setattr(ppo, "reward", spied_reward)
                inner.setattr(ppo, "policy_losses", spied_losses)
                run_step("ppo", tmp_path / "out", given_inputs, ragged.SETTINGS["ppo"] | changes)
            return Watched(read(tmp_path / "out"), rollouts, ratios)

        yield run


def test_end_of_a_response_is_cut_off_as_padding_trl3091(watched: Watch, given_inputs: dict[str, str]) -> None:
    """A finished response's `<|im_end|>` has a log-probability, a value and an advantage; an unfinished one gets no end
    made up, and counts as truncated (trl#3091, recipe.md §7)."""
    im_end = ChatTokenizer.load(Path(given_inputs["policy"])).im_end
    made = watched()
    items = [item for rollout in made.rollouts for item in rollout]
    assert len(items) == 3 * 8
    for item in items:
        assert 1 <= len(item.response) <= 6
        assert item.truncated == (item.response[-1] != im_end)
        assert im_end not in item.response[:-1]
        for name in ("log_probs", "reference", "values", "advantages", "returns"):
            assert len(getattr(item, name)) == len(item.response)
    assert {item.truncated for item in items} == {True, False}
    assert len({len(item.response) for item in items}) > 2
    for line, rollout in zip(made.dump.metrics, made.rollouts, strict=True):
        assert line["ppo_truncated_ratio"] == sum(item.truncated for item in rollout) / 8


def _item(gaps: list[float], values: list[float], score: float, *, truncated: bool = False) -> Experience:
    return Experience(
        sequence=[1, 2] + [5] * len(values), start=2, truncated=truncated, raw_score=score,
        log_probs=torch.tensor(gaps), reference=torch.zeros(len(gaps)), values=torch.tensor(values),
    )  # fmt: skip


def test_reward_on_the_padding_after_the_end_trl1893() -> None:
    """Four tokens by hand beside a response of two: gamma 0.5, lambda 0.5, KL coefficient 0.1, no normalisation.

    Rewards -0.1 gap, the score 2 on the last token: -0.1, 0.2, 0, 2 - 0.3 = 1.7. Values 1, 2, 0.4, 0.8, and 0 after.
    delta_3 = 1.7 - 0.8 = 0.9                 A_3 = 0.9
    delta_2 = 0 + 0.5 * 0.8 - 0.4 = 0         A_2 = 0 + 0.25 * 0.9 = 0.225
    delta_1 = 0.2 + 0.5 * 0.4 - 2 = -1.6      A_1 = -1.6 + 0.25 * 0.225 = -1.54375
    delta_0 = -0.1 + 0.5 * 2 - 1 = -0.1       A_0 = -0.1 - 0.25 * 1.54375 = -0.4859375

    The cut one has -1 in place of its score: rewards 0, -1; values 3, 1: A_1 = -2, delta_0 = 0.5 - 3 = -2.5, A_0 = -3.
    """
    items = [
        _item([1.0, -2.0, 0.0, 3.0], [1.0, 2.0, 0.4, 0.8], 2.0),
        _item([0.0, 0.0], [3.0, 1.0], 9.0, truncated=True),
    ]
    config = PPOConfig(gamma=0.5, gae_lambda=0.5, reward_normalisation="none", whiten_advantages=False)
    reward(items, RunningMoments(), KLCoefficient(0.1), config)
    assert items[0].advantages.tolist() == pytest.approx([-0.4859375, -1.54375, 0.225, 0.9])
    assert items[0].returns.tolist() == pytest.approx([0.5140625, 0.45625, 0.625, 1.7])
    assert items[1].advantages.tolist() == pytest.approx([-3.0, -2.0])
    assert items[1].returns.tolist() == pytest.approx([0.0, -1.0])


def test_value_is_read_one_token_late_trl3750(model_folders: Callable[[str], Path]) -> None:
    """The value of a response token is read where that token is predicted: at the prompt's last token for the first,
    never at the last token itself (trl#3750, #5338). Hidden states as transformers alone computes them."""
    torch.manual_seed(3)
    model = RewardModel.from_base(model_folders("qwen2"), "mlp")
    theirs = AutoModelForCausalLM.from_pretrained(model_folders("qwen2"), attn_implementation="eager")
    row, start = [40, 50, 60, 70, 80, 90], 2
    with torch.no_grad():
        hidden = theirs.base_model(torch.tensor([row])).last_hidden_state[0]
        expected = model.read(hidden)[start - 1 : -1]
    assert torch.allclose(response_values(model, [row], [start], 100)[0], expected, atol=1e-5)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (0.6, 1.0), (1.7, 0.3)])
@pytest.mark.parametrize("tokens", [320, 80])
def test_ratio_is_not_one_on_the_first_pass_trl454(
    watched: Watch, temperature: float, top_p: float, tokens: int
) -> None:
    """Until the policy's first step every token has ratio 1 and KL 0, at any temperature and top-p, however the rollout
    is cut into micro-batches (trl#454); the mean over a mini-batch is within 1e-6, and nothing is clipped."""
    made = watched(
        iterations=1, value_warmup_iterations=0, epochs=1, temperature=temperature, top_p=top_p,
        micro_batch_tokens=tokens, ptx={"coefficient": 0.0},
    )  # fmt: skip
    line = made.dump.metrics[0]
    assert len(made.ratios) == 320 // tokens
    for steps, ratio in made.ratios:
        assert steps == 0
        assert torch.allclose(ratio, torch.ones_like(ratio), rtol=0, atol=1e-5)
    assert line["ppo_ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert line["ppo_clip_fraction_ratio"] == line["ppo_kl"] == line["ppo_kl_k3"] == 0.0


def test_ratio_stays_one_on_later_passes_trl454(watched: Watch) -> None:
    """The other side of it: after a step the ratios move."""
    made = watched(iterations=1, value_warmup_iterations=0, epochs=2)
    assert max(float((ratio - 1).abs().max()) for steps, ratio in made.ratios if steps) > 1e-3


@pytest.mark.parametrize("left", [True, False])
def test_log_probs_and_values_depend_on_padding_trl2778(model_folders: Callable[[str], Path], left: bool) -> None:
    """Equal alone, packed, in buckets by length, and padded on either side as transformers pads (trl#2778)."""
    torch.manual_seed(3)
    folder = model_folders("qwen2")
    policy, scorer = load_policy(folder), RewardModel.from_base(folder, "mlp")
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    rows = [[40, 317, 60, 319, 80, 90, 317], [41, 51, 319], [42, 52, 62, 72, 82], [43, 317]]
    starts = [3, 1, 4, 1]
    prompts, responses = zip(*[(row[:n], row[n:]) for row, n in zip(rows, starts, strict=True)], strict=True)
    mask = mask_of(rows, left=left)
    with torch.no_grad():
        states = theirs.base_model(
            pad(rows, 317, left=left), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        ).last_hidden_state
        hidden = [states[i, mask[i].bool()][start - 1 : -1] for i, start in enumerate(starts)]
        log_probs = [theirs.lm_head(state).log_softmax(-1) for state in hidden]
    for tokens in (1, 12, 1000):
        ours = response_log_probs(policy, prompts, responses, temperature=1.0, batch_tokens=tokens)
        values = response_values(scorer, rows, starts, tokens)
        for i, response in enumerate(responses):
            expected = log_probs[i][range(len(response)), response]
            assert torch.allclose(ours[i], expected, atol=1e-5)
            assert torch.allclose(values[i], scorer.read(hidden[i]), atol=1e-5)


def test_reward_is_not_the_reward_models_score_rewardbench137(watched: Watch, given_inputs: dict[str, str]) -> None:
    """PPO's raw score of a response is what the reward model gives to the same ids alone, and evaluation encodes a
    conversation to these ids (reward-bench#137, trlx#474)."""
    made = watched(micro_batch_tokens=80)
    scorer = RewardModel.load(Path(given_inputs["reward_model"]))
    for item in (item for rollout in made.rollouts for item in rollout):
        assert item.raw_score == pytest.approx(scorer.score([item.sequence], 1)[0], abs=1e-5)
    tokenizer = ChatTokenizer.load(Path(given_inputs["policy"]))
    for row in comparisons(tokenizer):
        for response, ids in zip(row.responses, row.input_ids, strict=True):
            sampled = [*tokenizer.encode_text(response), tokenizer.im_end]
            assert tokenizer.encode_prompt(row.messages) + sampled == ids


@given(
    scores=st.lists(st.lists(st.integers(-20, 20), min_size=2, max_size=6, unique=True), min_size=1, max_size=3),
    scale=st.sampled_from([0.25, 2.0, 64.0]), shift=st.integers(-64, 64),
)  # fmt: skip
@settings(max_examples=40)
def test_value_loss_grows_with_the_reward_scale_deepspeedexamples556(
    scores: list[list[int]], scale: float, shift: int
) -> None:
    """With mean_std a reward model of another scale and offset gives the same advantages and returns, rollout after
    rollout, and the scores of a first rollout get deviation 1 (DeepSpeedExamples#556, LLaMA-Factory#664)."""
    config = PPOConfig(reward_normalisation="mean_std", whiten_advantages=False, gae_lambda=1.0)
    found = []
    for factor, offset in ((1.0, 0.0), (scale, float(shift))):
        moments = RunningMoments()
        rollouts = [[_item([0.0, 0.0], [0.0, 0.0], factor * score + offset) for score in part] for part in scores]
        for rollout in rollouts:
            reward(rollout, moments, KLCoefficient(0.1), config)
        found.append([item.returns for rollout in rollouts for item in rollout])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    first = torch.stack([returns[-1] for returns in found[0][: len(scores[0])]])
    assert float(first.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(first.std(unbiased=False)) == pytest.approx(1.0, abs=1e-5)


def test_log_probs_are_not_at_the_sampling_temperature_trl6789(watched: Watch, given_inputs: dict[str, str]) -> None:
    """Old log-probabilities are those of the whole softmax at the sampling temperature, computed here by transformers:
    not at temperature 1 (trl#4159), and not renormalised over the nucleus, which makes top-p < 1 slightly off-policy
    (trl#6789; said in components/ppo/train.py)."""
    made = watched(iterations=1, temperature=0.6, top_p=0.3)
    theirs = AutoModelForCausalLM.from_pretrained(given_inputs["policy"])
    tops = 0
    for item in made.rollouts[0]:
        with torch.no_grad():
            logits = theirs(torch.tensor([item.sequence])).logits[0, item.start - 1 : -1]
        expected = (logits / 0.6).log_softmax(-1)[range(len(item.response)), item.response]
        assert torch.allclose(item.log_probs, expected, atol=1e-5)
        # Renormalised, a nucleus of one token would have probability 1.
        tops += int(((logits / 0.6).softmax(-1).max(-1).values > 0.3).sum())
    assert tops > 0
    assert all(bool((item.log_probs < -1e-4).any()) for item in made.rollouts[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 1},
        {"max_new_tokens": 1, "prompts_per_iteration": 1, "responses_per_prompt": 1, "mini_batch_size": 1},
        {"prompts_per_iteration": 1, "responses_per_prompt": 1},
    ],
    ids=["one token each", "one token in all", "one response"],
)
def test_one_token_gives_nan(watched: Watch, given_inputs: dict[str, str], changes: dict[str, Any]) -> None:
    """Recipe.md §7: a response of one token, and whitening with nothing to whiten by."""
    made = watched(**changes)
    before, after = weights(given_inputs["policy"]), weights(made.dump.model)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(bool(torch.isfinite(value).all()) for value in made.dump.state.values())
    assert all(torch.isfinite(torch.tensor(list(line.values()))).all() for line in made.dump.metrics)
    assert made.dump.optimiser_steps("policy") == {4} and made.dump.optimiser_steps("value") == {6}


def test_empty_responses_are_kept_and_scored(
    watched: Watch, given_inputs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipe.md §7: nothing but `<|im_end|>` is a finished response with its own score, not a truncated one."""
    im_end = ChatTokenizer.load(Path(given_inputs["policy"])).im_end
    # All choose the end of turn at once.
    monkeypatch.setattr(
        "components.training.sampling.choose", lambda logits, *_: torch.full((len(logits),), im_end, dtype=torch.int64)
    )
    made = watched(value_warmup_iterations=0)
    scorer = RewardModel.load(Path(given_inputs["reward_model"]))
    for rollout, line in zip(made.rollouts, made.dump.metrics, strict=True):
        assert line["ppo_truncated_ratio"] == 0.0 and line["ppo_response_length_tokens"] == 1.0
        for item in rollout:
            assert item.response == [im_end]
            assert item.raw_score == pytest.approx(scorer.score([item.sequence], 1)[0], abs=1e-5)
        assert torch.isfinite(torch.tensor(list(line.values()))).all()
    assert made.dump.beside["moments"][0] == 3 * 8


def test_truncated_responses_move_the_running_mean(watched: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipe.md §7: where all are cut, none has a score to average; each gets the fixed low one in its place."""
    monkeypatch.setattr(
        "components.training.sampling.choose", lambda logits, *_: torch.full((len(logits),), 65, dtype=torch.int64)
    )
    made = watched(iterations=1, value_warmup_iterations=0, gae_lambda=1.0, whiten_advantages=False)
    assert made.dump.beside["moments"] == [0, 0.0, 0.0]
    assert made.dump.metrics[0]["ppo_truncated_ratio"] == 1.0
    for item in made.rollouts[0]:
        assert item.response == [65] * 6
        # KL 0, gamma 1, lambda 1: every return is the score on the last token.
        assert item.returns.tolist() == pytest.approx([-1.0] * 6, abs=1e-5)
