"""Bring the base model, or make a small one (a machine without a network has no hub).

A made one is a Qwen2, Qwen3 or Llama of a few layers with a byte-level BPE tokenizer trained on the run's own text, and
pretrained on that text with the next-token loss, as the report's §2 does at scale.
"""

import logging
import shutil
from collections import Counter

import numpy as np
import torch

from components.base_model.bring import bring
from components.base_model.init import build_model, pack, train_tokenizer
from components.core.config import BaseModelConfig, Trainer
from components.core.seeds import seed_for
from components.core.step import Step
from components.data_prep.sources import plain_texts
from components.training.data import row_order
from components.training.engine import make_engine
from components.training.loop import Loop
from components.training.models import save_policy
from components.training.runtime import Runtime, running
from components.training.schedule import learning_rate
from components.training.scoring import token_nll

log = logging.getLogger(__name__)
_TOKENIZER_CHARACTERS = 1_000_000


def work(step: Step) -> None:
    """Input: data_root (raw files), for 'init' alone. Output: a model folder whose tokenizer has the control tokens."""
    config: BaseModelConfig = step.config
    if config.model != "init":
        folder = step.scratch("output")
        bring(config, folder, step.work / "download")
        step.finish({"model": folder}, {"model": config.model})
        shutil.rmtree(step.work / "download", ignore_errors=True)
        return
    with running(step) as runtime:
        _make(step, config, runtime)


def _make(step: Step, config: BaseModelConfig, runtime: Runtime) -> None:
    init = config.init
    sample, documents = read_text(step, config)
    # The tokenizer is a function of the text alone, so every rank makes the same one.
    folder = step.work / f"tokenizer-{runtime.rank}"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(iter(sample), init.vocabulary, folder)
    torch.manual_seed(seed_for(step.spec.seed, "init"))
    model = build_model(init, tokenizer)
    model.to(runtime.device)  # type: ignore[arg-type]
    model.train()
    settings = Trainer(precision="fp32", checkpoint_every=0, metrics_port=0)
    engine = make_engine(model, settings, runtime)
    loop = Loop(step, settings, runtime, {"model": engine})
    rows = np.empty((0, init.length))
    if init.steps:
        rows = pack(iter(documents), tokenizer, init.length)
    if init.shuffle:
        rows = rows[row_order(len(rows), seed_for(step.spec.seed, "pretrain"), 0)]
    for number in loop.steps(init.steps):
        batch = rows[np.arange(number * init.batch_size, (number + 1) * init.batch_size) % len(rows)]

        def loss(
            rows: np.ndarray, targets: int = len(batch) * (init.length - 1)
        ) -> tuple[torch.Tensor, list[torch.Tensor]]:
            value = engine(token_nll, rows, rows).sum() / targets
            return value, [value]

        mine = batch[runtime.rank :: runtime.world]
        total = engine.accumulate([mine] if len(mine) else [], batch[:1], loss, figures=1)[0]
        rate = learning_rate(
            number, peak=init.learning_rate, warmup=init.warmup_steps, total=init.steps, shape="cosine_to_10pct"
        )
        norm = engine.step(rate)
        loop.log(
            training_loss=total,
            training_learning_rate=rate,
            training_grad_norm=norm,
            training_tokens_total=batch.size,
            training_samples_total=len(batch),
        )
    peak = runtime.peak_rss()
    if runtime.is_main:
        output = step.scratch("output")
        model.eval()
        save_policy(model, output, folder)
        parameters = sum(p.numel() for p in model.parameters())
        step.finish({"model": output}, {"parameters": parameters, "steps": init.steps, "sequences": len(rows)}, peak)
        loop.close()
    runtime.barrier()
    shutil.rmtree(folder)


def read_text(step: Step, config: BaseModelConfig) -> tuple[list[str], list[str]]:
    """(some text of every role, all pretraining documents), held-out prompts left out, in one pass over the sources.

    The tokenizer needs the words of all roles, but no more than the first characters of each.
    """
    sizes: Counter[str] = Counter()
    sample, documents = [], []
    data_root = step.spec.inputs.get("data_root", "")
    for role, text in plain_texts(config.sources, data_root, step.spec.seed, config.splits):
        if sizes[role] < _TOKENIZER_CHARACTERS:
            sizes[role] += len(text)
            sample.append(text)
        if role == "pretrain":
            documents.append(text)
    return sample, documents
