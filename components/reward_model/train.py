"""Preference-model pretraining and reward-model fine-tuning (report §3.2.1): one trainer, other data and start.

    loss = mean over prompts of mean over the prompt's strict pairs of -log sigma(r_chosen - r_rejected)

Every response of a prompt is scored once, however many pairs it is in. PMP starts from the base model with a fresh
head, the reward model from PMP with PMP's head. After the reward model's training its offset is set so that
demonstrations score 0 on average (OpenAI's practice, recipe.md §3.4).
"""

from dataclasses import dataclass

import numpy as np
import torch

from components.core.chatml import ChatTokenizer
from components.core.config import RewardConfig
from components.core.records import Chat, read_rows
from components.core.seeds import seed_for
from components.core.step import Step
from components.reward_model.losses import accuracy, pair_losses, pair_weights
from components.reward_model.model import RewardModel
from components.training.checkpoint import scratch_folder
from components.training.data import ComparisonRows, mask_of, pad, read_comparisons, row_order
from components.training.engine import Engine
from components.training.loop import Loop
from components.training.runtime import Runtime, running
from components.training.schedule import learning_rate

_DEMONSTRATIONS = 512


def work(step: Step) -> None:
    """Inputs: base_model (a language or reward model), data (comparisons), optionally demonstrations (chats)."""
    config: RewardConfig = step.config
    with running(step, config.precision) as runtime:
        base = step.input("base_model")
        data = read_comparisons(step.input("data") / "train.parquet")
        torch.manual_seed(seed_for(step.spec.seed, "head"))
        is_reward_model = (base / "reward_head.json").is_file()
        model = (
            RewardModel.load(base, runtime.device)
            if is_reward_model
            else RewardModel.from_base(base, config.head, runtime.device)
        )
        model.offset = 0.0
        if config.gradient_checkpointing:
            model.trunk.gradient_checkpointing_enable()
        # Attention dropout is 0 here (recipe.md §3.4 [D]); train mode only for gradient checkpointing.
        model.train()
        freeze_unused(model)
        engine = Engine(model, config.optimiser, runtime)
        loop = Loop(step, config, runtime, {"model": engine})

        batches = plan_batches(data, config.batch_size, config.epochs, step.spec.seed)
        for number in loop.steps(len(batches)):
            batch = batches[number]
            sums = _accumulate(model, engine, data, batch, config, runtime)
            rate = learning_rate(number, peak=config.learning_rate, warmup=config.warmup_steps)
            norm = engine.step(rate)
            loop.log(
                training_loss=sums.loss,
                training_learning_rate=rate,
                training_grad_norm=norm,
                training_tokens_total=sums.tokens,
                training_samples_total=sums.pairs,
                training_nonfinite_steps_total=int(not np.isfinite(norm)),
                reward_model_accuracy_ratio=sums.accuracy,
                reward_model_margin=sums.margin,
            )
        peak = runtime.peak_rss()
        if runtime.is_main:
            model.eval()
            if step.has_input("demonstrations"):
                model.offset = mean_score(model, step, config.micro_batch_tokens)
            folder = scratch_folder(step, "output")
            model.save(folder, base)
            metrics = {
                "steps": len(batches),
                "prompts": len(data),
                "pairs": sum(map(len, data.pairs)),
                "offset": model.offset,
            }
            step.finish({"model": folder}, metrics, peak)
            loop.close()
        runtime.barrier()


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
    model: RewardModel, engine: Engine, data: ComparisonRows, batch: list[int], config: RewardConfig, runtime: Runtime
) -> _Sums:
    """Forward and backward over this rank's prompts; figures are of the whole batch."""
    sizes = np.diff(data.first)
    # A prompt's cost is its number of responses times its longest one, since they are padded together.
    widths = {p: max(len(data.responses[r]) for r in range(data.first[p], data.first[p + 1])) for p in batch}
    mine = sorted(batch, key=lambda prompt: (-sizes[prompt] * widths[prompt], prompt))[runtime.rank :: runtime.world]
    totals = torch.zeros(3, device=runtime.device)
    for group in prompt_groups(mine, sizes, widths, config.micro_batch_tokens):
        loss, right, gap = _pair_loss(model, data, group, config, runtime)
        engine.backward(loss / len(batch))
        totals += torch.stack([loss.detach() / len(batch), right, gap])
    runtime.sum(totals)
    pairs = sum(len(data.pairs[prompt]) for prompt in batch)
    tokens = sum(int(data.responses.offsets[data.first[p + 1]] - data.responses.offsets[data.first[p]]) for p in batch)
    loss_sum, right_sum, gap_sum = totals.tolist()
    return _Sums(loss_sum, right_sum / max(pairs, 1), gap_sum / max(pairs, 1), pairs, tokens)


def prompt_groups(prompts: list[int], sizes: np.ndarray, widths: dict[int, int], budget: int) -> list[list[int]]:
    """Whole prompts of similar width together, at most `budget` padded tokens a group (one prompt may exceed it)."""
    groups: list[list[int]] = []
    rows = width = 0
    for prompt in sorted(prompts, key=lambda p: (-widths[p], p)):
        if groups and (rows + sizes[prompt]) * width <= budget:
            groups[-1].append(prompt)
            rows += sizes[prompt]
        else:
            groups.append([prompt])
            rows, width = sizes[prompt], widths[prompt]
    return groups


def _pair_loss(
    model: RewardModel, data: ComparisonRows, prompts: list[int], config: RewardConfig, runtime: Runtime
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sum over prompts of the mean pair loss, pairs ordered right, sum of score gaps) of some prompts."""
    rows: list[np.ndarray] = []
    pairs, owner, gaps = [], [], []
    for i, prompt in enumerate(prompts):
        pairs.append(data.pairs[prompt] + len(rows))
        owner += [i] * len(data.pairs[prompt])
        gaps.append(data.gaps[prompt])
        rows += [data.responses[r] for r in range(data.first[prompt], data.first[prompt + 1])]
    ids, mask = pad(rows, 0).to(runtime.device), mask_of(rows).to(runtime.device)
    with runtime.autocast():
        scores = model(ids, mask)
    index = torch.from_numpy(np.concatenate(pairs)).to(runtime.device)
    chosen, rejected = scores[index[:, 0]], scores[index[:, 1]]
    weights = pair_weights(torch.tensor(owner), len(prompts)).to(runtime.device)
    margin = torch.from_numpy(np.concatenate(gaps)).to(runtime.device) if config.margin else None
    losses = pair_losses(chosen, rejected, margin)
    if config.centring:
        losses = losses + config.centring * (chosen + rejected) ** 2
    loss = (losses * weights).sum()
    with torch.no_grad():
        return loss, accuracy(chosen, rejected).sum(), (chosen - rejected).sum()


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
