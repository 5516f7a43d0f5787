"""LoRA in sft, reward_model and ppo: only adapters move, both forms are saved, and frozen models are shared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from components.core.config import Lora
from components.reward_model.model import RewardModel
from components.training.lora import adapters_off, add_adapters, merged
from components.training.models import hidden_states, load_policy
from tests.ranks import CASES, COMMON, inputs_for
from tests.steps import run_step, weights

ROWS = [[5, 6, 7, 8, 9], [20, 21, 22]]
LORA = {"rank": 4, "alpha": 8.0}


def config_of(step: str) -> dict[str, Any]:
    return COMMON | CASES[step] | {"lora": LORA}


@pytest.mark.parametrize("step", list(CASES))
def test_adapter_and_merged_model_are_saved_and_agree(
    model_folders: Callable[[str], Path], tmp_path: Path, step: str
) -> None:
    inputs = inputs_for(step, model_folders("qwen2"), tmp_path)
    result = run_step(step, tmp_path / "out", inputs, config_of(step))
    base = inputs.get("base_model", inputs.get("policy", ""))
    # Loaded by peft's own class on transformers' own model, as a person would.
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), result.outputs["adapter"]
    )
    merged_model = AutoModelForCausalLM.from_pretrained(result.outputs["model"], dtype=torch.float32)
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        ours, both = merged_model(ids).logits, theirs(ids).logits
        untouched = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(ids).logits
    assert torch.allclose(ours, both, atol=1e-5)
    assert float((ours - untouched).abs().max()) > 1e-3
    before, after = weights(base), weights(result.outputs["model"])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("_proj.weight" in name for name in changed)


def test_trained_reward_head_is_saved_beside_the_adapter(model_folders: Callable[[str], Path], tmp_path: Path) -> None:
    inputs = inputs_for("reward_model", model_folders("qwen2"), tmp_path)
    result = run_step("reward_model", tmp_path / "out", inputs, config_of("reward_model"))
    scores = RewardModel.load(Path(result.outputs["model"])).score(ROWS, 100)
    assert scores[0] != scores[1]


def test_with_adapters_off_the_model_is_bit_identical_to_its_base(model_folders: Callable[[str], Path]) -> None:
    """So that the reference needs no second copy of the weights."""
    model, base = load_policy(model_folders("llama")), load_policy(model_folders("llama"))
    add_adapters(model, Lora(**LORA), seed=0)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        with adapters_off(model):
            assert torch.equal(hidden_states(model, ROWS), hidden_states(base, ROWS))
        on = hidden_states(model, ROWS)
        assert not torch.allclose(on, hidden_states(base, ROWS), atol=1e-3)
        assert torch.allclose(hidden_states(merged(model), ROWS), on, atol=1e-5)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable


def test_ppo_with_adapters_has_no_kl_before_the_first_update(
    model_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    from components.core.metrics import read_metrics

    inputs = inputs_for("ppo", model_folders("qwen2"), tmp_path)
    config = config_of("ppo") | {"mini_batch_size": 8, "iterations": 4, "value_warmup_iterations": 2}
    run_step("ppo", tmp_path / "out", inputs, config)
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [line["ppo_kl"] == 0.0 for line in lines] == [True, True, True, False]
    assert lines[2]["ppo_ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    # The value model learns while the reward model, its own weights with adapters off, keeps its judgement.
    plain = config | {"lora": {"rank": 0}}
    run_step("ppo", tmp_path / "plain", inputs, plain)
    full = read_metrics(tmp_path / "plain" / "metrics.jsonl")
    assert [line["ppo_reward_mean"] for line in lines[:3]] == [line["ppo_reward_mean"] for line in full[:3]]
