"""PPO (report §3.2.2, recipe.md §4.3).

Each iteration: sample two responses a prompt, score them, normalise by the running mean, take a KL penalty off every
token, estimate advantages, then update policy and value model in mini-batches. The first iterations train the value
model alone: the policy's optimiser is not touched, so policy = reference and the KL is exactly 0.

Losses are means over the response tokens of a mini-batch over all ranks. Optimiser steps are iterations x epochs x
mini-batches, for every rollout. The policy's log-probabilities are of the full distribution at the sampling
temperature, although top-p cuts the sampler's tail: slightly off-policy, but the first ratio is exactly 1.
"""

from dataclasses import dataclass

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
from components.reward_model.train import freeze_unused
from components.training.checkpoint import scratch_folder
from components.training.data import Ragged, mask_of, micro_batches, pad, ragged, read_table, rows_at, share
from components.training.engine import Engine
from components.training.loop import Loop
from components.training.models import load_policy, save_policy
from components.training.runtime import Runtime, running
from components.training.scoring import response_tokens, token_nll


def work(step: Step) -> None:
    """Inputs: policy, reward_model (folders), data (prompts), pretrain (text, for ptx). Output: a model folder."""
    config: PPOConfig = step.config
    with running(step, config.precision) as runtime:
        trainer = PPO(step, config, runtime)
        loop = Loop(
            step, config, runtime, {"policy": trainer.policy, "value": trainer.value}, trainer.state, trainer.load_state
        )
        for iteration in loop.steps(config.iterations):
            loop.log(**trainer.iterate(iteration))
        peak = runtime.peak_rss()
        if runtime.is_main:
            folder = scratch_folder(step, "output")
            save_policy(trainer.models.policy, folder, step.input("policy"))
            metrics = {
                "iterations": config.iterations,
                "prompts": len(trainer.prompts),
                "skipped_updates": trainer.skipped,
            }
            step.finish({"model": folder}, metrics, peak)
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
        self.prompts = ragged(read_table(step.input("data") / "train.parquet", ["input_ids"])["input_ids"])
        self.text = self._read_text(step)
        # Never in train mode but for gradient checkpointing: dropout would break ratio 1 on the first pass.
        self.models = Models(
            policy=load_policy(policy_folder, device=runtime.device),
            reference=load_policy(policy_folder, device=runtime.device).requires_grad_(False),
            value=RewardModel.load(reward_folder, runtime.device),
            reward=RewardModel.load(reward_folder, runtime.device).requires_grad_(False),
        )
        freeze_unused(self.models.value)
        self.policy = Engine(self.models.policy, config.optimiser, runtime)
        self.value = Engine(self.models.value, config.optimiser, runtime)
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

    def iterate(self, iteration: int) -> dict[str, float]:
        """One rollout and its updates; returns the iteration's metrics."""
        config = self.config
        begin = iteration * config.prompts_per_iteration
        rows = rows_at(begin, begin + config.prompts_per_iteration, len(self.prompts), self.seed)
        prompts = [self.prompts[row].tolist() for row in rows]
        self._eval()
        experience = collect(self.models, prompts, (self.seed, iteration), config, self.tokenizer, self.runtime)
        reward(experience, self.moments, self.kl, config)
        metrics = statistics(experience)
        metrics |= {
            "ppo_kl_coefficient": self.kl.value,
            "training_tokens_total": sum(len(item.sequence) for item in experience),
            "training_samples_total": len(experience),
        }
        value_only = iteration < config.value_warmup_iterations
        metrics |= self._update(experience, iteration, value_only)
        if not value_only:
            self.kl.update(metrics["ppo_kl"], len(experience), config.kl_controller)
        return metrics | {"ppo_value_only": float(value_only)}

    def _eval(self) -> None:
        for model in (self.models.policy, self.models.reference, self.models.value, self.models.reward):
            model.eval()

    def _update(self, experience: list[Experience], iteration: int, value_only: bool) -> dict[str, float]:
        """All epochs and mini-batches of one rollout."""
        size = self.config.mini_batch_size
        per_epoch = -(-len(experience) // size)
        sums = _Sums()
        for epoch in range(self.config.epochs):
            order = np.random.default_rng(seed_for(self.seed, "mini-batches", iteration, epoch)).permutation(
                len(experience)
            )
            for part in range(per_epoch):
                batch = [experience[i] for i in order[part * size : (part + 1) * size]]
                tokens = sum(len(item.response) for item in batch)
                if not value_only:
                    number = (iteration * self.config.epochs + epoch) * per_epoch + part
                    self._update_policy(batch, tokens, number, sums)
                self._update_value(batch, tokens, sums)
        self.skipped += sums.skipped
        return sums.metrics(value_only)

    def _update_policy(self, batch: list[Experience], tokens: int, number: int, sums: "_Sums") -> None:
        """One optimiser step on PPO and, accumulated with it, pretraining gradients (recipe.md §4.4)."""
        text_gradients = self._text_gradients(len(batch), number, sums)
        figures = torch.zeros(4, device=self.runtime.device)
        for items in self._micro_batches(batch):
            with self.runtime.autocast():
                log_probs, entropy = response_tokens(
                    self.models.policy,
                    [item.sequence for item in items],
                    [item.start for item in items],
                    self.config.temperature,
                    entropy_gradient=self.config.entropy_coefficient > 0,
                )
            old, advantages = self._joined(items, "log_probs"), self._joined(items, "advantages")
            losses, ratio, clipped = policy_losses(log_probs, old, advantages, self.config.clip)
            loss = losses.sum() / tokens
            bonus = self.config.entropy_coefficient * entropy.sum() / tokens
            self.policy.backward(loss - bonus)
            figures += torch.stack([loss.detach(), ratio.detach().sum(), clipped.sum(), entropy.detach().sum()])
        self.policy.reduce_gradients()
        self.policy.add_gradients(text_gradients)
        norm = self.policy.apply(self.config.policy_learning_rate, self.policy.gradient_norm())
        sums.add_policy(self.runtime.sum(figures).tolist(), tokens, norm)

    def _text_gradients(self, responses: int, number: int, sums: "_Sums") -> dict[str, torch.Tensor]:
        """Gradients of coefficient x mean token loss on the next pretraining sequences, summed over ranks."""
        if self.text is None:
            return {}
        count = round(self.config.ptx.sequences_per_response * responses)
        full = round(self.config.ptx.sequences_per_response * self.config.mini_batch_size)
        rows = rows_at(number * full, number * full + count, len(self.text), seed_for(self.seed, "ptx"))
        targets = sum(len(self.text[row]) - 1 for row in rows)
        total = torch.zeros((), device=self.runtime.device)
        mine = share(rows, self.text.lengths, self.runtime.rank, self.runtime.world)
        for group in micro_batches(mine, self.text.lengths, self.config.micro_batch_tokens):
            ids = pad([self.text[i] for i in group], 0).to(self.runtime.device)
            mask = mask_of([self.text[i] for i in group]).to(self.runtime.device)
            with self.runtime.autocast():
                nll = token_nll(self.models.policy, ids, mask, torch.where(mask.bool(), ids, -100))
            loss = nll.sum() / max(targets, 1)
            self.policy.backward(self.config.ptx.coefficient * loss)
            total += loss.detach()
        self.policy.reduce_gradients()
        sums.add_text(float(self.runtime.sum(total)), self.policy.gradient_norm())
        return self.policy.take_gradients()

    def _update_value(self, batch: list[Experience], tokens: int, sums: "_Sums") -> None:
        """One optimiser step of the value model."""
        total = torch.zeros((), device=self.runtime.device)
        for items in self._micro_batches(batch):
            with self.runtime.autocast():
                values = token_values(self.models.value, [i.sequence for i in items], [i.start for i in items])
            losses = value_losses(
                values, self._joined(items, "values"), self._joined(items, "returns"), self.config.value_clip
            )
            loss = losses.sum() / tokens
            self.value.backward(loss)
            total += loss.detach()
        norm = self.value.step(self.config.value_learning_rate)
        sums.add_value(float(self.runtime.sum(total)), norm)

    def _micro_batches(self, batch: list[Experience]) -> list[list[Experience]]:
        """This rank's part of a mini-batch, in groups of bounded size."""
        lengths = np.array([len(item.sequence) for item in batch])
        mine = share(range(len(batch)), lengths, self.runtime.rank, self.runtime.world)
        return [[batch[i] for i in group] for group in micro_batches(mine, lengths, self.config.micro_batch_tokens)]

    def _joined(self, items: list[Experience], name: str) -> torch.Tensor:
        return torch.cat([getattr(item, name) for item in items]).to(self.runtime.device)


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
    value_loss: float = 0.0
    value_norm: float = 0.0
    text_loss: float = 0.0
    text_norm: float = 0.0
    skipped: int = 0

    def add_policy(self, figures: list[float], tokens: int, norm: float) -> None:
        loss, ratio, clipped, entropy = figures
        self.policy_steps += 1
        self.tokens += tokens
        self.policy_loss += loss
        self.ratio += ratio
        self.clipped += clipped
        self.entropy += entropy
        self.policy_norm += norm
        self.skipped += not np.isfinite(norm)

    def add_value(self, loss: float, norm: float) -> None:
        self.value_steps += 1
        self.value_loss += loss
        self.value_norm += norm
        self.skipped += not np.isfinite(norm)

    def add_text(self, loss: float, norm: float) -> None:
        self.text_steps += 1
        self.text_loss += loss
        self.text_norm += norm

    def metrics(self, value_only: bool) -> dict[str, float]:
        found: dict[str, float] = {
            "ppo_value_loss": self.value_loss / self.value_steps,
            "ppo_value_grad_norm": self.value_norm / self.value_steps,
            "training_nonfinite_steps_total": self.skipped,
        }
        if not value_only:
            found |= {
                "training_loss": self.policy_loss / self.policy_steps,
                "ppo_policy_loss": self.policy_loss / self.policy_steps,
                "ppo_policy_grad_norm": self.policy_norm / self.policy_steps,
                "ppo_ratio_mean": self.ratio / self.tokens,
                "ppo_clip_fraction_ratio": self.clipped / self.tokens,
                "ppo_entropy": self.entropy / self.tokens,
            }
        if self.text_steps:
            found |= {
                "ppo_ptx_loss": self.text_loss / self.text_steps,
                "ppo_ptx_grad_norm": self.text_norm / self.text_steps,
            }
        return found
