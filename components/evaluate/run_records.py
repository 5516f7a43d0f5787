"""What the other steps of the run wrote beside their outputs: time, memory, settings, learning curves."""

import logging
from dataclasses import dataclass, field
from typing import Any

from components.core import store
from components.core.config import CHAIN
from components.core.errors import KubealignError
from components.core.metrics import parse_metrics
from components.core.spec import StepResult, StepSpec
from components.evaluate.sets import Missing

log = logging.getLogger(__name__)


@dataclass
class StepRecord:
    """One finished step."""

    seconds: float
    peak_rss_bytes: int
    versions: dict[str, str]
    settings: dict[str, Any]
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class RunRecords:
    """All steps found, by name, in the order of the recipe."""

    steps: dict[str, StepRecord] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)


def read_run(uri: str | None) -> RunRecords:
    """Read the run's folder. What is not there, or is broken, is left out and said: a report is still worth having."""
    found = RunRecords()
    if not uri:
        found.missing.append(Missing("time, memory and learning curves", "no input run was given"))
        return found
    for name in CHAIN:
        if name == "evaluate":
            continue
        folder = store.join(uri, name)
        try:
            if not store.exists(store.join(folder, "result.json")):
                found.missing.append(Missing(f"time and memory of {name}", "the run has no result of this step"))
                continue
            found.steps[name] = _read_step(folder)
        except (KubealignError, ValueError) as error:
            log.warning("%s: %s", name, error)
            found.missing.append(Missing(f"time and memory of {name}", f"its record cannot be read: {error}"))
    return found


def _read_step(folder: str) -> StepRecord:
    result = StepResult.model_validate_json(store.read_bytes(store.join(folder, "result.json")))
    settings: dict[str, Any] = {}
    if store.exists(store.join(folder, "spec.json")):
        settings = StepSpec.model_validate_json(store.read_bytes(store.join(folder, "spec.json"))).config
    curve: list[dict[str, Any]] = []
    if store.exists(store.join(folder, "metrics.jsonl")):
        curve = parse_metrics(store.read_bytes(store.join(folder, "metrics.jsonl")))
    return StepRecord(result.seconds, result.peak_rss_bytes, result.versions, settings, curve)
