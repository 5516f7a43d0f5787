"""Options that change how fast or in what memory a step trains do not change what it makes; and bad numbers stop it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import components.training.engine as engine_module
from components.core import store
from components.core.metrics import read_metrics
from components.core.spec import make_spec
from components.core.step import main
from tests.ranks import CASES, COMMON, inputs_for
from tests.steps import model_with_a_bad_token, run_step, weights


@pytest.mark.parametrize(
    ("step", "option", "tolerance"),
    [
        ("sft", {"gradient_checkpointing": True}, 1e-6),
        ("reward_model", {"gradient_checkpointing": True}, 1e-6),
        ("ppo", {"gradient_checkpointing": True}, 1e-6),
        ("ppo", {"frozen_on_cpu": True}, 0.0),
        # The C++ that inductor writes adds up in another order.
        ("sft", {"compile": True}, 1e-4),
    ],
)
def test_option_does_not_change_the_model(
    model_folders: Callable[[str], Path], tmp_path: Path, step: str, option: dict[str, Any], tolerance: float
) -> None:
    inputs = inputs_for(step, model_folders("qwen2"), tmp_path)
    plain = weights(run_step(step, tmp_path / "plain", inputs, COMMON | CASES[step]).outputs["model"])
    other = weights(run_step(step, tmp_path / "other", inputs, COMMON | CASES[step] | option).outputs["model"])
    assert plain.keys() == other.keys()
    for name in plain:
        assert torch.allclose(plain[name], other[name], atol=tolerance, rtol=0), name


def test_compiled_layers_are_used(model_folders: Callable[[str], Path]) -> None:
    from components.training.models import compile_layers, load_policy

    model = load_policy(model_folders("qwen2"))
    compile_layers(model)
    layers: Any = model.base_model.layers
    assert [layer._compiled_call_impl is not None for layer in layers] == [True, False]


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    return next(line for line in reversed(capsys.readouterr().err.splitlines()) if line.startswith("error: "))


def failed(step: str, output: Path, inputs: dict[str, str], config: dict[str, Any]) -> int:
    """Exit code of a step that is expected to fail."""
    import importlib

    spec = make_spec(step, run="test", seed=0, config=config, inputs=inputs, output=str(output))
    store.write_bytes(spec.uri, spec.model_dump_json().encode())
    return main(step, importlib.import_module(f"components.{step}.__main__").work, ["--spec", spec.uri])


@pytest.mark.parametrize("step", ["sft", "reward_model"])
def test_weights_that_are_not_finite_stop_the_run_and_name_samples(
    model_folders: Callable[[str], Path], tmp_path: Path, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One token's embedding is NaN: only rows with that token are to blame, and no step is taken with them."""
    inputs = inputs_for(step, model_folders("qwen2"), tmp_path)
    broken = tmp_path / "broken"
    tensors = weights(inputs["base_model"])
    tensors["model.embed_tokens.weight"][:, 0] = float("nan")
    for path in Path(inputs["base_model"]).iterdir():
        if path.suffix == ".json" and path.name != "MANIFEST.json":
            broken.mkdir(exist_ok=True)
            (broken / path.name).write_bytes(path.read_bytes())
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    store.publish(broken, str(tmp_path / "nan-model"))
    config = COMMON | CASES[step] | {"max_nonfinite_steps": 2}
    if step == "sft":
        config |= {"steps": 5}
    assert failed(step, tmp_path / "out", inputs | {"base_model": str(tmp_path / "nan-model")}, config) == 1
    message = last_error(capsys)
    assert "not finite in 2 steps in a row" in message and "samples of the last: " in message
    assert not (tmp_path / "out" / "result.json").exists()


def test_ppo_stops_on_gradients_that_are_not_finite_and_names_prompts(
    model_folders: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs = inputs_for("ppo", model_folders("qwen2"), tmp_path)
    original = engine_module.Engine._backward
    monkeypatch.setattr(
        engine_module.Engine, "_backward", lambda self, loss, last: original(self, loss * float("nan"), last)
    )
    config = COMMON | CASES["ppo"] | {"max_nonfinite_steps": 3, "value_warmup_iterations": 0}
    assert failed("ppo", tmp_path / "out", inputs, config) == 1
    message = last_error(capsys)
    assert "not finite in 3 steps in a row" in message
    named = message.split("samples of the last: ")[1].split(";")[0].split(", ")
    assert named and set(named) <= {str(i) for i in range(10)}


def test_sampling_from_weights_that_are_not_finite_is_a_clear_error(model_folders: Callable[[str], Path]) -> None:
    from components.core.errors import UserError
    from components.training.models import load_policy
    from components.training.sampling import sample

    model = load_policy(model_folders("qwen2"))
    with torch.no_grad():
        model.base_model.norm.weight[0] = float("nan")
    options: dict[str, Any] = {"max_new_tokens": 3, "temperature": 1.0, "top_p": 0.9}
    with pytest.raises(UserError, match="not finite"):
        sample(model, [[5, 6]], seeds=[1], stop_ids=[2], batch_tokens=100, **options)


def test_single_step_that_is_not_finite_is_skipped_and_counted(
    model_folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite gradient in the second of three steps: it leaves no trace in weights or moments."""
    inputs = inputs_for("sft", model_folders("qwen2"), tmp_path)
    original = engine_module.Engine._backward
    calls: list[int] = []

    def poisoned(self: Any, loss: torch.Tensor, last: bool) -> None:
        calls.append(1)
        original(self, loss * float("inf") if len(calls) == 2 else loss, last)

    monkeypatch.setattr(engine_module.Engine, "_backward", poisoned)
    config = COMMON | CASES["sft"] | {"steps": 3}
    result = run_step("sft", tmp_path / "out", inputs, config)
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [line["training_nonfinite_steps_total"] for line in lines] == [0, 1, 0]
    made = weights(result.outputs["model"])
    assert all(torch.isfinite(tensor).all() for tensor in made.values())


def test_blame_falls_on_the_row_that_holds_the_bad_token(
    model_folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = inputs_for("sft", model_folders("qwen2"), tmp_path)
    broken, owner = model_with_a_bad_token(inputs, tmp_path)
    config = COMMON | CASES["sft"] | {"steps": 1, "batch_size": 10, "max_nonfinite_steps": 1}
    assert failed("sft", tmp_path / "out", inputs | {"base_model": broken}, config) == 1
    assert last_error(capsys).split("samples of the last: ")[1].split(";")[0] == owner


def test_gpu_out_of_memory_says_how_many_tokens_and_what_to_lower(
    model_folders: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There is no GPU here: the error that torch raises on one is raised by hand."""
    inputs = inputs_for("sft", model_folders("qwen2"), tmp_path)

    def full(self: Any, loss: torch.Tensor, last: bool) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine_module.Engine, "_backward", full)
    assert failed("sft", tmp_path / "out", inputs, COMMON | CASES["sft"]) == 1
    message = last_error(capsys)
    assert "GPU out of memory in a micro-batch of" in message and "lower micro_batch_tokens (now 16384)" in message
