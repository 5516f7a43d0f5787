from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.core.chatml import ChatTokenizer
from components.reward_model.model import RewardModel
from tests.steps import prompts, publish_model, publish_rows, texts


@pytest.fixture
def ppo_inputs(model_folders: Callable[[str], Path], tmp_path: Path) -> dict[str, str]:
    """A random policy and a random reward model of the same tokenizer, ten prompts, twelve documents."""
    folder = model_folders("qwen2")
    tokenizer = ChatTokenizer.load(folder)
    torch.manual_seed(3)
    RewardModel.from_base(folder, "mlp").save(tmp_path / "rm-model", folder)
    return {
        "policy": publish_model(folder, tmp_path / "policy"),
        "reward_model": publish_model(tmp_path / "rm-model", tmp_path / "rm"),
        "data": publish_rows(tmp_path / "prompt-rows", tmp_path / "prompts", prompts(tokenizer)),
        "pretrain": publish_rows(tmp_path / "text-rows", tmp_path / "texts", texts(tokenizer)),
    }


@pytest.fixture
def ppo_config() -> dict[str, Any]:
    """Four prompts and eight responses an iteration, four optimiser steps of two responses each."""
    return {
        "iterations": 3, "value_warmup_iterations": 0, "prompts_per_iteration": 4, "mini_batch_size": 2,
        "policy_learning_rate": 1e-3, "value_learning_rate": 1e-3, "max_new_tokens": 6, "precision": "fp32",
        "checkpoint_every": 0, "metrics_port": 0,
    }  # fmt: skip
