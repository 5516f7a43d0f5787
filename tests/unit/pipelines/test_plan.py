"""Estimates of memory against what torch allocates; sizes of models against those that are published."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from components.core.config import PPOConfig, RewardConfig, SFTConfig, Trainer
from components.core.errors import UserError
from components.reward_model.model import RewardModel, make_head
from components.reward_model.train import prepare as prepare_reward
from components.training import scoring
from components.training.engine import Engine, make_engine
from components.training.models import load_policy, prepare
from components.training.runtime import Runtime
from pipelines import profiles
from pipelines.plan import memory
from pipelines.plan.estimate import Assumptions, plan
from pipelines.plan.memory import Batch, Memory
from pipelines.plan.shapes import Shape, base_shape, shape_of

SIZES: dict[str, Any] = {
    "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 352, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1500, "tie_word_embeddings": False,
}  # fmt: skip
ROWS = 4


def make(folder: Path, **changes: Any) -> Shape:
    torch.manual_seed(0)
    config = Qwen2Config(**{**SIZES, **changes})
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    shape = shape_of(config.to_dict(), "test")
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    return shape


def rows_of(tokens: int) -> list[list[int]]:
    length = tokens // ROWS
    return [[(7 * row + 3 * place) % 1400 for place in range(length)] for row in range(ROWS)]


def allocated_peak(engine: Engine, micro_batches: int, loss: Any) -> float:
    """Bytes at the peak of one whole optimiser step, by the events of torch's own allocator; not the first step, which
    makes the moments."""

    def step() -> None:
        engine.accumulate(list(range(micro_batches)), 0, loss, figures=1)
        engine.step(1e-4)

    step()
    own = {id(tensor): tensor for tensor in (*engine.model.parameters(), *engine.masters.values())}
    moments = [value for state in engine.optimiser.state.values() for value in state.values()]
    state = sum(tensor.numel() * tensor.element_size() for tensor in (*own.values(), *moments))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    now = most = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        now += size
        most = max(most, now)
    return float(state + most)


@pytest.mark.parametrize(
    ("settings", "tokens", "micro_batches", "changes"),
    [
        ({"precision": "fp32"}, 256, 1, {}),
        ({"precision": "fp32"}, 1024, 2, {}),
        ({"precision": "bf16"}, 256, 1, {"tie_word_embeddings": True}),
        ({"precision": "bf16"}, 1024, 2, {}),
        ({"precision": "fp32", "gradient_checkpointing": True}, 1024, 1, {}),
        ({"precision": "fp32"}, 64, 1, {"vocab_size": 20_000}),
    ],
    ids=["fp32", "several", "bf16-tied", "bf16-several", "recomputed", "weights"],
)
def test_memory_of_sft_is_what_torch_allocates(
    tmp_path: Path, settings: dict[str, Any], tokens: int, micro_batches: int, changes: dict[str, Any]
) -> None:
    shape = make(tmp_path, **changes)
    config = SFTConfig.model_validate({"dropout": 0.0, **settings})
    runtime = Runtime(0, 1, torch.device("cpu"), config.precision)
    model = load_policy(tmp_path, dtype=runtime.dtype)
    prepare(model, config, 0)
    model.train()
    engine = make_engine(model, config, runtime)
    rows = rows_of(tokens)
    labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in rows]

    def loss(_: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        value = engine(scoring.token_nll, rows, labels).mean()
        return value, [value]

    batch = Batch(tokens=tokens, wanted=0.5, several=micro_batches > 1)
    estimate = memory.peak(memory.training(shape, batch, config, 1, copies=1))[1].total
    assert estimate == pytest.approx(allocated_peak(engine, micro_batches, loss), rel=0.15)


def test_memory_of_a_reward_model_is_what_torch_allocates(tmp_path: Path) -> None:
    shape = make(tmp_path)
    config = RewardConfig(precision="fp32")
    model = RewardModel(load_policy(tmp_path), make_head("mlp", shape.hidden), "mlp")
    prepare_reward(model, config, 0)
    engine = make_engine(model, config, Runtime(0, 1, torch.device("cpu"), "fp32"))
    rows = rows_of(512)

    def loss(_: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        value = engine(lambda whole, some: whole(some).sum(), rows)
        return value, [value]

    batch = Batch(tokens=512, wanted=ROWS / 512, several=False)
    estimate = memory.peak(memory.training(shape, batch, config, 1, copies=1, head=False))[1].total
    assert estimate == pytest.approx(allocated_peak(engine, 1, loss), rel=0.15)


def test_long_losses_are_taken_in_pieces_and_so_counted() -> None:
    shape = base_shape(profiles.load("qwen-7b").base_model)
    many = memory.logits(shape, Batch(tokens=10**6, wanted=1, several=False))
    assert many == 12 * memory.LOGITS and memory.LOGITS == scoring._LOGITS


@pytest.mark.parametrize(("profile", "billions"), [("qwen-1.8b", 1.54), ("qwen-7b", 7.61), ("qwen-14b", 14.77)])
def test_known_models_have_their_published_size(profile: str, billions: float) -> None:
    assert base_shape(profiles.load(profile).base_model).parameters / 1e9 == pytest.approx(billions, abs=0.01)


def test_sharding_divides_what_it_shards() -> None:
    shape = base_shape(profiles.load("qwen-7b").base_model)
    whole = shape.parameters

    def state(stage: int, **zero: bool) -> Memory:
        config = Trainer.model_validate({"zero": {"stage": stage, **zero}})
        return memory.model_state(shape, whole, config, 8, several=True)

    one, two, three = state(1), state(2), state(3)
    assert (one.weights, one.gradients, one.optimiser) == (2 * whole, 4 * whole, 12 * whole / 8)
    assert (two.weights, two.gradients, two.optimiser) == (2 * whole, 4 * whole / 8, 12 * whole / 8)
    assert (three.weights, three.gradients, three.optimiser) == (2 * whole / 8, 4 * whole / 8, 12 * whole / 8)
    assert state(3, offload_optimiser=True, offload_parameters=True).weights == 0
    assert state(1, offload_optimiser=True).optimiser == 0


def test_ppo_needs_its_frozen_models_unless_they_wait_on_the_cpu() -> None:
    shape = base_shape(profiles.load("qwen-7b").base_model)
    batch = Batch(tokens=8192, wanted=0.5, several=True)
    with_all = memory.ppo(shape, batch, PPOConfig(), 8, rows=16, length=700)
    aside = memory.ppo(shape, batch, PPOConfig(frozen_on_cpu=True), 8, rows=16, length=700)
    model = 2 * shape.parameters
    assert with_all["sampling"].total - aside["sampling"].total == 2 * model
    assert with_all["scoring"].total - aside["scoring"].total == model, "one of them at a time comes back"
    assert with_all["policy: step"].total - aside["policy: step"].total == 2 * model
    rows = memory.ppo(shape, batch, PPOConfig(), 8, rows=32, length=700)["sampling"].cache
    assert rows == 2 * with_all["sampling"].cache == 32 * 700 * 2 * 28 * 512 * 2


def test_shipped_profile_fits_where_it_says_and_a_smaller_gpu_gets_a_suggestion_that_helps() -> None:
    profile = profiles.load("qwen-7b")
    assert all(step.margin > 0 for step in plan(profile, Assumptions(gpu="h100")))
    small = plan(profiles.load("qwen-7b", ["sft.zero.stage=0"]), Assumptions(gpu="h100"))
    sft = small[0]
    assert sft.margin < 0 and "--set sft.zero.stage=" in sft.suggestion
    words = [word for word in sft.suggestion.split() if word != "--set"]
    assert plan(profiles.load("qwen-7b", ["sft.zero.stage=0", *words]), Assumptions(gpu="h100"))[0].margin >= 0


def test_time_and_cost_follow_from_what_is_assumed() -> None:
    profile = profiles.load("qwen-7b")
    sft = plan(profile, Assumptions(mfu=0.4, price=2.0))[0]
    assert sft.tokens == 128 * 4000 * 700 and sft.gpus == 8
    shape = base_shape(profile.base_model)
    flops = 4 * sft.tokens * (2 * shape.trunk_parameters + 2 * 28 * 3584 * 700)
    assert sft.hours == pytest.approx(flops / (8 * 989e12 * 0.4) / 3600)
    assert sft.cost == pytest.approx(sft.hours * 8 * 2.0)
    half = plan(profile, Assumptions(mfu=0.2, price=2.0))[0]
    assert half.hours == pytest.approx(2 * sft.hours)
    assert plan(profile, Assumptions(gpu="l40s"))[0].cost is None


def test_config_that_is_none_is_told() -> None:
    with pytest.raises(UserError, match="mine: not the config of a model"):
        shape_of({"hidden_size": 12}, "mine")
