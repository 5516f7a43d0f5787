"""Preference-model pretraining and reward-model fine-tuning (report §3.2.1): one trainer, other data and start.

    loss = mean over prompts of mean over the prompt's strict pairs of -log sigma(r_chosen - r_rejected)

Every response of a prompt is scored once, however many pairs it is in. PMP starts from the base model with a fresh
head, the reward model from PMP with PMP's head. After the reward model's training its offset is set so that
demonstrations score 0 on average (OpenAI's practice, recipe.md §3.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from components.core.chatml import ChatTokenizer
from components.core.config import RewardConfig, Trainer
from components.core.records import Chat, read_rows
from components.core.seeds import seed_for
from components.core.step import Step
from components.reward_model.losses import accuracy, pair_losses, pair_weights
from components.reward_model.matched import matched
from components.reward_model.model import RewardModel
from components.training import models
from components.training.data import ComparisonRows, read_comparisons, row_order
from components.training.engine import Engine, make_engine
from components.training.loop import Loop
from components.training.models import save_with_adapter
from components.training.runtime import Runtime, running
from components.training.schedule import learning_rate
from components.training.scoring import Row

_DEMONSTRATIONS = 512


def work(step: Step) -> None:
    """Inputs: base_model (a language or reward model), data (comparisons), optionally demonstrations (chats) and
    matched_with (other comparisons, to whose prompts and numbers of pairs the data are cut down)."""
    config: RewardConfig = step.config
    with running(step, config.precision) as runtime:
        base = step.input("base_model")
        data = read_comparisons(step.input("data") / "train.parquet")
        if step.has_input("matched_with"):
            ours, theirs = (step.input(name) / "train.parquet" for name in ("data", "matched_with"))
            data = matched(data, ours, theirs, step.spec.seed)
        model = start_model(step, base, config, runtime)
        # Attention dropout is 0 here (recipe.md §3.4 [D]); train mode only for gradient checkpointing.
        model.train()
        engine = make_engine(model, config, runtime)
        loop = Loop(step, config, runtime, {"model": engine})

        batches = plan_batches(data, config.batch_size, config.epochs, step.spec.seed)
        for number in loop.steps(len(batches)):
            batch = batches[number]
            sums = _accumulate(engine, data, batch, config, runtime)
            rate = learning_rate(number, peak=config.learning_rate, warmup=config.warmup_steps)
            norm = engine.step(rate)
            loop.log(
                training_loss=sums.loss,
                training_learning_rate=rate,
                training_grad_norm=norm,
                training_tokens_total=sums.tokens,
                training_samples_total=sums.pairs,
                training_nonfinite_steps_total=loop.watch(norm, lambda batch=batch: _suspects(engine, data, batch)),  # type: ignore[misc]
                reward_model_accuracy_ratio=sums.accuracy,
                reward_model_margin=sums.margin,
            )
        peak = runtime.peak_rss()
        folders, offset = _save(step, engine, config, base)
        if runtime.is_main:
            metrics = {
                "steps": len(batches),
                "prompts": len(data),
                "pairs": sum(map(len, data.pairs)),
                "offset": offset,
            }
            step.finish(folders, metrics, peak)
            loop.close()
        runtime.barrier()


def start_model(step: Step, base: Path, config: RewardConfig, runtime: Runtime) -> RewardModel:
    """The base with its head, or with a fresh one where it has none."""
    torch.manual_seed(seed_for(step.spec.seed, "head"))
    if (base / "reward_head.json").is_file():
        model = RewardModel.load(base, runtime.device, runtime.dtype)
    else:
        model = RewardModel.from_base(base, config.head, runtime.device, runtime.dtype)
    model.offset = 0.0
    prepare(model, config, seed_for(step.spec.seed, "adapters"))
    return model


def prepare(model: RewardModel, config: Trainer, seed: int) -> None:
    """For this trainer and for PPO's value model."""
    models.prepare(model.trunk, config, seed)
    freeze_unused(model)


def _save(step: Step, engine: Engine, config: RewardConfig, base: Path) -> tuple[dict[str, Path], float]:
    """Set the offset and write the model, on the main rank. Every rank must call it."""
    with engine.whole() as model:
        if not engine.runtime.is_main:
            return {}, 0.0
        assert isinstance(model, RewardModel)
        model.eval()
        if step.has_input("demonstrations"):
            model.offset = mean_score(model, step, config.micro_batch_tokens)
        folder = step.scratch("output")
        folders = save_with_adapter(model, config.lora, folder, lambda whole, to: whole.save(to, base), trunk="trunk")
        return folders, model.offset


def freeze_unused(model: RewardModel) -> None:
    """An untied output layer gets no gradient here; weight decay alone must not shrink it."""
    output = model.trunk.get_output_embeddings().weight
    if output is not model.trunk.get_input_embeddings().weight:
        output.requires_grad_(False)


def plan_batches(data: ComparisonRows, pairs: int, epochs: float, seed: int) -> list[list[int]]:
    """Prompt numbers of every optimiser step: shuffled prompts taken until a step has `pairs` pairs or more.

    A prompt's pairs stay together: split over steps they overfit within an epoch (InstructGPT §3.5). The last step of
    all may be short.
    """
    batches: list[list[int]] = []
    left, epoch = round(epochs * len(data)), 0
    size = pairs
    while left > 0:
        for prompt in row_order(len(data), seed, epoch)[:left].tolist():
            if size >= pairs:
                batches.append([])
                size = 0
            batches[-1].append(prompt)
            size += len(data.pairs[prompt])
        left -= len(data)
        epoch += 1
    return batches


@dataclass
class _Sums:
    loss: float
    accuracy: float
    margin: float
    pairs: int
    tokens: int


def _accumulate(
    engine: Engine, data: ComparisonRows, batch: list[int], config: RewardConfig, runtime: Runtime
) -> _Sums:
    """Forward and backward over this rank's prompts; figures are of the whole batch."""
    tokens = {p: int(data.responses.offsets[data.first[p + 1]] - data.responses.offsets[data.first[p]]) for p in batch}
    mine = sorted(batch, key=lambda prompt: (-tokens[prompt], prompt))[runtime.rank :: runtime.world]

    def loss(group: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        value, right, gap = _pair_loss(engine, data, group, config)
        value = value / len(batch)
        return value, [value, right, gap]

    spare = [min(batch, key=lambda prompt: tokens[prompt])]
    groups = prompt_groups(mine, tokens, config.micro_batch_tokens)
    total, right, gap = engine.accumulate(groups, spare, loss, figures=3)
    pairs = sum(len(data.pairs[prompt]) for prompt in batch)
    return _Sums(total, right / max(pairs, 1), gap / max(pairs, 1), pairs, sum(tokens.values()))


def prompt_groups(prompts: list[int], tokens: dict[int, int], budget: int) -> list[list[int]]:
    """Whole prompts together, at most `budget` tokens a group (one prompt may exceed it)."""
    groups: list[list[int]] = []
    used = 0
    for prompt in sorted(prompts, key=lambda p: (-tokens[p], p)):
        if groups and used + tokens[prompt] <= budget:
            groups[-1].append(prompt)
            used += tokens[prompt]
        else:
            groups.append([prompt])
            used = tokens[prompt]
    return groups


def _score(model: RewardModel, rows: Sequence[Row]) -> torch.Tensor:
    return model(rows)


def _pair_loss(
    engine: Engine, data: ComparisonRows, prompts: list[int], config: RewardConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sum over prompts of the mean pair loss, pairs ordered right, sum of score gaps) of some prompts."""
    rows: list[np.ndarray] = []
    pairs, owner, gaps = [], [], []
    for i, prompt in enumerate(prompts):
        pairs.append(data.pairs[prompt] + len(rows))
        owner += [i] * len(data.pairs[prompt])
        gaps.append(data.gaps[prompt])
        rows += [data.responses[r] for r in range(data.first[prompt], data.first[prompt + 1])]
    # Equal lengths together, which attention uses; then back in the order of the pairs.
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    back = torch.tensor(order).argsort().to(engine.runtime.device)
    scores = engine(_score, [rows[i] for i in order]).index_select(0, back)
    index = torch.from_numpy(np.concatenate(pairs)).to(scores.device)
    chosen, rejected = scores[index[:, 0]], scores[index[:, 1]]
    weights = pair_weights(torch.tensor(owner, dtype=torch.int64), len(prompts)).to(scores.device)
    margin = torch.from_numpy(np.concatenate(gaps)).to(scores.device) if config.margin else None
    losses = pair_losses(chosen, rejected, margin)
    if config.centring:
        losses = losses + config.centring * (chosen + rejected) ** 2
    with torch.no_grad():
        right, gap = accuracy(chosen, rejected).sum(), (chosen - rejected).sum()
    # A batch without a pair has a loss of zero that still reaches every weight.
    return (losses * weights).sum() + 0.0 * scores.sum(), right, gap


@torch.no_grad()
def _suspects(engine: Engine, data: ComparisonRows, batch: list[int]) -> list[str]:
    """Ids of the prompts with a score that is not finite; of the whole batch where it is no single prompt's doing."""
    found = []
    for prompt in batch:
        rows = [data.responses[r] for r in range(data.first[prompt], data.first[prompt + 1])]
        if not torch.isfinite(engine(_score, rows)).all():
            found.append(data.ids[prompt])
    return found or [data.ids[prompt] for prompt in batch]


@torch.no_grad()
def mean_score(model: RewardModel, step: Step, batch_tokens: int) -> float:
    """Mean score of the first demonstrations: what the offset takes away."""
    sequences = []
    # data_prep ends a chat with <|im_end|> and a newline; the reward is read at the former.
    newline = len(ChatTokenizer.load(step.input("base_model")).newline)
    for chat in read_rows(step.input("demonstrations") / "train.parquet", Chat):
        sequences.append(chat.input_ids[:-newline])
        if len(sequences) == _DEMONSTRATIONS:
            break
    return float(np.mean(model.score(sequences, batch_tokens)))
