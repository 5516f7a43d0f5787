"""The step: every model answers every prompt by every strategy; equal and similar answers go; who wrote what is kept.

output/responses/responses.jsonl   {id, source, licence, messages, responses: [{id, text}], meta}: for annotators
output/producers/producers.jsonl   a row a sampled response: model, strategy, seed, truncated, what became of it
output/producers/manifest.json     the models by content, the strategies, the seed
"""

import gc
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from components.core.chatml import ChatTokenizer
from components.core.config import SampleResponsesConfig
from components.core.errors import Cancelled, UserError
from components.core.metrics import Metrics
from components.core.records import Prompt
from components.core.step import Step
from components.sample_responses.choice import Chosen, choose_responses, count
from components.sample_responses.parts import Candidate, Parts, sample_part
from components.sample_responses.prompts import choose, fitting
from components.training.models import load_policy
from components.training.runtime import Runtime, running

log = logging.getLogger(__name__)
PROMPTS = "prompts"
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def work(step: Step) -> None:
    """Inputs: `prompts`, data_prep's prompts; every other one is a model, named by its input."""
    config: SampleResponsesConfig = step.config
    names = sorted(name for name in step.spec.inputs if name != PROMPTS)
    _check(names)
    with running(step, config.precision) as runtime:
        chosen = choose(step.input(PROMPTS), heldout=config.heldout, seed=step.spec.seed, most=config.max_prompts)
        longest = max(strategy.max_new_tokens for strategy in config.strategies)
        prompts = fitting(chosen, [step.input(name) for name in names], longest)
        blocks = [prompts[start : start + config.part_prompts] for start in range(0, len(prompts), config.part_prompts)]
        parts = Parts(step.spec)
        progress = Progress(step, config, runtime)
        sample_all(step, names, blocks, parts, runtime, progress)
        runtime.barrier()
        peak = runtime.peak_rss()
        if runtime.is_main:
            folder, metrics = step.scratch("output"), {"prompts_too_long": len(chosen) - len(prompts)}
            metrics |= write(folder, step, names, blocks, parts)
            progress.end(metrics)
            step.finish({name: folder / name for name in ("responses", "producers")}, metrics, peak)
            parts.discard()
        runtime.barrier()


def _check(names: list[str]) -> None:
    if not names:
        raise UserError("sample_responses: no model was given", fix="give each as --input NAME=URI, by a name of yours")
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(f"model name {name!r}", where="--input", fix="use letters, digits, '.', '_' and '-'")


def sample_all(
    step: Step, names: list[str], blocks: list[list[Prompt]], parts: Parts, runtime: Runtime, progress: "Progress"
) -> None:
    """Sample every part that is not there yet; each rank takes its share of them, one model after the other."""
    config: SampleResponsesConfig = step.config
    # As rank 0 sees it: another rank may look when the first one has gone on already.
    missing = runtime.gather(
        [(name, part) for name in names for part in range(len(blocks)) if not parts.has(name, part)]
    )[0]
    progress.begin(len(names) * len(blocks), len(missing))
    for name in names:
        mine = [part for owner, part in dealt(missing, runtime.rank, runtime.world) if owner == name]
        if not mine:
            continue
        folder = step.input(name)
        tokenizer = ChatTokenizer.load(folder)
        model = load_policy(folder, device=runtime.device, dtype=runtime.dtype)
        for part in mine:
            if step.cancelled:
                raise Cancelled("sample_responses was cancelled; its finished parts are kept")
            found = sample_part(
                model, tokenizer, name, blocks[part], config.strategies, step.spec.seed, config.batch_tokens
            )
            parts.write(name, part, found)
            progress.log(found)
        del model
        gc.collect()
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()


def dealt(missing: list[tuple[str, int]], rank: int, world: int) -> list[tuple[str, int]]:
    """A rank's share of the parts (model, number): of each model about as many as any other rank's."""
    return missing[rank::world]


def write(folder: Path, step: Step, names: list[str], blocks: list[list[Prompt]], parts: Parts) -> dict[str, Any]:
    """Both outputs, a block of prompts in memory at a time; returns the counts."""
    config: SampleResponsesConfig = step.config
    for name in ("responses", "producers"):
        (folder / name).mkdir()
    totals: Counter[str] = Counter()
    by_model: dict[str, Counter[str]] = {name: Counter() for name in names}
    with (
        (folder / "responses" / "responses.jsonl").open("w", encoding="utf-8") as responses,
        (folder / "producers" / "producers.jsonl").open("w", encoding="utf-8") as producers,
    ):
        for number, block in enumerate(blocks):
            chosen = list(_chosen(step, block, [parts.read(name, number) for name in names]))
            totals.update(count(chosen))
            for prompt, one in zip(block, chosen, strict=True):
                if one.responses:
                    responses.write(_line(_row(prompt, one)))
                producers.writelines(_line(row) for row in one.producers)
                for row in one.producers:
                    by_model[row["model"]].update({"sampled": 1, row["fate"]: 1, "empty": row["empty"]})
    manifest = {
        "models": {name: step.spec.input_digests.get(name) or step.spec.raw_digests.get(name, "") for name in names},
        "prompts": step.spec.input_digests.get(PROMPTS) or step.spec.raw_digests.get(PROMPTS, ""),
        "strategies": [strategy.model_dump() for strategy in config.strategies],
        "seed": step.spec.seed,
    }
    (folder / "producers" / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    if not totals["prompts"]:
        what = f"no prompt has two different responses ({json.dumps(dict(totals))})"
        raise UserError(what, where="sample_responses", fix="raise samples or temperature, or keep_truncated")
    return {**totals, "models": {name: dict(sorted(found.items())) for name, found in by_model.items()}}


def _chosen(step: Step, block: list[Prompt], found: list[list[Candidate]]) -> Iterator[Chosen]:
    config: SampleResponsesConfig = step.config
    of: dict[str, list[Candidate]] = {prompt.id: [] for prompt in block}
    for candidates in found:
        for candidate in candidates:
            of[candidate.prompt].append(candidate)
    for prompt in block:
        yield choose_responses(
            of[prompt.id], seed=step.spec.seed, keep_truncated=config.keep_truncated,
            near_duplicate=config.near_duplicate, most=config.responses_per_prompt,
        )  # fmt: skip


def _row(prompt: Prompt, chosen: Chosen) -> dict[str, Any]:
    return {
        "id": prompt.id, "source": prompt.source, "licence": prompt.licence, "messages": prompt.messages,
        "responses": chosen.responses, "meta": json.loads(prompt.meta),
    }  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


class Progress:
    """Rank 0's lines of metrics: parts of all ranks, as if all were equally fast."""

    def __init__(self, step: Step, config: SampleResponsesConfig, runtime: Runtime) -> None:
        self.world, self.planned, self.done = runtime.world, 0, 0
        self.metrics: Metrics | None = None
        if runtime.is_main:
            path = step.work / "metrics.jsonl"
            self.metrics = Metrics(path, step=step.spec.step, run=step.spec.run, port=config.metrics_port)
        self._since = time.monotonic()

    def begin(self, planned: int, missing: int) -> None:
        self.planned, self.done = planned, planned - missing
        self._since = time.monotonic()
        if self.metrics:
            self.metrics.rewind(self.done)
            log.info("%d of %d parts to sample", missing, planned)

    def log(self, found: list[Candidate]) -> None:
        """One more part is done."""
        if not self.metrics:
            return
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self.done = min(self.planned, self.done + self.world)
        tokens = sum(candidate.tokens for candidate in found)
        self.metrics.log(
            self.done, training_steps_planned=self.planned, training_samples_total=len(found),
            training_tokens_total=tokens, training_tokens_per_second=tokens / seconds,
            training_step_duration_seconds=seconds,
        )  # fmt: skip
        log.info("part %d of %d: %d responses in %.1f s", self.done, self.planned, len(found), seconds)

    def end(self, counts: dict[str, Any]) -> None:
        """The last line has what became of the responses."""
        if not self.metrics:
            return
        names = ("kept", "duplicate", "near_duplicate", "truncated", "empty", "surplus")
        self.metrics.log(
            self.planned, training_steps_planned=self.planned,
            **{f"responses_{name}_total": counts[name] for name in names},
        )  # fmt: skip
        self.metrics.close()
