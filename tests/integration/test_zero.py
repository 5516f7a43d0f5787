"""ZeRO stages 1, 2 and 3 on two ranks make the model that two plain replicas make: real torchrun, gloo, DeepSpeed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.ranks import CASES, COMMON, inputs_for, launch
from tests.steps import weights


@pytest.mark.parametrize("step", list(CASES))
def test_zero_stages_make_the_model_that_replicas_make(
    model_folders: Callable[[str], Path], tmp_path: Path, step: str
) -> None:
    inputs = inputs_for(step, model_folders("qwen2"), tmp_path)
    made = []
    for stage in range(4):
        # Small micro-batches, so that ranks have unequal numbers of them: collectives must stay in step.
        config = COMMON | CASES[step] | {"zero": {"stage": stage}, "micro_batch_tokens": 40}
        result = launch(step, tmp_path / f"stage-{stage}", inputs, config, processes=2)
        made.append(weights(result.outputs["model"]))
    for stage in (1, 2, 3):
        for name in made[0]:
            assert torch.allclose(made[0][name], made[stage][name], atol=1e-5), (stage, name)
