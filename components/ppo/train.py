"""PPO (report §3.2.2, recipe.md §4.3).

Each iteration: sample two responses a prompt, score them, normalise by the running mean, take a KL penalty off every
token, estimate advantages, then update policy and value model in mini-batches. The first iterations train the value
model alone: the policy's optimiser is not touched, so policy = reference and the KL is exactly 0.

Losses are means over the response tokens of a mini-batch over all ranks. Optimiser steps are iterations x epochs x
mini-batches, for every rollout. The policy's log-probabilities are of the full distribution at the sampling
temperature, although top-p cuts the sampler's tail: slightly off-policy, but the first ratio is exactly 1.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from components.core.chatml import ChatTokenizer
from components.core.config import PPOConfig
from components.core.errors import UserError
from components.core.seeds import seed_for
from components.core.step import Step
from components.ppo.losses import policy_losses, value_losses
from components.ppo.rewards import KLCoefficient, RunningMoments
from components.ppo.rollout import Experience, Models, collect, reward, statistics, token_values
from components.reward_model.model import RewardModel
from components.reward_model.train import prepare
from components.training import models
from components.training.data import Ragged, micro_batches, ragged, read_table, rows_at, share
from components.training.engine import make_engine
from components.training.loop import Loop
from components.training.models import load_policy, save_trained
from components.training.rollout_backend import RolloutBackend
from components.training.runtime import Runtime, running
from components.training.scoring import response_tokens, token_nll
from components.training.vllm_backend import VLLMSampler

Watch = Callable[[float, Callable[[], Sequence[str]]], int]
"""Told of each optimiser step's gradient norm and who could be to blame; 1 where the step was skipped."""


def work(step: Step) -> None:
    """Inputs: policy, reward_model (folders), data (prompts), pretrain (text, for ptx). Output: a model folder."""
    config: PPOConfig = step.config
    with running(step, config.precision) as runtime:
        trainer = PPO(step, config, runtime)
        loop = Loop(
            step, config, runtime, {"policy": trainer.policy, "value": trainer.value}, trainer.state, trainer.load_state
        )
        for iteration in loop.steps(config.iterations):
            loop.log(**trainer.iterate(iteration, loop.watch))
        peak = runtime.peak_rss()
        folders = save_trained(trainer.policy, step, step.input("policy"))
        if runtime.is_main:
            metrics = {
                "iterations": config.iterations,
                "prompts": len(trainer.prompts),
                "skipped_updates": trainer.skipped,
            }
            step.finish(folders, metrics, peak)
            loop.close()
        runtime.barrier()


class PPO:
    """The state that moves: four models, two optimisers, reward moments, KL coefficient."""

    def __init__(self, step: Step, config: PPOConfig, runtime: Runtime) -> None:
        self.config, self.runtime, self.seed = config, runtime, step.spec.seed
        policy_folder, reward_folder = step.input("policy"), step.input("reward_model")
        self.tokenizer = ChatTokenizer.load(policy_folder)
        if self.tokenizer.tokenizer.get_vocab() != ChatTokenizer.load(reward_folder).tokenizer.get_vocab():
            raise UserError(
                "ppo: policy and reward model have different tokenizers; train both from the same base model"
            )
        table = read_table(step.input("data") / "train.parquet", ["id", "input_ids"])
        self.ids, self.prompts = table["id"].to_pylist(), ragged(table["input_ids"])
        self.text = self._read_text(step)
        self.models = load_models(policy_folder, reward_folder, config, runtime, self.seed)
        self.policy, self.value = self.models.policy, self.models.value
        self.moments = RunningMoments()
        self.kl = KLCoefficient(config.kl_coefficient)
        self.skipped = 0

    def _read_text(self, step: Step) -> Ragged | None:
        if not self.config.ptx.coefficient:
            return None
        return ragged(read_table(step.input("pretrain") / "train.parquet", ["input_ids"])["input_ids"])

    def state(self) -> dict[str, object]:
        """What a checkpoint holds beside weights and optimisers."""
        moments = [self.moments.count, self.moments.mean, self.moments.squares]
        return {"moments": moments, "kl_coefficient": self.kl.value, "skipped": self.skipped}

    def load_state(self, state: dict[str, object]) -> None:
        self.moments = RunningMoments(*state["moments"])  # type: ignore[misc]
        self.kl = KLCoefficient(state["kl_coefficient"])  # type: ignore[arg-type]
        self.skipped = state["skipped"]  # type: ignore[assignment]

    def iterate(self, iteration: int, watch: Watch) -> dict[str, float]:
        """One rollout and its updates; returns the iteration's metrics."""
        config = self.config
        begin = iteration * config.prompts_per_iteration
        rows = rows_at(begin, begin + config.prompts_per_iteration, len(self.prompts), self.seed)
        prompts = [self.prompts[row].tolist() for row in rows]
        value_only = iteration < config.value_warmup_iterations
        self._train(False)
        experience, metrics = collect(
            self.models,
            prompts,
            (self.seed, iteration),
            config,
            self.tokenizer,
            self.runtime,
            keep=not value_only and self._one_pass(len(prompts) * config.responses_per_prompt),
        )
        reward(experience, self.moments, self.kl, config)
        metrics |= statistics(experience)
        metrics |= {
            "ppo_kl_coefficient": self.kl.value,
            "training_tokens_total": sum(len(item.sequence) for item in experience),
            "training_samples_total": len(experience),
        }
        started = time.monotonic()
        names = [self.ids[row] for row in rows for _ in range(config.responses_per_prompt)]
        metrics |= self._update(
            experience, iteration, value_only, lambda norm, batch: self._watch(watch, norm, batch, names)
        )
        metrics["ppo_update_seconds"] = time.monotonic() - started
        if not value_only:
            self.kl.update(metrics["ppo_kl"], len(experience), config.kl_controller)
        return metrics | {"ppo_value_only": float(value_only)}

    def _one_pass(self, responses: int) -> bool:
        """Whether one optimiser step takes the whole rollout as it was scored: on this rank, nothing recomputed."""
        config = self.config
        return (
            (config.epochs == 1 and responses <= config.mini_batch_size)
            and (self.runtime.world == 1 and config.zero.stage == 0)
            and not (config.gradient_checkpointing or config.lora.rank)
        )

    def _train(self, mode: bool) -> None:
        """transformers recomputes activations in train mode alone; a cache for sampling needs eval mode."""
        self.policy.model.train(mode)
        self.value.model.train(mode)

    def _watch(self, watch: Watch, norm: float, batch: list[int], names: list[str]) -> None:
        self.skipped += watch(norm, lambda: [names[i] for i in batch])

    def _update(
        self, experience: list[Experience], iteration: int, value_only: bool, watch: Callable[[float, list[int]], None]
    ) -> dict[str, float]:
        """All epochs and mini-batches of one rollout."""
        size = self.config.mini_batch_size
        per_epoch = -(-len(experience) // size)
        sums, skipped = _Sums(), self.skipped
        self._train(self.config.gradient_checkpointing)
        for epoch in range(self.config.epochs):
            order = np.random.default_rng(seed_for(self.seed, "mini-batches", iteration, epoch)).permutation(
                len(experience)
            )
            for part in range(per_epoch):
                chosen = order[part * size : (part + 1) * size].tolist()
                batch = [experience[i] for i in chosen]
                if not value_only:
                    number = (iteration * self.config.epochs + epoch) * per_epoch + part
                    watch(self._update_policy(batch, number, sums), chosen)
                watch(self._update_value(batch, sums), chosen)
        return sums.metrics(value_only) | {"training_nonfinite_steps_total": self.skipped - skipped}

    def _update_policy(self, batch: list[Experience], number: int, sums: "_Sums") -> float:
        """One optimiser step on PPO and, accumulated with it, pretraining gradients (recipe.md §4.4)."""
        config, tokens = self.config, sum(len(item.response) for item in batch)

        def loss(items: list[Experience]) -> tuple[torch.Tensor, list[torch.Tensor]]:
            if kept := [item.kept for item in items if item.kept]:
                log_probs, entropy, _ = map(torch.cat, zip(*kept, strict=True))
            else:
                log_probs, entropy = self.policy(
                    response_tokens,
                    [item.sequence for item in items],
                    [item.start for item in items],
                    config.temperature,
                    entropy_gradient=config.entropy_coefficient > 0,
                )
            old, advantages = self._joined(items, "log_probs"), self._joined(items, "advantages")
            losses, ratio, clipped = policy_losses(log_probs, old, advantages, config.clip)
            value = losses.sum() / tokens
            bonus = config.entropy_coefficient * entropy.sum() / tokens
            return value - bonus, [value, ratio.sum(), clipped.sum(), entropy.sum()]

        text_norm = self._accumulate_text(len(batch), number, sums)
        groups, spare = self._micro_batches(batch)
        figures = self.policy.accumulate(groups, spare, loss, figures=4)
        own_norm = self.policy.set_aside() if text_norm is not None else math.nan
        norm = self.policy.step(config.policy_learning_rate)
        sums.add_policy(figures, tokens, norm, norm if math.isnan(own_norm) else own_norm)
        return norm

    def _accumulate_text(self, responses: int, number: int, sums: "_Sums") -> float | None:
        """Gradients of coefficient x mean token loss on the next pretraining sequences; their norm (NaN if sharded)."""
        if self.text is None:
            return None
        text, coefficient = self.text, self.config.ptx.coefficient
        count = round(self.config.ptx.sequences_per_response * responses)
        full = round(self.config.ptx.sequences_per_response * self.config.mini_batch_size)
        rows = rows_at(number * full, number * full + count, len(text), seed_for(self.seed, "ptx"))
        targets = max(sum(len(text[row]) - 1 for row in rows), 1)

        def loss(group: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
            nll = self.policy(token_nll, [text[i] for i in group], [text[i] for i in group])
            value = nll.sum() / targets
            return coefficient * value, [value]

        mine = share(rows, text.lengths, self.runtime.rank, self.runtime.world)
        groups = micro_batches(mine, text.lengths, self.config.micro_batch_tokens)
        spare = [min(rows, key=lambda row: int(text.lengths[row]))]
        total = self.policy.accumulate(groups, spare, loss, figures=1, last=False)[0]
        norm = self.policy.set_aside()
        sums.add_text(total, norm)
        return norm

    def _update_value(self, batch: list[Experience], sums: "_Sums") -> float:
        """One optimiser step of the value model."""
        tokens = sum(len(item.response) for item in batch)

        def loss(items: list[Experience]) -> tuple[torch.Tensor, list[torch.Tensor]]:
            if kept := [item.kept for item in items if item.kept]:
                values = torch.cat([item[2] for item in kept])
            else:
                values = self.value(token_values, [i.sequence for i in items], [i.start for i in items])
            old, returns = self._joined(items, "values"), self._joined(items, "returns")
            value = value_losses(values, old, returns, self.config.value_clip).sum() / tokens
            return value, [value]

        groups, spare = self._micro_batches(batch)
        total = self.value.accumulate(groups, spare, loss, figures=1)[0]
        norm = self.value.step(self.config.value_learning_rate)
        sums.add_value(total, norm)
        return norm

    def _micro_batches(self, batch: list[Experience]) -> tuple[list[list[Experience]], list[Experience]]:
        """This rank's part of a mini-batch, in groups of bounded size; and the shortest response as a spare."""
        lengths = np.array([len(item.sequence) for item in batch])
        mine = share(range(len(batch)), lengths, self.runtime.rank, self.runtime.world)
        groups = micro_batches(mine, lengths, self.config.micro_batch_tokens)
        return [[batch[i] for i in group] for group in groups], [batch[int(lengths.argmin())]]

    def _joined(self, items: list[Experience], name: str) -> torch.Tensor:
        return torch.cat([getattr(item, name) for item in items]).to(self.runtime.device)


def load_models(policy_folder: Path, reward_folder: Path, config: PPOConfig, runtime: Runtime, seed: int) -> Models:
    """Policy and reference from the policy's folder, value and reward model from the reward model's.

    None has dropout: it would break ratio 1 on the first pass.
    """
    policy = load_policy(policy_folder, device=runtime.device, dtype=runtime.dtype)
    value = RewardModel.load(reward_folder, runtime.device, runtime.dtype)
    reference, reward_model, reward_head = None, None, None
    if config.lora.rank:
        reward_head = copy.deepcopy(value.head).requires_grad_(False)
    else:
        frozen = torch.device("cpu") if config.frozen_on_cpu else runtime.device
        reference = load_policy(policy_folder, device=frozen, dtype=runtime.dtype).requires_grad_(False)
        reward_model = RewardModel.load(reward_folder, frozen, runtime.dtype).requires_grad_(False)
    models.prepare(policy, config, seed_for(seed, "adapters"))
    prepare(value, config, seed_for(seed, "value-adapters"))
    engine = make_engine(policy, config, runtime)
    return Models(
        policy=engine,
        value=make_engine(value, config, runtime),
        reference=reference,
        reward=reward_model,
        reward_head=reward_head,
        beside=_engine_beside(policy_folder, config),
    )


def _engine_beside(policy_folder: Path, config: PPOConfig) -> RolloutBackend | None:
    if config.rollout == "local":
        return None
    return VLLMSampler(
        policy_folder,
        longest=config.vllm.longest,
        gpu_memory_share=config.vllm.gpu_memory_share,
        dtype="bfloat16" if config.precision == "bf16" else "float32",
    )


@dataclass
class _Sums:
    """Figures of one iteration's updates, averaged over tokens or optimiser steps at the end."""

    tokens: int = 0
    policy_steps: int = 0
    value_steps: int = 0
    text_steps: int = 0
    policy_loss: float = 0.0
    ratio: float = 0.0
    clipped: float = 0.0
    entropy: float = 0.0
    policy_norm: float = 0.0
    total_norm: float = 0.0
    value_loss: float = 0.0
    value_norm: float = 0.0
    text_loss: float = 0.0
    text_norm: float = 0.0

    def add_policy(self, figures: list[float], tokens: int, norm: float, own_norm: float) -> None:
        loss, ratio, clipped, entropy = figures
        self.policy_steps += 1
        self.tokens += tokens
        self.policy_loss += loss
        self.ratio += ratio
        self.clipped += clipped
        self.entropy += entropy
        self.policy_norm += own_norm
        self.total_norm += norm

    def add_value(self, loss: float, norm: float) -> None:
        self.value_steps += 1
        self.value_loss += loss
        self.value_norm += norm

    def add_text(self, loss: float, norm: float) -> None:
        self.text_steps += 1
        self.text_loss += loss
        self.text_norm += norm

    def metrics(self, value_only: bool) -> dict[str, float]:
        found: dict[str, float] = {
            "ppo_value_loss": self.value_loss / self.value_steps,
            "ppo_value_grad_norm": self.value_norm / self.value_steps,
        }
        if not value_only:
            found |= {
                "training_loss": self.policy_loss / self.policy_steps,
                "training_grad_norm": self.total_norm / self.policy_steps,
                "ppo_policy_loss": self.policy_loss / self.policy_steps,
                "ppo_policy_grad_norm": self.policy_norm / self.policy_steps,
                "ppo_ratio_mean": self.ratio / self.tokens,
                "ppo_clip_fraction_ratio": self.clipped / self.tokens,
                "ppo_entropy": self.entropy / self.tokens,
            }
        if self.text_steps:
            found["ppo_ptx_loss"] = self.text_loss / self.text_steps
            if not math.isnan(self.text_norm):
                found["ppo_ptx_grad_norm"] = self.text_norm / self.text_steps
        return found
