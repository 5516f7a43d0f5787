"""Two processes make the model that one makes: real torchrun, gloo, ragged rows."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.ranks import CASES, COMMON, inputs_for, launch
from tests.steps import run_step, weights


@pytest.mark.parametrize("step", list(CASES))
def test_two_ranks_make_the_model_that_one_makes(
    model_folders: Callable[[str], Path], tmp_path: Path, step: str
) -> None:
    inputs = inputs_for(step, model_folders("qwen2"), tmp_path)
    config = COMMON | CASES[step]
    one = run_step(step, tmp_path / "one", inputs, config)
    two = launch(step, tmp_path / "two", inputs, config, processes=2)
    before, made = weights(inputs.get("base_model", inputs.get("policy", ""))), weights(one.outputs["model"])
    assert any(not torch.equal(before[name], made[name]) for name in before)
    for name, other in weights(two.outputs["model"]).items():
        assert torch.allclose(made[name], other, atol=1e-5), name
