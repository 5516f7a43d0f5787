"""A trainer that is stopped and started again ends where the uninterrupted one ends, bit for bit (fp32, one rank)."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.core import store
from components.core.chatml import ChatTokenizer
from components.core.metrics import Metrics, read_metrics
from components.core.spec import make_spec, read_result
from components.core.step import main
from components.reward_model.model import RewardModel
from tests.steps import chats, comparisons, prompts, publish_model, publish_rows, run_step, texts, weights

COMMON = {"precision": "fp32", "metrics_port": 0, "checkpoint_every": 1, "keep_checkpoints": 1}
CASES: dict[str, dict[str, Any]] = {
    "sft": {"steps": 7, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 3, "dropout": 0.1},
    "pmp": {"epochs": 3.0, "batch_size": 6, "learning_rate": 1e-3},
    "reward_model": {"epochs": 3.0, "batch_size": 6, "learning_rate": 1e-3},
    "ppo": {
        "iterations": 6, "value_warmup_iterations": 3, "prompts_per_iteration": 4, "mini_batch_size": 4,
        "policy_learning_rate": 1e-3, "value_learning_rate": 1e-3, "max_new_tokens": 5,
        "reward_normalisation": "mean_std", "kl_controller": {"kind": "adaptive", "horizon": 100},
        "ptx": {"coefficient": 0.1, "sequences_per_response": 1.0},
    },
}  # fmt: skip


@pytest.fixture
def inputs(model_folders: Callable[[str], Path], tmp_path: Path) -> Callable[[str], dict[str, str]]:
    def make(step: str) -> dict[str, str]:
        folder = model_folders("qwen2")
        tokenizer = ChatTokenizer.load(folder)
        base = publish_model(folder, tmp_path / "base")
        if step == "sft":
            return {"base_model": base, "data": publish_rows(tmp_path / "r", tmp_path / "d", chats(tokenizer))}
        if step in ("pmp", "reward_model"):
            data = publish_rows(tmp_path / "r", tmp_path / "d", comparisons(tokenizer))
            extra = {"demonstrations": publish_rows(tmp_path / "cr", tmp_path / "c", chats(tokenizer))}
            return {"base_model": base, "data": data} | (extra if step == "reward_model" else {})
        torch.manual_seed(3)
        RewardModel.from_base(folder, "mlp").save(tmp_path / "rm-model", folder)
        return {
            "policy": base,
            "reward_model": publish_model(tmp_path / "rm-model", tmp_path / "rm"),
            "data": publish_rows(tmp_path / "pr", tmp_path / "p", prompts(tokenizer)),
            "pretrain": publish_rows(tmp_path / "tr", tmp_path / "t", texts(tokenizer)),
        }

    return make


VOLATILE = ("seconds", "timestamp")


def stable(path: Path) -> list[dict[str, Any]]:
    """Metrics without clock readings."""
    return [
        {
            name: value
            for name, value in line.items()
            if not any(word in name for word in VOLATILE) and "per_second" not in name
        }
        for line in read_metrics(path)
    ]


@pytest.mark.parametrize("stop", [1, 2, 5])
@pytest.mark.parametrize("step", list(CASES))
def test_stopped_and_resumed_run_is_bit_identical(
    inputs: Callable[[str], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, stop: int
) -> None:
    given, config = inputs(step), CASES[step] | COMMON
    whole = run_step(step, tmp_path / "whole", given, config)

    original = Metrics.log

    def stop_at(self: Metrics, number: int, **values: float) -> None:
        original(self, number, **values)
        if number == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    spec = make_spec(step, run="test", seed=0, config=config, inputs=given, output=str(tmp_path / "parts"))
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    module = __import__(f"components.{step}.__main__", fromlist=["work"])
    monkeypatch.setattr(Metrics, "log", stop_at)
    assert main(step, module.work, ["--spec", spec.uri]) == 143
    assert read_result(str(tmp_path / "parts")) is None
    monkeypatch.setattr(Metrics, "log", original)
    # What a step wrote after its last checkpoint is written again, not twice.
    with (tmp_path / "parts" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"training_step": 99}\n{"training_st')
    parts = run_step(step, tmp_path / "parts", given, config)

    one, other = weights(whole.outputs["model"]), weights(parts.outputs["model"])
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert stable(tmp_path / "whole" / "metrics.jsonl") == stable(tmp_path / "parts" / "metrics.jsonl")
    assert not (tmp_path / "parts" / "checkpoints").exists()


def test_finished_step_returns_at_once_and_changed_settings_run_again(
    inputs: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    given, config = inputs("sft"), CASES["sft"] | COMMON
    first = run_step("sft", tmp_path / "out", given, config)
    assert run_step("sft", tmp_path / "out", given, config).started_at == first.started_at
    changed = run_step("sft", tmp_path / "out", given, config | {"learning_rate": 2e-3})
    assert changed.started_at > first.started_at
    assert changed.fingerprint != first.fingerprint
