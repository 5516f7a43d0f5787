"""Supervised fine-tuning (report §3.1).

    loss = sum over label tokens of -log p(token | before) / (label tokens of the whole optimiser step)

Labels are the assistant's tokens, as data_prep masked them. The sum is divided by the global number of label tokens, so
micro-batches, ranks and ragged lengths do not change the result (transformers#34191 is the defect this avoids).
"""

import numpy as np
import torch
from transformers import PreTrainedModel

from components.core.chatml import IGNORE
from components.core.config import SFTConfig
from components.core.step import Step
from components.training.checkpoint import scratch_folder
from components.training.data import (
    Ragged,
    label_count,
    mask_of,
    micro_batches,
    pad,
    ragged,
    read_table,
    rows_at,
    share,
)
from components.training.engine import Engine
from components.training.loop import Loop
from components.training.models import load_policy, save_policy
from components.training.runtime import Runtime, running
from components.training.schedule import learning_rate
from components.training.scoring import token_nll


def work(step: Step) -> None:
    """Inputs: base_model (a model folder), data (data_prep's sft output). Output: a model folder."""
    config: SFTConfig = step.config
    with running(step, config.precision) as runtime:
        base = step.input("base_model")
        table = read_table(step.input("data") / "train.parquet", ["input_ids", "labels"])
        rows, labels = ragged(table["input_ids"]), ragged(table["labels"])
        counts = np.array([label_count(labels[i]) for i in range(len(rows))])

        model = load_policy(base, dropout=config.dropout, device=runtime.device)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        engine = Engine(model, config.optimiser, runtime)
        loop = Loop(step, config, runtime, {"policy": engine})

        # The last batch of a number of epochs may be short; a number of steps has whole batches only.
        total_rows = config.steps * config.batch_size if config.steps else round(config.epochs * len(rows))
        total = config.steps or -(-total_rows // config.batch_size)
        for number in loop.steps(total):
            begin = number * config.batch_size
            batch = rows_at(begin, min(begin + config.batch_size, total_rows), len(rows), step.spec.seed)
            targets = int(counts[batch].sum())
            loss = _accumulate(model, engine, batch, rows, labels, targets, config, runtime)
            rate = learning_rate(
                number, peak=config.learning_rate, warmup=config.warmup_steps, total=total, shape=config.schedule
            )
            norm = engine.step(rate)
            loop.log(
                training_loss=loss,
                training_learning_rate=rate,
                training_grad_norm=norm,
                training_tokens_total=int(rows.lengths[batch].sum()),
                training_samples_total=len(batch),
                training_nonfinite_steps_total=int(not np.isfinite(norm)),
            )
        peak = runtime.peak_rss()
        if runtime.is_main:
            folder = scratch_folder(step, "output")
            save_policy(model, folder, base)
            step.finish({"model": folder}, {"steps": total, "rows": len(rows)}, peak)
            loop.close()
        runtime.barrier()


def _accumulate(
    model: PreTrainedModel,
    engine: Engine,
    batch: list[int],
    rows: Ragged,
    labels: Ragged,
    targets: int,
    config: SFTConfig,
    runtime: Runtime,
) -> float:
    """Forward and backward over this rank's part; returns the loss of the whole batch."""
    mine = share(batch, rows.lengths, runtime.rank, runtime.world)
    total = torch.zeros((), device=runtime.device)
    for group in micro_batches(mine, rows.lengths, config.micro_batch_tokens):
        ids = pad([rows[i] for i in group], 0).to(runtime.device)
        mask = mask_of([rows[i] for i in group]).to(runtime.device)
        with runtime.autocast():
            nll = token_nll(model, ids, mask, pad([labels[i] for i in group], IGNORE).to(runtime.device))
        loss = nll.sum() / max(targets, 1)
        engine.backward(loss)
        total += loss.detach()
    return float(runtime.sum(total))
