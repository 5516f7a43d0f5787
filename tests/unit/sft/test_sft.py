from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.core.chatml import ChatTokenizer
from components.core.metrics import read_metrics
from components.training.models import load_policy
from components.training.scoring import token_losses
from tests.steps import chats, publish_model, publish_rows, run_step, weights

CONFIG: dict[str, Any] = {
    "steps": 4, "batch_size": 4, "learning_rate": 3e-3, "warmup_steps": 0, "dropout": 0.0, "precision": "fp32",
    "metrics_port": 0,
}  # fmt: skip


@pytest.fixture
def inputs(model_folders: Callable[[str], Path], tmp_path: Path) -> dict[str, str]:
    folder = model_folders("qwen2")
    data = publish_rows(tmp_path / "rows", tmp_path / "data", chats(ChatTokenizer.load(folder)))
    return {"base_model": str(publish_model(folder, tmp_path / "base")), "data": data}


def test_training_lowers_the_loss_of_the_labels(inputs: dict[str, str], tmp_path: Path) -> None:
    result = run_step("sft", tmp_path / "out", inputs, CONFIG | {"steps": 20})
    rows = [(row.input_ids, row.labels) for row in chats(ChatTokenizer.load(Path(inputs["base_model"])))]
    before, count = token_losses(load_policy(Path(inputs["base_model"])), rows, 4096)
    after, _ = token_losses(load_policy(Path(result.outputs["model"])), rows, 4096)
    assert after / count < 0.7 * before / count


@pytest.mark.parametrize("budget", [16, 70, 4096])
def test_micro_batches_do_not_change_the_weights(inputs: dict[str, str], tmp_path: Path, budget: int) -> None:
    whole = run_step("sft", tmp_path / "whole", inputs, CONFIG | {"batch_size": 8, "micro_batch_tokens": 100_000})
    split = run_step("sft", tmp_path / "split", inputs, CONFIG | {"batch_size": 8, "micro_batch_tokens": budget})
    one, other = weights(whole.outputs["model"]), weights(split.outputs["model"])
    for name in one:
        assert torch.allclose(one[name], other[name], atol=1e-5), name


def test_first_step_is_the_gradient_of_the_token_mean(inputs: dict[str, str], tmp_path: Path) -> None:
    run_step("sft", tmp_path / "out", inputs, CONFIG | {"steps": 1, "batch_size": 10})
    rows = [(row.input_ids, row.labels) for row in chats(ChatTokenizer.load(Path(inputs["base_model"])))]
    total, count = token_losses(load_policy(Path(inputs["base_model"])), rows, 4096)
    line = read_metrics(tmp_path / "out" / "metrics.jsonl")[0]
    assert line["training_loss"] == pytest.approx(total / count, abs=1e-5)


def test_epochs_may_end_in_a_short_batch(inputs: dict[str, str], tmp_path: Path) -> None:
    run_step("sft", tmp_path / "out", inputs, CONFIG | {"steps": None, "epochs": 1.5, "batch_size": 4})
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [line["training_samples_total"] for line in lines] == [4, 4, 4, 3]


def test_metrics_count_tokens_and_warm_up(inputs: dict[str, str], tmp_path: Path) -> None:
    run_step("sft", tmp_path / "out", inputs, CONFIG | {"warmup_steps": 2})
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [line["training_learning_rate"] for line in lines] == pytest.approx([0.0, 1.5e-3, 3e-3, 3e-3])
    assert [line["training_step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["training_grad_norm"] > 0 for line in lines)


def test_every_architecture_goes_through(model_folders: Callable[[str], Path], tmp_path: Path) -> None:
    for architecture in ("qwen3", "llama"):
        folder = model_folders(architecture)
        base = publish_model(folder, tmp_path / architecture)
        data = publish_rows(
            tmp_path / f"{architecture}-rows", tmp_path / f"{architecture}-data", chats(ChatTokenizer.load(folder))
        )
        result = run_step("sft", tmp_path / f"{architecture}-out", {"base_model": str(base), "data": data}, CONFIG)
        assert load_policy(Path(result.outputs["model"])).config.model_type == architecture
