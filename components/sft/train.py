"""Supervised fine-tuning (report §3.1).

    loss = sum over label tokens of -log p(token | before) / (label tokens of the whole optimiser step)

Labels are the assistant's tokens, as data_prep masked them. The sum is divided by the global number of label tokens, so
micro-batches, ranks and ragged lengths do not change the result (transformers#34191 is the defect this avoids).
"""

from dataclasses import dataclass

import numpy as np
import torch

from components.core.config import SFTConfig
from components.core.seeds import seed_for
from components.core.step import Step
from components.training.data import Ragged, label_count, micro_batches, ragged, read_table, rows_at, share
from components.training.engine import Engine, make_engine
from components.training.loop import Loop
from components.training.models import load_policy, prepare, save_trained
from components.training.runtime import Runtime, running
from components.training.schedule import learning_rate
from components.training.scoring import token_nll


@dataclass(frozen=True)
class Chats:
    """Tokenised conversations with their labels."""

    ids: list[str]
    rows: Ragged
    labels: Ragged
    targets: np.ndarray

    @classmethod
    def read(cls, step: Step) -> "Chats":
        table = read_table(step.input("data") / "train.parquet", ["id", "input_ids", "labels"])
        rows, labels = ragged(table["input_ids"]), ragged(table["labels"])
        targets = np.array([label_count(labels[i]) for i in range(len(rows))])
        return cls(table["id"].to_pylist(), rows, labels, targets)


def work(step: Step) -> None:
    """Inputs: base_model (a model folder), data (data_prep's sft output). Output: a model folder."""
    config: SFTConfig = step.config
    with running(step, config.precision) as runtime:
        base, chats = step.input("base_model"), Chats.read(step)
        model = load_policy(base, dropout=config.dropout, device=runtime.device, dtype=runtime.dtype)
        prepare(model, config, seed_for(step.spec.seed, "adapters"))
        model.train()
        engine = make_engine(model, config, runtime)
        loop = Loop(step, config, runtime, {"policy": engine})

        # The last batch of a number of epochs may be short; a number of steps has whole batches only.
        total_rows = config.steps * config.batch_size if config.steps else round(config.epochs * len(chats.ids))
        total = config.steps or -(-total_rows // config.batch_size)
        for number in loop.steps(total):
            begin = number * config.batch_size
            batch = rows_at(begin, min(begin + config.batch_size, total_rows), len(chats.ids), step.spec.seed)
            loss = _accumulate(engine, batch, chats, runtime)
            rate = learning_rate(
                number, peak=config.learning_rate, warmup=config.warmup_steps, total=total, shape=config.schedule
            )
            norm = engine.step(rate)
            loop.log(
                training_loss=loss,
                training_learning_rate=rate,
                training_grad_norm=norm,
                training_tokens_total=int(chats.rows.lengths[batch].sum()),
                training_samples_total=len(batch),
                training_nonfinite_steps_total=loop.watch(norm, lambda batch=batch: _suspects(engine, batch, chats)),  # type: ignore[misc]
            )
        peak = runtime.peak_rss()
        folders = save_trained(engine, step, base)
        if runtime.is_main:
            step.finish(folders, {"steps": total, "rows": len(chats.ids)}, peak)
            loop.close()
        runtime.barrier()


def _accumulate(engine: Engine, batch: list[int], chats: Chats, runtime: Runtime) -> float:
    """Forward and backward over this rank's part; returns the loss of the whole batch."""
    lengths = chats.rows.lengths
    targets = max(int(chats.targets[batch].sum()), 1)

    def loss(group: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        nll = engine(token_nll, [chats.rows[i] for i in group], [chats.labels[i] for i in group])
        value = nll.sum() / targets
        return value, [value]

    groups = micro_batches(
        share(batch, lengths, runtime.rank, runtime.world), lengths, engine.config.micro_batch_tokens
    )
    return engine.accumulate(groups, [min(batch, key=lambda row: int(lengths[row]))], loss, figures=1)[0]


@torch.no_grad()
def _suspects(engine: Engine, batch: list[int], chats: Chats) -> list[str]:
    """Ids of the rows whose own loss is not finite; of the whole batch where it is no single row's doing."""
    found = [
        chats.ids[i] for i in batch if not torch.isfinite(engine(token_nll, [chats.rows[i]], [chats.labels[i]])).all()
    ]
    return found or [chats.ids[i] for i in batch]
