"""Defects of other trainers that take two ranks to show; the table is in tests/unit/training/test_known_defects.py.

All runs of two ranks go through two starts of torchrun, the second one with too few rows for both ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from components.core.chatml import IGNORE, ChatTokenizer
from components.training.models import load_policy
from tests import ragged
from tests.dumped import Dump, launch, read, record
from tests.steps import chats, comparisons, run_step, weights

# Rollouts of 8 responses in mini-batches of 3, 3 and 2; the prompts of the third rollout begin a second pass.
UNEVEN: dict[str, Any] = {"mini_batch_size": 3, "prompts_per_iteration": 3, "iterations": 3, "micro_batch_tokens": 40}
NO_DECAY: dict[str, Any] = {"optimiser": {"weight_decay": 0.0}}


@dataclass(frozen=True)
class Workshop:
    """Inputs by name, and one rank's runs to compare with."""

    folder: Path
    inputs: dict[str, dict[str, str]]

    def one(self, run: tuple[str, dict[str, Any]], name: str) -> Dump:
        given, config = run
        output = self.folder / "one" / name
        if not (output / "result.json").exists():
            with pytest.MonkeyPatch.context() as patch:
                record(patch.setattr)
                run_step(name.split("-")[0], output, self.inputs[given], config | {"zero": {"stage": 0}})
        return read(output)

    def two(self, runs: dict[str, tuple[str, dict[str, Any]]], name: str) -> dict[str, Dump]:
        launched = {key: (self.inputs[given], config) for key, (given, config) in runs.items()}
        return launch(launched, self.folder / name)


@pytest.fixture(scope="module")
def workshop(model_folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder, work = model_folders("qwen2"), tmp_path_factory.mktemp("ranks")
    tokenizer = ChatTokenizer.load(folder)
    mute, tied, half = ragged.chats(tokenizer), comparisons(tokenizer, 4), comparisons(tokenizer, 4)
    for chat in mute:
        chat.labels = [IGNORE] * len(chat.labels)
    for row in tied:
        row.pairs = []
    # Dealt by length in turn, the longest first: the second rank gets the two without a pair.
    half.sort(key=lambda row: sum(map(len, row.input_ids)))
    half[0].pairs = half[2].pairs = []
    rows: dict[str, tuple[str, Any]] = {step: (step, None) for step in ragged.SETTINGS}
    rows |= {
        "sft-one": ("sft", chats(tokenizer, 1)),
        "sft-mute": ("sft", mute),
        "reward_model-one": ("reward_model", comparisons(tokenizer, 1)),
        "reward_model-tied": ("reward_model", tied),
        "reward_model-half": ("reward_model", half),
    }
    return Workshop(
        work, {name: ragged.inputs(step, folder, work / name, rows=own) for name, (step, own) in rows.items()}
    )


def _settings(step: str, **changes: Any) -> dict[str, Any]:
    return ragged.SETTINGS[step] | changes


@pytest.fixture(scope="module")
def exact_runs(model_folders: Callable[[str], Path]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Four micro-batches of the eight rows on one rank, unequal numbers of them on two."""
    tokenizer = ChatTokenizer.load(model_folders("qwen2"))
    budgets = {step: {"micro_batch_tokens": ragged.budget(step, tokenizer, 4)} for step in ragged.SETTINGS}
    return {
        **{step: (step, _settings(step, **budgets[step])) for step in ragged.SETTINGS},
        "ppo-warmup": ("ppo", _settings("ppo", value_warmup_iterations=3, **budgets["ppo"])),
        "ppo-uneven": ("ppo", _settings("ppo", **UNEVEN)),
        "ppo-first": ("ppo", _settings("ppo", iterations=1, value_warmup_iterations=0, epochs=1, **budgets["ppo"])),
    }


@pytest.fixture(scope="module")
def exact(workshop: Workshop, exact_runs: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Dump]:
    return workshop.two(exact_runs, "exact")


def _starved_runs() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name, which ends with the ZeRO stage -> (inputs, settings). Stage 3, the costliest, where a rank has nothing."""
    short = {"iterations": 2, "epochs": 1, "prompts_per_iteration": 1}
    # Of one response some gradients are 0 but for rounding, which a small epsilon would blow up to whole steps.
    lonely = short | {"responses_per_prompt": 1, "ptx": {"coefficient": 0.0}, "optimiser": {"epsilon": 1e-5}}
    kinds: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
        "sft-one": ("sft-one", _settings("sft", batch_size=1), (0, 2, 3)),
        "sft-mute": ("sft-mute", _settings("sft", **NO_DECAY), (0, 2)),
        "reward_model-one": ("reward_model-one", _settings("pmp", batch_size=1), (0, 2)),
        "reward_model-tied": ("reward_model-tied", _settings("reward_model", **NO_DECAY), (0, 2)),
        "reward_model-half": ("reward_model-half", _settings("reward_model"), (0, 2)),
        "ppo-prompt": ("ppo", _settings("ppo", **short), (0, 2)),
        "ppo-response": ("ppo", _settings("ppo", **lonely), (0, 3)),
    }
    return {
        f"{name}-{stage}": (given, config | {"zero": {"stage": stage}})
        for name, (given, config, stages) in kinds.items()
        for stage in stages
    }


STARVED = _starved_runs()


@pytest.fixture(scope="module")
def starved(workshop: Workshop) -> dict[str, Dump]:
    return workshop.two(STARVED, "starved")


def _same(one: Dump, two: Dump) -> None:
    """Of every engine, the value model too."""
    assert one.weights.keys() == two.weights.keys()
    for name, weight in one.weights.items():
        assert torch.allclose(weight, two.weights[name], rtol=0, atol=1e-5), name


@pytest.mark.parametrize("name", [*ragged.SETTINGS, "ppo-uneven"])
def test_mean_of_micro_batch_means_trl2175(
    workshop: Workshop, exact: dict[str, Dump], exact_runs: dict[str, tuple[str, dict[str, Any]]], name: str
) -> None:
    """One rank and two make the same weights of ragged rows: policy, value and ptx (verl#906, #5877, #6957), PMP and
    reward model; and the same numbers in metrics.jsonl, which rank 0 writes for all (trl#2022)."""
    one, two = workshop.one(exact_runs[name], name), exact[name]
    assert len(two.passes) == 2 and two.passes[0].keys() == one.passes[0].keys()
    assert all(any(passes) for rank in two.passes for passes in rank.values())
    _same(one, two)
    for line, other in zip(one.metrics, two.metrics, strict=True):
        assert other == pytest.approx(line, abs=1e-5, rel=1e-3)


def test_mini_batches_do_not_change_the_updates_trl5645(exact: dict[str, Dump]) -> None:
    """Optimiser steps as AdamW counts them are rollouts x epochs x mini-batches on two ranks, the last rollout of a
    pass over the prompts and the short mini-batch included (trl#5645, #2530, #583)."""
    assert (exact["ppo"].optimiser_steps("value"), exact["ppo"].optimiser_steps("policy")) == ({3 * 2}, {2 * 2})
    uneven = exact["ppo-uneven"]  # 6 responses, mini-batches of 3
    assert (uneven.optimiser_steps("value"), uneven.optimiser_steps("policy")) == ({3 * 2 * 2}, {2 * 2 * 2})
    assert exact["sft"].optimiser_steps("policy") == exact["pmp"].optimiser_steps("model") == {3}


def test_ratio_is_not_one_on_the_first_pass_trl454(exact: dict[str, Dump]) -> None:
    """Of the tokens of both ranks together."""
    (line,) = exact["ppo-first"].metrics
    assert line["ppo_ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert line["ppo_clip_fraction_ratio"] == line["ppo_kl"] == line["ppo_kl_k3"] == 0.0
    assert exact["ppo-first"].optimiser_steps("policy") == {1}


def test_policy_moves_during_the_value_warmup(workshop: Workshop, exact: dict[str, Dump]) -> None:
    """KL exactly 0 and the policy bit-identical on two ranks, while the value model learns what one rank's learns."""
    made = exact["ppo-warmup"]
    before, after = weights(workshop.inputs["ppo"]["policy"]), weights(made.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert made.optimiser_steps("policy") == set() and made.optimiser_steps("value") == {6}
    for line in made.metrics:
        assert line["ppo_kl"] == line["ppo_kl_k3"] == 0.0 and line["ppo_value_grad_norm"] > 0


@pytest.mark.parametrize("name", list(STARVED))
def test_ranks_do_unequal_passes_llamafactory3186(workshop: Workshop, starved: dict[str, Dump], name: str) -> None:
    """A batch of one row, a rollout of one prompt or one response, a rank without a pair: both ranks meet equally often
    and, where weights or gradients are sharded, go equally often through the model; and the weights are what one rank
    makes (LLaMA-Factory#3186, trl#1051, OpenRLHF#293, recipe.md §7)."""
    two, stage = starved[name], int(name[-1])
    assert two.meetings[0] == two.meetings[1] > 0
    if stage:
        assert two.passes[0] == two.passes[1]
    elif name.startswith(("sft-one", "reward_model-one")):
        assert two.passes[0] != two.passes[1]
    _same(workshop.one(STARVED[name], name[:-2]), two)
    assert all(bool(torch.isfinite(value).all()) for value in two.state.values())


@pytest.mark.parametrize("name", [name for name in STARVED if "mute" in name or "tied" in name])
def test_batch_without_targets_gives_nan_trl6025(workshop: Workshop, starved: dict[str, Dump], name: str) -> None:
    """No label, or no pair, on either rank: a loss of zero and the weights as they were (trl#6025)."""
    given, _ = STARVED[name]
    before, after = weights(workshop.inputs[given]["base_model"]), weights(starved[name].model)
    assert all(torch.equal(before[key], after[key]) for key in before)
    for line in starved[name].metrics:
        assert line["training_loss"] == line["training_grad_norm"] == line["training_nonfinite_steps_total"] == 0.0


@pytest.mark.parametrize("name", ["sft-one-3", "ppo-response-3"])
def test_sharded_model_is_saved_in_part_trl2122(starved: dict[str, Dump], name: str) -> None:
    """A model trained with ZeRO-3 is published whole: transformers alone reads it, and its weights are the trained fp32
    ones bit for bit."""
    made, saved = starved[name], weights(starved[name].model)
    prefix = "policy/weights."
    found = {key.removeprefix(prefix): value for key, value in made.weights.items() if key.startswith(prefix)}
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[key], saved[key]) for key in saved)
    theirs, ids = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.float32), torch.tensor([[50, 60, 70]])
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, load_policy(Path(made.model))(ids).logits)
