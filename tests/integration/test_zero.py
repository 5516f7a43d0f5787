"""ZeRO stages 1, 2 and 3 on two ranks make the model that two plain replicas make: real torchrun, gloo, DeepSpeed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from components.core.metrics import read_metrics
from tests.ranks import CASES, COMMON, inputs_for, launch_all
from tests.steps import model_with_a_bad_token, weights

# Small micro-batches, so that ranks have unequal numbers of them: collectives must stay in step.
SMALL = COMMON | {"micro_batch_tokens": 40}
OFFLOADED = {"stage": 3, "offload_optimiser": True, "offload_parameters": True}


@pytest.mark.parametrize("step", list(CASES))
def test_zero_stages_make_the_model_that_replicas_make(
    model_folders: Callable[[str], Path], tmp_path: Path, step: str
) -> None:
    inputs = inputs_for(step, model_folders("qwen2"), tmp_path)
    kinds = [{"stage": 0}, {"stage": 1}, {"stage": 2}, {"stage": 3}]
    kinds += [{"stage": 1, "offload_optimiser": True}, OFFLOADED] if step == "sft" else []
    results = launch_all(step, tmp_path, inputs, [SMALL | CASES[step] | {"zero": kind} for kind in kinds])
    replicas, *sharded = [weights(result.outputs["model"]) for result in results]
    for kind, made in zip(kinds[1:], sharded, strict=True):
        for name in replicas:
            assert torch.allclose(replicas[name], made[name], atol=1e-5), (kind, name)


def test_step_that_is_not_finite_is_skipped_at_every_stage(
    model_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Two passes over ten rows in four steps: the bad row spoils one step of each pass, and the others count."""
    inputs = inputs_for("sft", model_folders("qwen2"), tmp_path)
    inputs["base_model"], _ = model_with_a_bad_token(inputs, tmp_path)
    config = SMALL | CASES["sft"] | {"steps": 4, "max_nonfinite_steps": 3}
    launch_all("sft", tmp_path, inputs, [config | {"zero": {"stage": stage}} for stage in range(4)])
    skipped, made = [], []
    for stage in range(4):
        lines = read_metrics(tmp_path / f"sft-{stage}" / "metrics.jsonl")
        skipped.append([line["training_nonfinite_steps_total"] for line in lines])
        made.append(weights(str(tmp_path / f"sft-{stage}" / "output" / "model")))
    assert sum(skipped[0]) == 2 and skipped.count(skipped[0]) == 4
    for name in made[0].keys() - {"model.embed_tokens.weight"}:
        assert torch.isfinite(made[0][name]).all(), name
        for other in made[1:]:
            assert torch.allclose(made[0][name], other[name], atol=1e-5), name


def test_bf16_with_fp32_masters_is_the_same_with_and_without_zero(
    model_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Small steps are lost without master weights: bf16 holds eight bits, and each of these changes is far below."""
    inputs = inputs_for("sft", model_folders("qwen2"), tmp_path)
    config = SMALL | CASES["sft"] | {"precision": "bf16", "steps": 8, "learning_rate": 1e-4}
    results = launch_all("sft", tmp_path, inputs, [config | {"zero": {"stage": stage}} for stage in (0, 1, 2, 3)])
    before, made = weights(inputs["base_model"]), [weights(result.outputs["model"]) for result in results]
    moved = max(float((made[0][name].float() - before[name]).abs().max()) for name in before)
    assert moved > 4e-4  # half of 8 steps x 1e-4
    for other in made[1:]:
        for name in made[0]:
            assert other[name].dtype == torch.bfloat16
            # One unit in the last place of the largest weights, where rounding fell to the other side.
            assert torch.allclose(made[0][name].float(), other[name].float(), atol=4e-3), name
