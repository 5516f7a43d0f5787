from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core import store
from components.core.chatml import ChatTokenizer
from components.reward_model.model import RewardModel
from components.training.models import load_policy
from tests.steps import chats, comparisons, prompts, publish_model, publish_rows, run_step, texts

COMMON: dict[str, Any] = {"precision": "fp32", "metrics_port": 0, "checkpoint_every": 0}


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_every_architecture_goes_through_the_whole_chain(
    model_folders: Callable[[str], Path], tmp_path: Path, architecture: str
) -> None:
    """base -> (sft, pmp -> reward model) -> ppo, each on the output of the one before, as the pipeline wires them."""
    folder = model_folders(architecture)
    tokenizer = ChatTokenizer.load(folder)
    base = publish_model(folder, tmp_path / "base")
    chat_rows = publish_rows(tmp_path / "chat-rows", tmp_path / "chats", chats(tokenizer))
    pairs = publish_rows(tmp_path / "pair-rows", tmp_path / "pairs", comparisons(tokenizer))
    small = COMMON | {"batch_size": 4, "learning_rate": 1e-3}
    sft = run_step(
        "sft", tmp_path / "sft", {"base_model": base, "data": chat_rows}, small | {"steps": 2, "warmup_steps": 0}
    )
    pmp = run_step("pmp", tmp_path / "pmp", {"base_model": base, "data": pairs}, small)
    reward = run_step(
        "reward_model",
        tmp_path / "rm",
        {"base_model": pmp.outputs["model"], "data": pairs, "demonstrations": chat_rows},
        small,
    )
    ppo = run_step(
        "ppo",
        tmp_path / "ppo",
        {
            "policy": sft.outputs["model"],
            "reward_model": reward.outputs["model"],
            "data": publish_rows(tmp_path / "prompt-rows", tmp_path / "prompts", prompts(tokenizer)),
            "pretrain": publish_rows(tmp_path / "text-rows", tmp_path / "texts", texts(tokenizer)),
        },
        COMMON
        | {"iterations": 2, "value_warmup_iterations": 1, "prompts_per_iteration": 2, "mini_batch_size": 4}
        | {"max_new_tokens": 4, "ptx": {"coefficient": 0.1, "sequences_per_response": 1.0}},
    )
    assert load_policy(Path(ppo.outputs["model"])).config.model_type == architecture
    scorer = RewardModel.load(Path(reward.outputs["model"]))
    rows = [row.input_ids[: -len(tokenizer.newline)] for row in chats(tokenizer)]
    # The offset makes demonstrations score 0 on average.
    assert sum(scorer.score(rows, 4096)) / len(rows) == pytest.approx(0.0, abs=1e-4)
    assert store.manifest_digest(ppo.outputs["model"]) == ppo.manifests["model"]
