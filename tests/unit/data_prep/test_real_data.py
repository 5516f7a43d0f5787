"""Real data, from a folder beside the checkout. Its text is never printed: asserts compare numbers only."""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.records import Chat, Comparison, Prompt, Text, read_rows
from components.data_prep.split import key_of_messages

ROOT = Path(os.environ.get("KUBEALIGN_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="no ../shared/data beside the checkout")

SOURCES = {
    "sft": [
        {"path": "sft/gsm8k_train.jsonl.gz", "adapter": "question_answer", "licence": "MIT"},
        {"path": "sft/alpaca_eval_gpt4_outputs.json.gz", "adapter": "instruction", "licence": "Apache-2.0"},
    ],
    "pmp": [{"path": "preferences/hh_rlhf_harmless_base.jsonl.gz", "adapter": "transcript", "licence": "MIT"}],
    "reward_model": [{"path": "preferences/alpaca_eval/*.json.gz", "adapter": "comparison", "licence": "Apache-2.0"}],
    "ppo": [{"path": "preferences/alpaca_eval/phi-2.json.gz", "adapter": "comparison", "licence": "Apache-2.0"}],
    "pretrain": [{"path": "pretrain", "adapter": "text", "licence": "public domain"}],
}
CONFIG = {"sources": SOURCES, "max_length": 4096, "splits": {"heldout": 0.1, "ppo": 0.2}}


def test_real_data_pass_through_every_role_and_no_prompt_is_in_two_parts(run_step: Callable[..., Any]) -> None:
    run = run_step(CONFIG, data_root=ROOT)
    assert run.code == 0, run.error
    parts: dict[bytes, set[str]] = defaultdict(set)
    for role, row_type in (("sft", Chat), ("pmp", Comparison), ("reward_model", Comparison), ("ppo", Prompt)):
        for path in (run.output / role).rglob("*.parquet"):
            if path.name != "rejected.parquet":
                part = "heldout" if path.parent.name == "heldout" else "ppo" if role == "ppo" else "train"
                for row in read_rows(path, row_type):
                    parts[key_of_messages(row.messages)].add(part)
    assert all(len(found) == 1 for found in parts.values())
    counts = {role: run.card(role)["sources"] for role in SOURCES}
    if report := os.environ.get("KUBEALIGN_TEST_REPORT"):
        Path(report).write_text(json.dumps(counts, indent=1))
    gsm8k = counts["sft"]["gsm8k_train"]
    assert gsm8k["rows"] == 7473
    assert sum(part["rows"] for part in gsm8k["parts"].values()) + sum(gsm8k["rules"].values()) == 7473
    alpaca = counts["reward_model"]["alpaca_eval"]
    assert alpaca["rows"] == 14 * 805
    assert alpaca["parts"]["train"]["pairs"] > 6000
    assert counts["pmp"]["hh_rlhf_harmless_base"]["rejected_ratio"] < 0.05
    assert sum(1 for _ in read_rows(run.output / "pretrain" / "train.parquet", Text)) > 100
    assert counts["pretrain"]["pretrain"]["parts"]["heldout"]["rows"] > 5
