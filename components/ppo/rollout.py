"""Experience: sampled responses with everything that the updates need, the same on every rank."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from components.core.chatml import ChatTokenizer
from components.core.config import PPOConfig
from components.core.metrics import repeated_ngrams
from components.core.seeds import seed_for
from components.ppo.advantages import gae, whiten
from components.ppo.rewards import KLCoefficient, RunningMoments, final_score, token_rewards
from components.reward_model.model import RewardModel
from components.training.data import micro_batches
from components.training.engine import Engine
from components.training.models import hidden_states
from components.training.rollout_backend import LocalSampler, RolloutBackend
from components.training.runtime import Runtime
from components.training.scoring import Row, response_log_probs, response_positions, response_tokens

Module = TypeVar("Module", bound=nn.Module)


@dataclass(kw_only=True)
class Experience:
    """One response. Arrays are (response tokens,), on the CPU."""

    sequence: list[int]
    start: int
    truncated: bool
    raw_score: float
    log_probs: torch.Tensor
    reference: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    returns: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    kept: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    """Log-probabilities, entropy, values with their graphs, where the update needs no pass of its own."""

    @property
    def response(self) -> list[int]:
        return self.sequence[self.start :]


@dataclass(frozen=True)
class Models:
    """The four models of PPO. With LoRA the frozen two are the trained two with their adapters off."""

    policy: Engine
    value: Engine
    reference: PreTrainedModel | None
    reward: RewardModel | None
    reward_head: nn.Sequential | None  # with LoRA: the head that the value model's own one started from
    beside: RolloutBackend | None  # an engine that samples in the policy's place

    def sampler(self, policy: PreTrainedModel, config: PPOConfig) -> RolloutBackend:
        """With the weights as they are now."""
        if self.beside is None:
            return LocalSampler(policy, config.micro_batch_tokens)
        if config.lora.rank:
            from components.training.lora import merged

            self.beside.load_weights(merged(policy).named_parameters())
        else:
            self.beside.load_weights(policy.named_parameters())
        return self.beside

    @contextlib.contextmanager
    def as_reference(
        self, policy: PreTrainedModel, config: PPOConfig, device: torch.device
    ) -> Iterator[PreTrainedModel]:
        if self.reference is not None:
            with on_device(self.reference, device, config.frozen_on_cpu) as model:
                yield model
        else:
            from components.training.lora import adapters_off

            with adapters_off(policy):
                yield policy

    @contextlib.contextmanager
    def as_reward(self, value: RewardModel, config: PPOConfig, device: torch.device) -> Iterator[RewardModel]:
        if self.reward is not None:
            with on_device(self.reward, device, config.frozen_on_cpu) as model:
                yield model
        else:
            from components.training.lora import adapters_off

            assert self.reward_head is not None  # made together with the adapters
            with adapters_off(value.trunk):
                yield RewardModel(value.trunk, self.reward_head, value.kind, value.offset)


@contextlib.contextmanager
def on_device(model: Module, device: torch.device, back: bool) -> Iterator[Module]:
    """A frozen model where it is needed; with `back` it waits on the CPU the rest of the time."""
    yield model.to(device)
    if back:
        model.to("cpu")


def collect(
    models: Models,
    prompts: Sequence[Sequence[int]],
    coordinates: tuple[int, int],
    config: PPOConfig,
    tokenizer: ChatTokenizer,
    runtime: Runtime,
    keep: bool = False,
) -> tuple[list[Experience], dict[str, float]]:
    """Responses of this iteration's prompts, sampled and scored by all ranks, on every rank in the same order.

    `coordinates` are (run seed, iteration): a response's draws depend on them, its prompt's number and its own, so the
    number of ranks does not change them. With it come the seconds of sampling and of scoring. `keep`: the passes of the
    policy and value model keep their graphs for the update, where one micro-batch holds the whole rollout.
    """
    seed, iteration = coordinates
    jobs = [(p, s) for p in range(len(prompts)) for s in range(config.responses_per_prompt)]
    mine = [job for job in jobs if job[0] % runtime.world == runtime.rank]
    rows = [list(prompts[p]) for p, _ in mine]
    started = time.monotonic()
    with models.policy.whole() as policy:
        assert isinstance(policy, PreTrainedModel)
        responses = models.sampler(policy, config).generate(
            rows,
            seeds=[seed_for(seed, "rollout", iteration, p, s) for p, s in mine],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            stop_ids=tokenizer.stop_ids,
        )
        sampled = time.monotonic()
        ids = [response.ids for response in responses]
        sequences = [row + answer for row, answer in zip(rows, ids, strict=True)]
        starts = [len(row) for row in rows]
        kept = None
        if keep and sum(map(len, sequences)) <= config.micro_batch_tokens:
            kept = passes_with_graph(models, sequences, starts, config)

        def log_probs(model: PreTrainedModel) -> list[torch.Tensor]:
            """By the trainer's own forward pass, never the sampler's: they must be those that the ratio starts from."""
            return response_log_probs(
                model, rows, ids, temperature=config.temperature, batch_tokens=config.micro_batch_tokens
            )

        old = [item[0].detach().cpu() for item in kept] if kept else log_probs(policy)
        with models.as_reference(policy, config, runtime.device) as reference_model:
            reference = log_probs(reference_model)
    with models.value.whole() as value:
        assert isinstance(value, RewardModel)
        if kept:
            values = [item[2].detach().cpu() for item in kept]
        else:
            values = response_values(value, sequences, starts, config.micro_batch_tokens)
        with models.as_reward(value, config, runtime.device) as reward_model:
            scores = reward_model.score(sequences, config.micro_batch_tokens)
    # A response that stopped at <|im_start|> or <|endoftext|> has no <|im_end|> to read a score off: as unfinished.
    found = [
        Experience(
            sequence=sequences[i],
            start=starts[i],
            truncated=ids[i][-1] != tokenizer.im_end,
            raw_score=scores[i],
            log_probs=old[i],
            reference=reference[i],
            values=values[i],
            kept=kept[i] if kept else None,
        )
        for i in range(len(mine))
    ]
    everyone = dict(pair for part in runtime.gather(list(zip(mine, found, strict=True))) for pair in part)
    seconds = {"ppo_rollout_seconds": sampled - started, "ppo_scoring_seconds": time.monotonic() - sampled}
    return [everyone[job] for job in jobs], seconds


def passes_with_graph(
    models: Models, sequences: Sequence[Sequence[int]], starts: Sequence[int], config: PPOConfig
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """`Experience.kept` of every sequence: one pass of the policy and one of the value model."""
    bonus = config.entropy_coefficient > 0
    with models.policy.explained():
        log_probs, entropy = models.policy(
            response_tokens, sequences, starts, config.temperature, entropy_gradient=bonus
        )
    with models.value.explained():
        values = models.value(token_values, sequences, starts)
    lengths = [len(row) - start for row, start in zip(sequences, starts, strict=True)]
    return list(zip(log_probs.split(lengths), entropy.split(lengths), values.split(lengths), strict=True))


@torch.no_grad()
def response_values(
    model: RewardModel, sequences: Sequence[Sequence[int]], starts: Sequence[int], batch_tokens: int
) -> list[torch.Tensor]:
    """V of the state before each response token, on the CPU: read where that token is predicted."""
    result = [torch.empty(0)] * len(sequences)
    for group in micro_batches(range(len(sequences)), np.array([len(row) for row in sequences]), batch_tokens):
        joined = token_values(model, [sequences[i] for i in group], [starts[i] for i in group])
        parts = joined.cpu().split([len(sequences[i]) - starts[i] for i in group])
        for i, part in zip(group, parts, strict=True):
            result[i] = part
    return result


def token_values(model: RewardModel, sequences: Sequence[Row], starts: Sequence[int]) -> torch.Tensor:
    """(response tokens,) values of some rows, joined row after row."""
    return model.read(hidden_states(model.trunk, sequences, response_positions(sequences, starts)))


def reward(experience: list[Experience], moments: RunningMoments, kl: KLCoefficient, config: PPOConfig) -> None:
    """Fill in advantages and returns. Moments see every finished response of all ranks before they normalise any."""
    unread = config.truncation == "replace"
    moments.update([item.raw_score for item in experience if not (item.truncated and unread)])
    rewards = [
        token_rewards(
            item.log_probs,
            item.reference,
            final_score(item.raw_score, item.truncated, moments, config),
            kl.value,
            config.kl_reduction,
        )
        for item in experience
    ]
    padded = torch.nn.utils.rnn.pad_sequence
    mask = padded([torch.ones(len(item.values)) for item in experience], batch_first=True)
    advantages, returns = gae(
        padded(rewards, batch_first=True),
        padded([item.values for item in experience], batch_first=True),
        mask,
        config.gamma,
        config.gae_lambda,
    )
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    for row, item in enumerate(experience):
        item.advantages, item.returns = advantages[row, : len(item.values)], returns[row, : len(item.values)]


def statistics(experience: list[Experience]) -> dict[str, float]:
    """What a person watches of a rollout; names as in core/metrics.py."""
    scores = torch.tensor([item.raw_score for item in experience])
    lengths = [len(item.response) for item in experience]
    gaps = [item.log_probs - item.reference for item in experience]
    values = torch.cat([item.values for item in experience])
    returns = torch.cat([item.returns for item in experience])
    spread = float(returns.var(unbiased=False))
    return {
        "ppo_reward_mean": float(scores.mean()),
        "ppo_reward_std": float(scores.std(unbiased=False)),
        "ppo_kl": sum(float(gap.sum()) for gap in gaps) / len(gaps),
        "ppo_kl_k3": sum(float((torch.exp(-gap) - 1 + gap).sum()) for gap in gaps) / len(gaps),
        "ppo_response_length_tokens": sum(lengths) / len(lengths),
        "ppo_truncated_ratio": sum(item.truncated for item in experience) / len(experience),
        "ppo_repetition_ratio": sum(repeated_ngrams(item.response) for item in experience) / len(experience),
        "ppo_value_explained_variance_ratio": 1 - float((returns - values).var(unbiased=False)) / max(spread, 1e-8),
    }
