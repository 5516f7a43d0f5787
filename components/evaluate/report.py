"""The report: one HTML file that needs nothing else, for somebody who never opens anything but the pipeline's UI."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from components.core.records import Prompt
from components.evaluate.inputs import POLICIES
from components.evaluate.plots import (
    NAMES,
    Plot,
    accuracy_plot,
    learning_curves,
    refusal_plot,
    reliability_plots,
    score_plot,
)
from components.evaluate.policies import Answer, Policies
from components.evaluate.run_records import StepRecord

Figures = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """A headline figure: what, how much, and what to hold it against."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Conversation:
    """One held-out prompt and what each policy answered."""

    prompt: Prompt
    category: str
    answers: list[tuple[str, Answer]]

    @property
    def hidden(self) -> bool:
        """A harmful request, and what a base model says to it, is shown only to those who ask."""
        return self.category == "harmful"


def render_report(
    figures: Figures,
    policies: Policies,
    records: dict[str, StepRecord],
    settings: dict[str, Any],
    versions: dict[str, str],
    conversations: int,
) -> str:
    """The whole page. `settings` are the step's name -> its configuration."""
    # Everything a model or a file wrote is escaped; only our own drawings are markup.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent, "percent_range": percent_range, "fixed": fixed, "points": points, "duration": duration,
        "memory": memory, "thousands": thousands,
    }  # fmt: skip
    primary = primary_set(figures)
    calibration = reliability_plots(figures, first=primary)
    return environment.get_template("report.html.jinja").render(
        figures=figures,
        names=NAMES,
        cards=headline(figures),
        primary=primary,
        by_hand=any(about["role"] == "comparisons" for about in figures.get("sets", {}).values()),
        policy_names=[
            name for name in POLICIES if name in figures.get("lengths", {}) or name in figures.get("language_model", {})
        ],
        answer_plots=_drawn([score_plot(figures), refusal_plot(figures)]),
        judge_plots=_drawn([accuracy_plot(figures), *calibration[:1]]),
        reliability=_drawn(list(calibration[1:])),
        curves=_drawn(list(learning_curves({name: record.curve for name, record in records.items()}))),
        conversations=pick_conversations(policies, conversations),
        settings={name: flat(values) for name, values in settings.items() if values},
        versions=versions,
        longest_step=max((step["seconds"] for step in figures.get("steps", {}).values()), default=0) or 1,
    )


def _drawn(plots: list[Plot | None]) -> list[dict[str, Any]]:
    return [{"title": plot.title, "note": plot.note, "svg": Markup(plot.svg)} for plot in plots if plot is not None]


def primary_set(figures: Figures) -> str | None:
    """The set that the headline names: the reward model's own data by the true order if known, and the largest such."""
    sets = figures.get("sets", {})
    judged = figures.get("reward_model", {}).get("accuracy") or figures.get("pmp", {}).get("accuracy") or {}
    order = [
        (sets[name]["role"] in ("reward_model", "comparisons"), name.endswith("-true"), sets[name]["pairs"], name)
        for name in judged
    ]
    return max(order)[-1] if order else None


def headline(figures: Figures) -> list[Card]:
    """The few figures that say whether alignment worked."""
    cards = []
    judge = next((name for name in ("reward_model", "pmp") if figures.get(name, {}).get("accuracy")), None)
    if judge and (name := primary_set(figures)):
        found = figures[judge]["accuracy"][name]
        longer = figures["baselines"]["longer_is_better"]["accuracy"][name]["value"]
        note = f"{percent_range(found)}, {thousands(found['n'])} pairs of {name}; longer is better: {percent(longer)}"
        cards.append(Card(f"{NAMES[judge]} accuracy", percent(found["value"]), note))
        if gain := figures.get("reward_model_minus_rival", {}).get("accuracy", {}).get(name):
            ours, theirs = (percent(figures[one]["accuracy"][name]["value"]) for one in ("reward_model", "rival"))
            low, high = points(gain["low"]), points(gain["high"])
            note = f"{ours} against {theirs}: {points(gain['value'])} points, 95 % interval {low} to {high}"
            cards.append(Card("At least as accurate as its rival", "yes" if gain["value"] >= 0 else "no", note))
    for figure, label in (("ground_truth", "Ground truth, PPO over SFT"), ("correctness", "Correctness, PPO over SFT")):
        if gain := figures.get(figure, {}).get("ppo_minus_sft"):
            before, after = (fixed(figures[figure][name]["value"], 3) for name in ("sft", "ppo"))
            low, high = fixed(gain["low"], 3, sign=True), fixed(gain["high"], 3, sign=True)
            note = f"95 % interval {low} to {high}; from {before} to {after}, of 1"
            cards.append(Card(label, fixed(gain["value"], 3, sign=True), note))
    if "ground_truth" not in figures and (gain := figures.get("reward", {}).get("ppo_minus_sft")):
        low, high = fixed(gain["low"], 2, sign=True), fixed(gain["high"], 2, sign=True)
        note = f"95 % interval {low} to {high}, by the reward model itself"
        cards.append(Card("Reward, PPO over SFT", fixed(gain["value"], 2, sign=True), note))
    refusal = figures.get("refusal", {})
    for name, label in (("harmful", "Harmful requests refused"), ("harmless", "Harmless look-alikes refused")):
        if "ppo" in refusal.get(name, {}):
            before = f"SFT {percent(refusal[name]['sft'])}; " if "sft" in refusal[name] else ""
            cards.append(
                Card(f"{label}, PPO", percent(refusal[name]["ppo"]), f"{before}{thousands(refusal['n'][name])} answers")
            )
    if "ppo" in figures:
        lengths = figures["lengths"]
        note = "nats a response from SFT"
        note += (
            f"; length from {fixed(lengths['sft'], 1)} to {fixed(lengths['ppo'], 1)} tokens" if "sft" in lengths else ""
        )
        cards.append(Card("KL of PPO", fixed(figures["ppo"]["kl"], 2), note))
    if len(figures.get("steps", {})) > 1:
        total = sum(step["seconds"] for step in figures["steps"].values())
        cards.append(Card("Computing time", duration(total), f"{len(figures['steps'])} steps, one after the other"))
    return cards


def pick_conversations(policies: Policies, count: int) -> list[Conversation]:
    """The first `count` prompts (they are in the order of a hash), taken from each category in turn."""
    by_category: dict[str, list[int]] = {}
    first = next(iter(policies.answers.values()), [])
    for item in first:
        if item.sample == 0:
            by_category.setdefault((item.truth or {}).get("category", ""), []).append(item.prompt)
    chosen: list[tuple[int, str]] = []
    # Ordinary prompts first, harmful ones last: a reader should meet the common case.
    queues = [
        (category, by_category[category])
        for category in sorted(by_category, key=lambda c: (c == "harmful", c != "plain"))
    ]
    while len(chosen) < count and any(queue for _, queue in queues):
        chosen += [(queue.pop(0), category) for category, queue in queues if queue]
    spoken = {
        name: {item.prompt: item for item in items if item.sample == 0} for name, items in policies.answers.items()
    }
    order = [name for name in POLICIES if name in spoken]
    return [
        Conversation(policies.prompts[prompt], category, [(name, spoken[name][prompt]) for name in order])
        for prompt, category in sorted(chosen[:count], key=lambda item: item[1] == "harmful")
    ]


def flat(values: dict[str, Any], path: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted keys, in their order; empty lists and unset values are left out."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += flat(value, f"{path}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for place, item in enumerate(value):
                rows += flat(item, f"{path}{key}.{place}.")
        elif value not in (None, [], ""):
            rows.append((f"{path}{key}", str(value)))
    return rows


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


def percent_range(found: Figures) -> str:
    return "–" if found["low"] is None else f"{100 * found['low']:.1f} to {100 * found['high']:.1f}\u00a0%"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "–" if value is None else fixed(100 * value, 1, sign=True)


def fixed(value: float | None, digits: int, sign: bool = False) -> str:
    """A number with so many decimals and a true minus sign; no sign before what is shown as zero."""
    if value is None:
        return "–"
    if abs(value) >= 1e6:
        return f"{value:.2e}".replace("-", "−")
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    return text.lstrip("+-") if not text.strip("+-0.,") else text.replace("-", "−")


def thousands(value: int) -> str:
    return f"{value:,}"


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def memory(size: float) -> str:
    """Bytes in the binary unit that keeps the number short."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log2(size) // 10)) if size >= 1 else 0
    return f"{size / 1024**power:.1f} {units[power]}" if power else f"{size:.0f} B"
