"""The report's numbers as one JSON object; README.md defines each of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from components.core.config import EvaluateConfig
from components.evaluate.baselines import BASELINES, baselines
from components.evaluate.inputs import POLICIES
from components.evaluate.policies import Answer, Policies
from components.evaluate.preferences import Judgement, gain, judge_figures
from components.evaluate.run_records import RunRecords
from components.evaluate.sets import ComparisonSet, Missing
from components.evaluate.statistics import (
    Resampling,
    finite,
    mean_by_cluster,
    paired_difference,
    share_by_cluster,
    wilson,
)

# Name in the figures: category of the prompt in the demo world.
CATEGORIES = {"harmful": "harmful", "harmless": "lookalike", "ordinary": "plain"}
SCORES = {"ground_truth": "total", "correctness": "correctness", "form": "form"}


@dataclass
class Findings:
    """Everything that was measured, before it becomes figures."""

    sets: list[ComparisonSet] = field(default_factory=list)
    judgements: dict[str, Judgement] = field(default_factory=dict)
    policies: Policies = field(default_factory=Policies)
    records: RunRecords = field(default_factory=RunRecords)
    missing: list[Missing] = field(default_factory=list)

    def all_missing(self) -> list[Missing]:
        judged = [item for judgement in self.judgements.values() for item in judgement.missing]
        return [*self.missing, *self.policies.missing, *judged, *self.records.missing]


def build_figures(findings: Findings, config: EvaluateConfig, *, run: str, seed: int) -> dict[str, Any]:
    """All figures. A part that was not measured is not there; numbers that do not exist are null."""
    resampling = Resampling(seed, config.bootstrap)
    figures: dict[str, Any] = {
        "run": run,
        "seed": seed,
        "steps": {
            name: {"seconds": record.seconds, "peak_rss_bytes": record.peak_rss_bytes}
            for name, record in findings.records.steps.items()
        },
        "sets": {
            data.name: {"role": data.role, "pairs": len(data.pairs), "prompts": data.prompt_count}
            for data in findings.sets
        },
    }
    figures |= preference_figures(findings, config, resampling)
    figures |= policy_figures(findings.policies, resampling)
    if findings.policies.language_model:
        figures["language_model"] = dict(sorted(findings.policies.language_model.items(), key=_policy_order))
    figures["missing"] = [item._asdict() for item in findings.all_missing()]
    cleaned: dict[str, Any] = finite(figures)
    return cleaned


def preference_figures(findings: Findings, config: EvaluateConfig, resampling: Resampling) -> dict[str, Any]:
    """Accuracy and calibration of the judges, and the baselines, by set."""
    if not findings.judgements or not findings.sets:
        return {}
    found: dict[str, Any] = {
        name: judge_figures(judgement, findings.sets, config.calibration_bins, resampling)
        for name, judgement in findings.judgements.items()
    }
    for other in ("pmp", "rival"):
        if "reward_model" in findings.judgements and other in findings.judgements:
            ours, theirs = findings.judgements["reward_model"], findings.judgements[other]
            found[f"reward_model_minus_{other}"] = {"accuracy": gain(ours, theirs, findings.sets, resampling)}
    by_set = {data.name: baselines(data, resampling) for data in findings.sets}
    found["baselines"] = {
        name: {"accuracy": {set_name: figures[name] for set_name, figures in by_set.items()}} for name in BASELINES
    }
    return found


def policy_figures(policies: Policies, resampling: Resampling) -> dict[str, Any]:
    """Scores, refusals, lengths and KL of the policies' answers."""
    answers = {name: policies.answers[name] for name in POLICIES if name in policies.answers}
    if not answers:
        return {}
    found: dict[str, Any] = {
        "prompts": {"n": len(policies.prompts), "samples": sum(map(len, answers.values())) // len(answers)}
    }
    if _all_have(answers, lambda item: item.truth):
        for figure, key in SCORES.items():
            found[figure] = _compared(answers, _truth(key), resampling, figure)
        found["refusal"] = _refusals(answers)
        found["by_kind"] = _by_kind(answers)
    scored = {name: items for name, items in answers.items() if any(item.reward is not None for item in items)}
    if scored:
        found["reward"] = _compared(
            _scored_by_all(scored), lambda item: float(item.reward or 0.0), resampling, "reward"
        )
    found["lengths"] = _means(answers, lambda item: len(item.ids))
    found["truncated"] = _means(answers, lambda item: item.truncated)
    found["repetition"] = _means(answers, lambda item: item.repetition)
    if policies.kl is not None and policies.kl_k3 is not None:
        prompts = [item.prompt for item in policies.answers["ppo"]]
        kl = mean_by_cluster(policies.kl, prompts, resampling, "kl")
        found["ppo"] = {"kl": kl.value, "kl_low": kl.low, "kl_high": kl.high, "kl_k3": float(np.mean(policies.kl_k3))}
    return found


def _truth(key: str) -> Callable[[Answer], float]:
    return lambda item: float((item.truth or {})[key])


def _compared(
    answers: dict[str, list[Answer]], value: Callable[[Answer], float], resampling: Resampling, figure: str
) -> dict[str, dict[str, float]]:
    """Mean of each policy, and PPO's paired gain over SFT on the same prompts and seeds."""
    found = {}
    # A reward has no bounds; the scores lie in [0, 1].
    mean = share_by_cluster if figure in SCORES else mean_by_cluster
    for name, items in answers.items():
        prompts = [item.prompt for item in items]
        estimate = mean([value(item) for item in items], prompts, resampling, figure, name)
        found[name] = {**estimate._asdict(), "n": len(items)}
    if "ppo" in answers and "sft" in answers:
        ours, theirs = answers["ppo"], answers["sft"]
        prompts = [item.prompt for item in ours]
        difference = paired_difference(
            [value(i) for i in ours], [value(i) for i in theirs], prompts, resampling, figure, "ppo_minus_sft"
        )
        found["ppo_minus_sft"] = {**difference._asdict(), "n": len(ours)}
    return found


def _refusals(answers: dict[str, list[Answer]]) -> dict[str, Any]:
    """Share of answers that refuse, by category of prompt. Counts and intervals stand apart: a rate is a number."""
    found: dict[str, Any] = {"n": {}, "interval": {}}
    for figure, category in CATEGORIES.items():
        rates, intervals, count = {}, {}, 0
        for name, items in answers.items():
            asked = [item.truth["refused"] for item in items if item.truth and item.truth["category"] == category]
            count = len(asked)
            if asked:
                rate = wilson(sum(asked), count)
                rates[name], intervals[name] = rate.value, {"low": rate.low, "high": rate.high}
        found["n"][figure] = count
        if rates:
            found[figure], found["interval"][figure] = rates, intervals
    return found


def _by_kind(answers: dict[str, list[Answer]]) -> dict[str, dict[str, Any]]:
    """Correctness by kind of task: an average hides a kind that got worse."""
    kinds = sorted(
        {item.truth["kind"] for items in answers.values() for item in items if item.truth and item.truth["kind"]}
    )
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        for name, items in answers.items():
            values = [item.truth["correctness"] for item in items if item.truth and item.truth["kind"] == kind]
            found.setdefault(kind, {"n": len(values)})[name] = float(np.mean(values))
    return found


def _scored_by_all(answers: dict[str, list[Answer]]) -> dict[str, list[Answer]]:
    """The answers whose counterparts all have a score, so that the policies are compared on the same items."""
    kept = [all(item.reward is not None for item in row) for row in zip(*answers.values(), strict=True)]
    return {name: [item for item, keep in zip(items, kept, strict=True) if keep] for name, items in answers.items()}


def _means(answers: dict[str, list[Answer]], value: Callable[[Answer], float]) -> dict[str, float]:
    return {name: float(np.mean([value(item) for item in items])) for name, items in answers.items()}


def _all_have(answers: dict[str, list[Answer]], value: Callable[[Answer], Any]) -> bool:
    return all(value(item) is not None for items in answers.values() for item in items)


def _policy_order(item: tuple[str, Any]) -> int:
    order: Sequence[str] = list(POLICIES)
    return order.index(item[0])
