"""Trainers in real processes: torchrun, gloo, one or more ranks, as a launcher would start them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from components.core import store
from components.core.chatml import ChatTokenizer
from components.core.spec import StepResult, make_spec, read_result
from components.reward_model.model import RewardModel
from tests.steps import chats, comparisons, prompts, publish_model, publish_rows, texts

COMMON: dict[str, Any] = {"precision": "fp32", "metrics_port": 0, "checkpoint_every": 0}
CASES: dict[str, dict[str, Any]] = {
    "sft": {"steps": 3, "batch_size": 5, "learning_rate": 1e-3, "warmup_steps": 0, "dropout": 0.0},
    "reward_model": {"epochs": 2.0, "batch_size": 5, "learning_rate": 1e-3},
    "ppo": {
        "iterations": 3, "value_warmup_iterations": 1, "prompts_per_iteration": 3, "mini_batch_size": 4,
        "policy_learning_rate": 1e-3, "value_learning_rate": 1e-3, "max_new_tokens": 6,
        "ptx": {"coefficient": 0.1, "sequences_per_response": 1.0},
    },
}  # fmt: skip


def inputs_for(step: str, folder: Path, tmp_path: Path) -> dict[str, str]:
    """Published inputs of ragged rows; `folder` is a model."""
    tokenizer = ChatTokenizer.load(folder)
    base = publish_model(folder, tmp_path / "base")
    if step == "ppo":
        torch.manual_seed(3)
        RewardModel.from_base(folder, "mlp").save(tmp_path / "rm-model", folder)
        return {
            "policy": base,
            "reward_model": publish_model(tmp_path / "rm-model", tmp_path / "rm"),
            "data": publish_rows(tmp_path / "pr", tmp_path / "p", prompts(tokenizer)),
            "pretrain": publish_rows(tmp_path / "tr", tmp_path / "t", texts(tokenizer)),
        }
    rows = chats(tokenizer) if step == "sft" else comparisons(tokenizer)
    return {"base_model": base, "data": publish_rows(tmp_path / "r", tmp_path / "d", rows)}


def start(module: str, spec: str, processes: int) -> "subprocess.Popen[str]":
    """`torchrun -m module --spec ...`, in a process group of its own so that a test can end all of it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*command, "-m", module, "--spec", spec], env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def run(module: str, spec: str, processes: int) -> str:
    """Start the ranks, wait, check; what they logged."""
    process = start(module, spec, processes)
    log, _ = process.communicate(timeout=600)
    assert process.returncode == 0, log[-3000:]
    return log


def finished(output: Path) -> StepResult:
    result = read_result(str(output))
    assert result is not None
    return result


def launch(step: str, output: Path, inputs: dict[str, str], config: dict[str, Any], processes: int = 1) -> StepResult:
    """Write the spec, run the step to its end in so many ranks, give its result."""
    spec = make_spec(step, run="test", seed=0, config=config, inputs=inputs, output=str(output))
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    run(f"components.{step}", spec.uri, processes)
    return finished(output)


def launch_all(
    step: str, folder: Path, inputs: dict[str, str], configs: list[dict[str, Any]], processes: int = 2
) -> list[StepResult]:
    """Several configurations one after the other in the same ranks; outputs are folder/<step>-<number>."""
    outputs = [folder / f"{step}-{number}" for number in range(len(configs))]
    specs = [
        make_spec(step, run="test", seed=0, config=config, inputs=inputs, output=str(output))
        for config, output in zip(configs, outputs, strict=True)
    ]
    for spec in specs:
        store.write_bytes(spec.uri, spec.model_dump_json().encode())
    run("tests.several", ",".join(spec.uri for spec in specs), processes)
    return [finished(output) for output in outputs]
