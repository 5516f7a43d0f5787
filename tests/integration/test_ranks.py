"""Two processes make the model that one makes: real torchrun, gloo, ragged rows."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.core import store
from components.core.chatml import ChatTokenizer
from components.core.spec import make_spec, read_result
from components.reward_model.model import RewardModel
from tests.steps import chats, comparisons, prompts, publish_model, publish_rows, texts, weights

CASES: dict[str, dict[str, Any]] = {
    "sft": {"steps": 3, "batch_size": 5, "learning_rate": 1e-3, "warmup_steps": 0, "dropout": 0.0},
    "reward_model": {"epochs": 2.0, "batch_size": 5, "learning_rate": 1e-3},
    "ppo": {
        "iterations": 3, "value_warmup_iterations": 1, "prompts_per_iteration": 3, "mini_batch_size": 4,
        "policy_learning_rate": 1e-3, "value_learning_rate": 1e-3, "max_new_tokens": 6,
        "ptx": {"coefficient": 0.1, "sequences_per_response": 1.0},
    },
}  # fmt: skip


def launch(step: str, spec_uri: str, processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", f"components.{step}", "--spec", spec_uri], env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("step", list(CASES))
def test_two_ranks_make_the_model_that_one_makes(
    model_folders: Callable[[str], Path], tmp_path: Path, step: str
) -> None:
    folder = model_folders("qwen2")
    tokenizer = ChatTokenizer.load(folder)
    base = publish_model(folder, tmp_path / "base")
    if step == "ppo":
        torch.manual_seed(3)
        RewardModel.from_base(folder, "mlp").save(tmp_path / "rm-model", folder)
        inputs = {
            "policy": base,
            "reward_model": publish_model(tmp_path / "rm-model", tmp_path / "rm"),
            "data": publish_rows(tmp_path / "pr", tmp_path / "p", prompts(tokenizer)),
            "pretrain": publish_rows(tmp_path / "tr", tmp_path / "t", texts(tokenizer)),
        }
    else:
        rows = chats(tokenizer) if step == "sft" else comparisons(tokenizer)
        inputs = {"base_model": base, "data": publish_rows(tmp_path / "r", tmp_path / "d", rows)}
    config = CASES[step] | {"precision": "fp32", "metrics_port": 0, "checkpoint_every": 0}
    made = []
    for processes in (1, 2):
        output = tmp_path / f"ranks-{processes}"
        spec = make_spec(step, run="test", seed=0, config=config, inputs=inputs, output=str(output))
        store.write_bytes(spec.uri, spec.model_dump_json().encode())
        launch(step, spec.uri, processes)
        result = read_result(str(output))
        assert result is not None
        made.append(weights(result.outputs["model"]))
    before = weights(base)
    assert any(not torch.equal(before[name], made[0][name]) for name in before)
    for name in made[0]:
        assert torch.allclose(made[0][name], made[1][name], atol=1e-5), name
