"""One stage with this project's trainer on a workload folder, as a user runs it: a spec, `python -m components.<step>`.

`prepare` writes the spec; `line_of` reads what the step left, in the form that peer.py prints.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from components.core import store
from components.core.metrics import read_metrics
from components.core.spec import make_spec
from tests.benchmarks.process import Line

STEPS = {"sft": "sft", "rm": "reward_model", "ppo": "ppo"}
SEED, BATCH, PPO_BATCH, RESPONSE = 0, 8, 16, 64  # as in workload.py, which would import torch
_OPTIMISER = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0, "clip": 1.0}
_SHARED = {"precision": "fp32", "metrics_port": 0, "optimiser": _OPTIMISER}
_CONFIGS: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": BATCH, "learning_rate": 1e-4, "warmup_steps": 0, "dropout": 0.0},
    "rm": {"batch_size": BATCH, "learning_rate": 1e-4, "warmup_steps": 0, "head": "linear"},
    "ppo": {
        "value_warmup_iterations": 0, "prompts_per_iteration": PPO_BATCH, "responses_per_prompt": 1,
        "mini_batch_size": PPO_BATCH, "max_new_tokens": RESPONSE, "temperature": 1.0, "top_p": 1.0,
        "policy_learning_rate": 1e-4, "value_learning_rate": 1e-4, "kl_coefficient": 0.05, "truncation": "subtract",
    },
}  # fmt: skip


def prepare(
    stage: str, workload: Path, output: Path, steps: int, checkpoint_every: int = 0, settings: Line | None = None
) -> str:
    """Write the spec of a run; its URI. `settings` overrides any of the stage's."""
    data = str(workload / stage)
    if stage == "ppo":
        inputs = {
            "policy": str(workload / "base"), "reward_model": str(workload / "reward"), "data": data,
            "pretrain": str(workload / "text"),
        }  # fmt: skip
    else:
        # The reward folder too is a base: trained on from the same trunk and head as the peer's.
        base = "base" if stage == "sft" else "reward"
        inputs = {"base_model": str(workload / base), "data": data}
    config = _SHARED | _CONFIGS[stage] | {"checkpoint_every": checkpoint_every} | _length(stage, workload, steps)
    config |= settings or {}
    spec = make_spec(STEPS[stage], run="benchmark", seed=SEED, config=config, inputs=inputs, output=str(output))
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    return spec.uri


def _length(stage: str, workload: Path, steps: int) -> Line:
    """The setting that makes a run so many steps long."""
    if stage == "rm":
        return {"epochs": steps * BATCH / pq.read_metadata(workload / "rm" / "train.parquet").num_rows}
    return {"steps": steps} if stage == "sft" else {"iterations": steps}


def line_of(stage: str, output: Path) -> Line:
    """A finished run's steps; PPO's phases where the trainer writes them."""
    steps = read_metrics(output / "metrics.jsonl")
    line: Line = {
        "step_ends": [step["training_last_step_timestamp_seconds"] for step in steps],
        "tokens": [step["training_tokens_total"] for step in steps],
        "losses": [step["training_loss"] for step in steps],
    }
    if stage != "ppo":
        return line
    line["response_tokens"] = [
        round(step["ppo_response_length_tokens"] * step["training_samples_total"]) for step in steps
    ]
    for phase, name in (("generation", "rollout"), ("scoring", "scoring"), ("update", "update")):
        seconds = [step.get(f"ppo_{name}_seconds") for step in steps]
        line[f"{phase}_seconds"] = seconds if None not in seconds else None
    return line
