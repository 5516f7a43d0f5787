"""What there is to evaluate: held-out rows, models, and the reasons why a part is missing."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.core.config import EvaluateConfig
from components.core.errors import UserError
from components.core.records import Chat, Comparison, Prompt, read_rows
from components.core.step import Step
from components.evaluate.sets import ComparisonSet, Missing, prompt_key

log = logging.getLogger(__name__)

POLICIES = {"base": "base_model", "sft": "sft", "ppo": "ppo"}
"""Name in the figures: name of the step's input."""
JUDGES = ("pmp", "reward_model", "rival")
COMPARISON_DATA = {"reward_model": "reward_model_data", "pmp": "pmp_data", "own": "own_data", "rival": "rival_data"}


@dataclass
class Inputs:
    """Everything that was given, read and named."""

    policies: dict[str, Path] = field(default_factory=dict)
    judges: dict[str, Path] = field(default_factory=dict)
    chats: list[Chat] = field(default_factory=list)
    sets: list[ComparisonSet] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


def read_inputs(step: Step) -> Inputs:
    """Read all that was given. Raises UserError where that leaves nothing to evaluate."""
    config: EvaluateConfig = step.config
    inputs = Inputs(
        policies={name: step.input(given) for name, given in POLICIES.items() if step.has_input(given)},
        judges={name: step.input(name) for name in JUDGES if step.has_input(name)},
    )
    if not inputs.policies and not inputs.judges:
        raise UserError(
            "evaluate: no model was given; give base_model, sft, ppo, pmp or reward_model as --input NAME=URI"
        )
    if inputs.policies and step.has_input("sft_data"):
        inputs.chats = [row for _, row in _heldout(step.input("sft_data"), Chat)]
    if inputs.policies and step.has_input("ppo_data"):
        inputs.prompts = choose_prompts([row for _, row in _heldout(step.input("ppo_data"), Prompt)], config.prompts)
    if inputs.judges:
        inputs.sets = _comparison_sets(step, inputs.missing)
    _explain_missing(step, inputs)
    if not (inputs.policies and (inputs.chats or inputs.prompts)) and not (inputs.judges and inputs.sets):
        reasons = "; ".join(f"{item.part}: {item.why}" for item in inputs.missing)
        raise UserError(f"evaluate: models were given, but nothing to evaluate them on ({reasons})")
    return inputs


def choose_prompts(prompts: list[Prompt], count: int) -> list[Prompt]:
    """The same prompts in every run: different ones, in the order of a hash of their text, at most `count`."""
    different = {prompt_key(prompt.messages): prompt for prompt in reversed(prompts)}
    ordered = sorted(different, key=lambda key: hashlib.sha256(key.encode()).digest())
    return [different[key] for key in ordered[:count]]


def _heldout(folder: Path, row_type: type) -> Iterator[tuple[str, Any]]:
    """(set, row) of every held-out file of a dataset folder."""
    for path in sorted((folder / "heldout").glob("*.parquet")):
        for row in read_rows(path, row_type):
            yield path.stem, row


def _comparison_sets(step: Step, missing: list[Missing]) -> list[ComparisonSet]:
    """Held-out sets of both judges' data, then files given by hand; a name that is taken gets its role in front."""
    found: list[ComparisonSet] = []
    for role, name in COMPARISON_DATA.items():
        if step.has_input(name):
            rows_by_set: dict[str, list[Comparison]] = {}
            for set_name, row in _heldout(step.input(name), Comparison):
                rows_by_set.setdefault(set_name, []).append(row)
            found += [ComparisonSet(set_name, role, rows) for set_name, rows in rows_by_set.items()]
    if step.has_input("comparisons"):
        from components.evaluate.raw_comparisons import read_raw_comparisons

        sets, left_out = read_raw_comparisons(step.spec.inputs["comparisons"], step.config.comparison)
        found += sets
        missing += left_out
    taken: set[str] = set()
    for data in found:
        if data.name in taken:
            data.name = f"{data.role}-{data.name}"
        taken.add(data.name)
    return [data for data in found if data.pairs]


def _explain_missing(step: Step, inputs: Inputs) -> None:
    say = inputs.missing.append
    for name, given in POLICIES.items():
        if name not in inputs.policies:
            say(Missing(f"the {name} policy", f"no input {given} was given"))
    for name in JUDGES[:2]:  # a rival is the exception
        if name not in inputs.judges:
            say(Missing(f"accuracy of {name}", f"no input {name} was given"))
    if inputs.policies and not inputs.chats:
        say(Missing("held-out loss and perplexity", _no_rows(step, "sft_data", "conversations")))
    if inputs.policies and not inputs.prompts:
        say(Missing("answers of the policies", _no_rows(step, "ppo_data", "prompts")))
    if inputs.judges and not inputs.sets:
        say(Missing("accuracy per comparison set", _no_rows(step, "reward_model_data", "comparisons")))
    if inputs.prompts and step.config.ground_truth == "none":
        say(
            Missing(
                "ground truth, correctness, form and refusals",
                "evaluate.ground_truth is none: nobody knows the right answers",
            )
        )
    for item in inputs.missing:
        log.info("left out: %s (%s)", item.part, item.why)


def _no_rows(step: Step, given: str, rows: str) -> str:
    return f"{given} holds no held-out {rows}" if step.has_input(given) else f"no input {given} was given"
