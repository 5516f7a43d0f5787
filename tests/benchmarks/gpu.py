"""SFT, reward model and PPO of 1.8B- and 7B-shaped random-weight Qwen2 models in bf16 at length 2048 on one GPU.

    python tests/benchmarks/gpu.py                      # both shapes, every stage
    python tests/benchmarks/gpu.py --shapes tiny --device cpu --length 64 --responses 4    # does it run at all

Runs from a bare checkout on torch, transformers, pyarrow and safetensors alone: it uses the trainers' engine, losses
and sampler, without their settings and steps. Prints one JSON line a measurement: median tokens/s over the steps after
the first two, MFU, peak memory.

MFU = tokens/s x (6 N + 12 layers x hidden x length) / peak dense bf16 (989 TFLOP/s on H100 and H200): N without the
input embedding, attention not halved for being causal (torchtitan's formula), recomputed activations not counted.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from components.ppo.advantages import gae, whiten
from components.ppo.losses import policy_losses, value_losses
from components.reward_model.losses import pair_losses
from components.reward_model.model import RewardModel, make_head
from components.training.attention import IMPLEMENTATION, trim_last_layer
from components.training.data import micro_batches
from components.training.engine import Engine
from components.training.models import hidden_states
from components.training.sampling import sample
from components.training.scoring import response_log_probs, response_positions, response_tokens, token_nll

PEAK_FLOPS = 989e12
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
    "1.8B": {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16,
             "num_key_value_heads": 16, "vocab_size": 151936},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064},
}  # fmt: skip


def runtime_on(device: torch.device) -> Any:
    """One rank, as components/training/runtime.py would describe it."""
    return SimpleNamespace(rank=0, world=1, device=device, is_main=True, sum=lambda tensor: tensor)


def settings_for(micro_batch_tokens: int) -> Any:
    optimiser = SimpleNamespace(beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, clip=1.0)
    return SimpleNamespace(optimiser=optimiser, micro_batch_tokens=micro_batch_tokens)


def build(shape: str, device: torch.device, checkpointing: bool) -> PreTrainedModel:
    config = AutoConfig.for_model("qwen2", max_position_embeddings=4096, tie_word_embeddings=False, **SHAPES[shape])
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=IMPLEMENTATION)
    trim_last_layer(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    return model.train()


def reward_model(trunk: PreTrainedModel) -> RewardModel:
    trunk.get_output_embeddings().weight.requires_grad_(False)
    return RewardModel(trunk, make_head("mlp", trunk.config.hidden_size).to(trunk.device, trunk.dtype), "mlp")


def flops_per_token(model: PreTrainedModel, length: int, head: bool) -> float:
    """Forward and backward; without the output layer where nothing is predicted."""
    config = model.config
    table = config.vocab_size * config.hidden_size
    parameters = sum(p.numel() for p in model.parameters()) - table - (0 if head else table)
    return 6 * parameters + 12 * config.num_hidden_layers * config.hidden_size * length


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Callable[[], int], steps: int, device: torch.device) -> tuple[float, float]:
    """(median tokens/s, seconds a step) after two steps of warm-up; `step` says how many tokens it took."""
    rates, seconds = [], []
    for number in range(steps + 2):
        synchronise(device)
        started = time.perf_counter()
        tokens = step()
        synchronise(device)
        spent = time.perf_counter() - started
        if number >= 2:
            rates.append(tokens / spent)
            seconds.append(spent)
    return statistics.median(rates), statistics.median(seconds)


def report(stage: str, shape: str, device: torch.device, **figures: Any) -> None:
    if device.type == "cuda":
        figures["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 1)
        figures["gpu"] = torch.cuda.get_device_name(device)
    print(json.dumps({"stage": stage, "shape": shape, "torch": torch.__version__} | figures), flush=True)


def random_rows(model: PreTrainedModel, count: int, length: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(1, model.config.vocab_size, (count, length)))


def bench_sft(shape: str, options: argparse.Namespace, device: torch.device) -> None:
    """Every token is a target: packed rows of full length."""
    model = build(shape, device, options.checkpointing)
    engine = Engine(model, settings_for(options.tokens), runtime_on(device))
    rows = random_rows(model, max(1, options.tokens // options.length), options.length)
    targets = len(rows) * (options.length - 1)

    def loss(group: list[np.ndarray]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        value = engine(token_nll, group, group).sum() / targets
        return value, [value]

    def step() -> int:
        engine.accumulate([rows], rows, loss, figures=1)
        engine.step(1e-6)
        return len(rows) * options.length

    rate, seconds = timed(step, options.steps, device)
    mfu = rate * flops_per_token(model, options.length, head=True) / PEAK_FLOPS
    report("sft", shape, device, tokens_per_second=round(rate), mfu=round(mfu, 3), seconds_a_step=round(seconds, 3),
           tokens_a_step=len(rows) * options.length, checkpointing=options.checkpointing)  # fmt: skip


def bench_rm(shape: str, options: argparse.Namespace, device: torch.device) -> None:
    model = reward_model(build(shape, device, options.checkpointing))
    engine = Engine(model, settings_for(options.tokens), runtime_on(device))
    pairs = max(1, options.tokens // options.length // 2)
    rows = random_rows(model.trunk, 2 * pairs, options.length)

    def loss(group: list[np.ndarray]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        scores = engine(lambda model, rows: model(rows), group)
        value = pair_losses(scores[::2], scores[1::2]).mean()
        return value, [value]

    def step() -> int:
        engine.accumulate([rows], rows, loss, figures=1)
        engine.step(1e-6)
        return len(rows) * options.length

    rate, seconds = timed(step, options.steps, device)
    mfu = rate * flops_per_token(model.trunk, options.length, head=False) / PEAK_FLOPS
    report("rm", shape, device, tokens_per_second=round(rate), pairs_per_second=round(pairs / seconds, 2),
           mfu=round(mfu, 3), checkpointing=options.checkpointing)  # fmt: skip


def bench_ppo(shape: str, options: argparse.Namespace, device: torch.device) -> None:
    """One mini-batch of prompts of a quarter of the length; responses as long as asked, none stops early."""
    policy, reference = build(shape, device, options.checkpointing), build(shape, device, False)
    value, reward = (reward_model(build(shape, device, checkpointing)) for checkpointing in (options.checkpointing, 0))
    reference.requires_grad_(False), reward.requires_grad_(False)
    engines = [Engine(model, settings_for(options.tokens), runtime_on(device)) for model in (policy, value)]
    prompts = [row.tolist() for row in random_rows(policy, options.responses, options.length // 4)]
    starts, phases = [len(prompt) for prompt in prompts], {"rollout": 0.0, "scoring": 0.0, "update": 0.0}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        synchronise(device)
        started = time.perf_counter()
        yield
        synchronise(device)
        phases[name] += time.perf_counter() - started

    def read_values(model: RewardModel, rows: list[list[int]], starts: list[int]) -> torch.Tensor:
        return model.read(hidden_states(model.trunk, rows, response_positions(rows, starts)))

    def step() -> int:
        with phase("rollout"):
            policy.eval()
            responses = sample(policy, prompts, seeds=range(len(prompts)), max_new_tokens=options.new_tokens,
                               temperature=1.0, top_p=0.9, stop_ids=[], batch_tokens=1 << 20)  # fmt: skip
        answers = [response.ids for response in responses]
        sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        lengths = np.array([len(row) for row in sequences])
        groups = micro_batches(range(len(sequences)), lengths, options.tokens)
        with phase("scoring"):
            both = [
                response_log_probs(model, prompts, answers, temperature=1.0, batch_tokens=options.tokens)
                for model in (policy, reference)
            ]
            scores = reward.eval().score(sequences, options.tokens)
            with torch.no_grad():
                old_values = [
                    read_values(value, [row], [at])[:].cpu() for row, at in zip(sequences, starts, strict=True)
                ]
            old, ref = torch.stack(both[0]), torch.stack(both[1])
            rewards = -0.04 * (old - ref)
            rewards[:, -1] += torch.tensor(scores)
            mask = torch.ones_like(old)
            advantages, returns = gae(rewards, torch.stack(old_values).float(), mask, 1.0, 0.95)
            advantages = whiten(advantages, mask)
        tokens = int(mask.sum())

        def policy_loss(group: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
            found, _ = engines[0](response_tokens, [sequences[i] for i in group], [starts[i] for i in group])
            losses, _, _ = policy_losses(
                found, old[group].flatten().to(device), advantages[group].flatten().to(device), 0.2
            )
            return losses.sum() / tokens, [losses.sum()]

        def value_loss(group: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
            found = engines[1](read_values, [sequences[i] for i in group], [starts[i] for i in group])
            before = torch.cat([old_values[i] for i in group]).to(device)
            losses = value_losses(found, before, returns[group].flatten().to(device), 0.15)
            return losses.sum() / tokens, [losses.sum()]

        with phase("update"):
            for engine, loss in zip(engines, (policy_loss, value_loss), strict=True):
                engine.model.train(options.checkpointing)
                engine.accumulate(groups, groups[0], loss, figures=1)
                engine.step(1e-6)
        return int(lengths.sum())

    rate, seconds = timed(step, options.steps, device)
    share = {name: round(spent / sum(phases.values()), 3) for name, spent in phases.items()}
    generated = options.responses * options.new_tokens / (seconds * share["rollout"])
    report("ppo", shape, device, tokens_per_second=round(rate), rollout_tokens_per_second=round(generated),
           seconds_an_iteration=round(seconds, 2), share=share, checkpointing=options.checkpointing)  # fmt: skip


STAGES = {"sft": bench_sft, "rm": bench_rm, "ppo": bench_ppo}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1.8B,7B", help="of: " + ", ".join(SHAPES))
    parser.add_argument("--stages", default="sft,rm,ppo")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=16384, help="tokens a micro-batch; halved where memory is short")
    parser.add_argument("--responses", type=int, default=32, help="responses of a PPO iteration")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    for shape in options.shapes.split(","):
        for stage in options.stages.split(","):
            # Recomputing activations only where they do not fit.
            options.checkpointing, tokens = False, options.tokens
            while True:
                try:
                    STAGES[stage](shape, options, device)
                except Exception as error:
                    memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
                    if not memory:
                        raise
                    failed = f"{options.tokens} tokens, checkpointing {options.checkpointing}"
                    print(f"{stage} {shape}: out of memory with {failed}", file=sys.stderr, flush=True)
                    if options.checkpointing and options.tokens <= options.length:
                        report(stage, shape, device, error="does not fit on this GPU")
                        break
                    options.tokens = options.tokens // 2 if options.checkpointing else options.tokens
                    options.checkpointing = True
                    continue
                finally:
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                        torch.cuda.reset_peak_memory_stats(device)
                break
            options.tokens = tokens


if __name__ == "__main__":
    main()
