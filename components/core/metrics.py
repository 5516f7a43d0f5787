"""Training metrics: one line of JSON a step in metrics.jsonl, and the same numbers served to Prometheus by rank 0."""

import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

log = logging.getLogger(__name__)

# Name in metrics.jsonl -> (kind, help). Prometheus sees `alignment_<name>`; base units, no unbounded labels.
METRICS: dict[str, tuple[str, str]] = {
    "training_step": ("gauge", "Step reached (iteration for PPO)"),
    "training_steps_planned": ("gauge", "Steps the run will take"),
    "training_steps_total": ("counter", "Steps taken by this process"),
    "training_tokens_total": ("counter", "Tokens processed, padding left out"),
    "training_samples_total": ("counter", "Conversations, pairs or responses processed"),
    "training_loss": ("gauge", "Training loss of the last step"),
    "training_learning_rate": ("gauge", "Learning rate of the last step"),
    "training_grad_norm": ("gauge", "Global gradient norm before clipping"),
    "training_tokens_per_second": ("gauge", "Tokens a second over the last step, padding left out"),
    "training_step_duration_seconds": ("histogram", "Duration of a step"),
    "training_last_step_timestamp_seconds": ("gauge", "When the last step ended"),
    "training_nonfinite_steps_total": ("counter", "Steps skipped because a gradient was not finite"),
    "checkpoint_last_success_timestamp_seconds": ("gauge", "When the last complete checkpoint was written"),
    "checkpoint_duration_seconds": ("gauge", "Time to write the last checkpoint"),
    "checkpoint_failures_total": ("counter", "Checkpoints that could not be written"),
    "reward_model_accuracy_ratio": ("gauge", "Share of the batch's pairs ordered right, ties half"),
    "reward_model_margin": ("gauge", "Mean score difference of chosen and rejected"),
    "responses_kept_total": ("counter", "Sampled responses that annotators see"),
    "responses_duplicate_total": ("counter", "Sampled responses equal to another one of their prompt"),
    "responses_near_duplicate_total": ("counter", "Sampled responses similar to another one of their prompt"),
    "responses_truncated_total": ("counter", "Sampled responses cut off by the length limit, left out"),
    "responses_empty_total": ("counter", "Sampled responses without a word, kept or not"),
    "responses_surplus_total": ("counter", "Sampled responses beyond responses_per_prompt"),
    "ppo_kl": ("gauge", "KL to the reference, k1 estimate, nats a response"),
    "ppo_kl_k3": ("gauge", "KL to the reference, k3 estimate, nats a response"),
    "ppo_kl_coefficient": ("gauge", "KL coefficient in force"),
    "ppo_reward_mean": ("gauge", "Mean raw reward-model score"),
    "ppo_reward_std": ("gauge", "Deviation of the raw reward-model score"),
    "ppo_policy_loss": ("gauge", "Clipped policy loss"),
    "ppo_value_loss": ("gauge", "Clipped value loss"),
    "ppo_ptx_loss": ("gauge", "Language-model loss on pretraining text"),
    "ppo_policy_grad_norm": (
        "gauge",
        "Gradient norm of the policy's PPO part; with ptx and zero.stage above 0, of both parts",
    ),
    "ppo_ptx_grad_norm": ("gauge", "Gradient norm of the ptx part alone"),
    "ppo_value_grad_norm": ("gauge", "Gradient norm of the value model"),
    "ppo_clip_fraction_ratio": ("gauge", "Share of tokens whose ratio was clipped"),
    "ppo_ratio_mean": ("gauge", "Mean probability ratio"),
    "ppo_entropy": ("gauge", "Entropy of the policy, nats a token"),
    "ppo_response_length_tokens": ("gauge", "Mean response length"),
    "ppo_truncated_ratio": ("gauge", "Share of responses that never ended"),
    "ppo_repetition_ratio": ("gauge", "Share of repeated 3-grams in responses"),
    "ppo_value_explained_variance_ratio": ("gauge", "Explained variance of the value model"),
    "ppo_rollout_seconds": ("gauge", "Time of an iteration spent sampling"),
    "ppo_scoring_seconds": ("gauge", "Time of an iteration spent on log-probabilities, values and scores"),
    "ppo_update_seconds": ("gauge", "Time of an iteration spent in optimiser steps"),
    "ppo_value_only": ("gauge", "1 during the value-only warm-up"),
}
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Writes and serves the metrics of one step. Make one on rank 0 alone."""

    def __init__(self, path: Path, *, step: str, run: str, port: int = 0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.registry = CollectorRegistry()
        kinds: dict[str, type] = {"gauge": Gauge, "counter": Counter, "histogram": Histogram}
        self._collectors: dict[str, Any] = {}
        for name, (kind, text) in METRICS.items():
            extra = {"buckets": _BUCKETS} if kind == "histogram" else {}
            self._collectors[name] = kinds[kind](f"alignment_{name}", text, registry=self.registry, **extra)
        info = Gauge("alignment_training_info", "What is being trained", ["step", "run"], registry=self.registry)
        info.labels(step=step, run=run).set(1)
        self._server = self._serve(port) if port else None

    def _serve(self, port: int) -> Any:
        try:
            server, _ = start_http_server(
                port, addr=os.environ.get("KUBEALIGN_METRICS_ADDRESS", "0.0.0.0"), registry=self.registry
            )
        except OSError as error:
            # A busy port must never cost a training run.
            log.warning("metrics port %d is taken (%s); going on without serving metrics", port, error)
            return None
        return server

    def log(self, step: int, **values: float) -> None:
        """Append one line and update the collectors. Unknown names are a programming error."""
        line = {"training_step": step, "training_last_step_timestamp_seconds": time.time(), **values}
        for name, value in line.items():
            kind = METRICS[name][0]
            if kind == "counter":
                self._collectors[name].inc(value)
            elif kind == "histogram":
                self._collectors[name].observe(value)
            else:
                self._collectors[name].set(value)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter, or set a gauge, outside a step's line."""
        collector = self._collectors[name]
        collector.inc(amount) if METRICS[name][0] == "counter" else collector.set(amount)

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`: a resumed run writes them again."""
        if self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["training_step"] <= step]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(temporary, self.path)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; none where there is no such file."""
    return parse_metrics(path.read_bytes()) if path.exists() else []


def parse_metrics(data: bytes) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. A line cut off by a kill, and what follows it, is left out."""
    lines = []
    for text in data.decode("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if isinstance(line, dict):
            lines.append(line)
    return lines


def repeated_ngrams(ids: Sequence[int], length: int = 3) -> float:
    """Share of a response's n-grams that stood there before; 0 where there is none."""
    grams = [tuple(ids[start : start + length]) for start in range(len(ids) - length + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
