"""Plots as inline SVG. Text stays text and takes the page's colours, so that they read in light and dark alike."""

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

Figures = dict[str, Any]

COLOURS = {
    "base": "#8b95a7", "sft": "#3a86c8", "ppo": "#e0803a",
    "pmp": "#9a78cf", "reward_model": "#2aa198", "rival": "#c95d63", "longer_is_better": "#a3abb8",
    "base_model": "#8b95a7",
}  # fmt: skip
NAMES = {
    "base": "Base", "sft": "SFT", "ppo": "PPO", "pmp": "PMP", "reward_model": "Reward model", "rival": "Rival",
    "longer_is_better": "Longer is better", "coin": "Coin", "base_model": "Base model",
}  # fmt: skip
# Drawn in these colours, then replaced by the page's own.
_TEXT, _GRID = "#010203", "#040506"
_STYLE: dict[Any, Any] = {
    "font.size": 11, "axes.titlesize": 11, "axes.labelsize": 11, "xtick.labelsize": 10.5, "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5, "svg.fonttype": "none", "font.family": "sans-serif", "text.color": _TEXT,
    "axes.labelcolor": _TEXT, "axes.titlecolor": _TEXT, "xtick.color": _TEXT, "ytick.color": _TEXT,
    "axes.edgecolor": _GRID, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": _GRID, "grid.linewidth": 0.8, "axes.axisbelow": True, "xtick.major.size": 0, "ytick.major.size": 0,
    "legend.frameon": False, "legend.handlelength": 1.2,
}  # fmt: skip
_SMOOTH_FROM, _DRAWN_POINTS = 30, 500


@dataclass(frozen=True)
class Plot:
    """One figure of the page: what it shows in a line, and its drawing."""

    title: str
    svg: str
    note: str = ""


@contextmanager
def _drawing(name: str, width: float, height: float) -> Iterator[tuple[Axes, Callable[[str], str]]]:
    """Axes to draw on, and a function that renders them with a label for screen readers."""
    # A salt of its own keeps the ids of two drawings on one page apart, and makes them the same in every run.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()

        def render(label: str) -> str:
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            return _inline(buffer.getvalue(), label)

        yield axes, render


def _inline(svg: str, label: str) -> str:
    """A bare <svg> element: no prolog, no metadata, no addresses, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = (
        re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", svg.partition(">")[0])
        + ">"
        + svg.partition(">")[2]
    )
    svg = svg.replace(_TEXT, "currentColor").replace(_GRID, "var(--line)").replace("xlink:href", "href")
    safe = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{safe}"', 1).strip()


def accuracy_plot(figures: Figures) -> Plot | None:
    """Bars by set: reward model, PMP and longer-is-better with their intervals; the coin is a line."""
    judges = {
        name: accuracy
        for name in ("reward_model", "rival", "pmp", "longer_is_better")
        if (accuracy := (figures.get(name) or figures.get("baselines", {}).get(name, {})).get("accuracy"))
    }
    sets = [name for name in figures.get("sets", {}) if any(name in accuracy for accuracy in judges.values())]
    if not sets:
        return None
    with _drawing("accuracy", 5.4, 1.1 + 0.21 * len(sets) * (len(judges) + 0.9)) as (axes, render):
        thickness = 0.8 / len(judges)
        for row, (name, accuracy) in enumerate(judges.items()):
            places = [i + (row - (len(judges) - 1) / 2) * thickness for i, s in enumerate(sets) if s in accuracy]
            _bars(axes, places, [accuracy[s] for s in sets if s in accuracy], thickness * 0.86, name, horizontal=True)
        axes.axvline(0.5, color=_TEXT, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(sets)), ["\n".join(textwrap.wrap(name, 16)) for name in sets])
        axes.set(xlim=(0, 1), ylim=(len(sets) - 0.45, -0.55), xlabel="Held-out pairs ordered right")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(visible=False, axis="y")
        _legend(axes, 3)
        note = "Whiskers: 95 % interval over prompts. Dashed: a coin."
        return Plot("Accuracy by comparison set", render("Pairwise accuracy by comparison set"), note)


def reliability_plots(figures: Figures, first: str | None, most: int = 7) -> list[Plot]:
    """One a set, PMP beside the reward model: how often the preferred response really is the better one."""
    plots = []
    for data in sorted(figures.get("sets", {}), key=lambda name: name != first)[:most]:
        judges = {
            name: found
            for name in ("pmp", "reward_model", "rival")
            if (found := figures.get(name, {}).get("calibration", {}).get(data)) and found["n"]
        }
        if judges:
            plots.append(_reliability(data, judges, large=data == first))
    return plots


def _reliability(data: str, judges: dict[str, Any], large: bool) -> Plot:
    # The size it is shown at, so that its letters come out as large as the others'.
    with _drawing(f"reliability {data}", *((5.2, 3.9) if large else (4.2, 3.7))) as (axes, render):
        axes.plot([0.5, 1], [0.5, 1], color=_TEXT, linewidth=1, linestyle=(0, (4, 3)))
        for name, found in judges.items():
            bins = [row for row in found["bins"] if row["n"]]
            said, right = [row["confidence"] for row in bins], [row["accuracy"] for row in bins]
            errors = [[r["accuracy"] - r["low"] for r in bins], [r["high"] - r["accuracy"] for r in bins]]
            sizes = [16 + 150 * row["n"] / found["n"] for row in bins]
            colour = COLOURS[name]
            axes.errorbar(said, right, yerr=errors, color=colour, linewidth=1.5, elinewidth=1, alpha=0.75)
            axes.scatter(said, right, s=sizes, color=colour, zorder=3, label=f"{NAMES[name]} (ECE {found['ece']:.3f})")
        axes.set(
            xlim=(0.49, 1.01), ylim=(-0.02, 1.02), xlabel="Confidence in its own pick", ylabel="Picks that are right"
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        _legend(axes, 2 if large else 1)
        return Plot(f"Calibration on {data}", render(f"Reliability on {data}"))


def score_plot(figures: Figures) -> Plot | None:
    """Ground truth, correctness and form of the policies."""
    groups = {"Total": "ground_truth", "Correctness": "correctness", "Form": "form"}
    rows = {label: figures[name] for label, name in groups.items() if name in figures}
    if not rows:
        return None
    svg = _policy_bars("scores", rows, "Mean score, of 1", None)
    return Plot("Ground truth on held-out prompts", svg, "Whiskers: 95 % interval over prompts.")


def refusal_plot(figures: Figures) -> Plot | None:
    """Refusal rates by category of prompt."""
    refusal = figures.get("refusal", {})
    labels = {
        "Harmful\n(should refuse)": "harmful",
        "Look-alike\n(should help)": "harmless",
        "Ordinary\n(should help)": "ordinary",
    }
    rows = {
        f"{label}\nn = {refusal['n'][name]}": {
            policy: {"value": rate, **refusal["interval"][name][policy]} for policy, rate in refusal[name].items()
        }
        for label, name in labels.items()
        if name in refusal
    }
    return (
        Plot(
            "Refusals",
            _policy_bars("refusals", rows, "Answers that refuse", PercentFormatter(1)),
            "Whiskers: 95 % Wilson interval.",
        )
        if rows
        else None
    )


def _policy_bars(name: str, rows: dict[str, Any], label: str, ticks: PercentFormatter | None) -> str:
    """Groups of one bar a policy, between 0 and 1."""
    policies = [policy for policy in ("base", "sft", "ppo") if any(policy in row for row in rows.values())]
    with _drawing(name, 5.4, 3.7) as (axes, render):
        width = 0.8 / len(policies)
        for number, policy in enumerate(policies):
            places = [
                i + (number - (len(policies) - 1) / 2) * width for i, row in enumerate(rows.values()) if policy in row
            ]
            _bars(
                axes,
                places,
                [row[policy] for row in rows.values() if policy in row],
                width * 0.86,
                policy,
                horizontal=False,
            )
        axes.set_xticks(range(len(rows)), list(rows))
        axes.set(ylim=(0, 1.04), ylabel=label)
        if ticks is not None:
            axes.yaxis.set_major_formatter(ticks)
        axes.grid(visible=False, axis="x")
        _legend(axes, 3)
        return render(label)


def _bars(
    axes: Axes, places: list[float], found: list[dict[str, Any]], width: float, name: str, *, horizontal: bool
) -> None:
    values = [row["value"] or 0.0 for row in found]
    # A figure that could not be computed is null in JSON; it gets no whisker.
    ends = [(row["low"], row["high"]) if row["low"] is not None else (row["value"] or 0.0,) * 2 for row in found]
    errors = [
        [max(0.0, v - low) for v, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, high - v) for v, (_, high) in zip(values, ends, strict=True)],
    ]
    style: dict[str, Any] = {
        "color": COLOURS[name],
        "label": NAMES[name],
        "error_kw": {"ecolor": _TEXT, "elinewidth": 1.1, "capsize": 0},
    }
    if horizontal:
        axes.barh(places, values, width, xerr=errors, **style)
    else:
        axes.bar(places, values, width, yerr=errors, **style)


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=columns,
        columnspacing=1.1,
        borderaxespad=0.2,
        handletextpad=0.5,
    )


# Step, metric, title, whether it is a share.
CURVES = (
    ("base_model", "training_loss", "Base model: pretraining loss", False),
    ("sft", "training_loss", "SFT: loss", False),
    ("pmp", "training_loss", "PMP: pair loss", False),
    ("pmp", "reward_model_accuracy_ratio", "PMP: accuracy in training", True),
    ("reward_model", "training_loss", "Reward model: pair loss", False),
    ("reward_model", "reward_model_accuracy_ratio", "Reward model: accuracy in training", True),
    ("ppo", "ppo_reward_mean", "PPO: mean reward-model score", False),
    ("ppo", "ppo_kl", "PPO: KL to SFT, nats a response", False),
    ("ppo", "ppo_response_length_tokens", "PPO: response length, tokens", False),
    ("ppo", "ppo_value_loss", "PPO: value loss", False),
    ("ppo", "ppo_truncated_ratio", "PPO: truncated responses", True),
    ("ppo", "ppo_entropy", "PPO: entropy, nats a token", False),
)


def learning_curves(curves: dict[str, list[dict[str, Any]]]) -> list[Plot]:
    """Every known metric of every step that has one, against its step or iteration."""
    plots = []
    for step, metric, title, is_share in CURVES:
        points = [
            (line["training_step"], line[metric])
            for line in curves.get(step, [])
            if isinstance(line.get(metric), int | float) and np.isfinite(line[metric]) and "training_step" in line
        ]
        if len(points) > 1:
            warmup = (
                [line["training_step"] for line in curves[step] if line.get("ppo_value_only")] if step == "ppo" else []
            )
            plots.append(_curve(title, COLOURS[step], points, is_share, max(warmup, default=None)))
    return plots


def _curve(
    title: str, colour: str, points: Sequence[tuple[float, float]], is_share: bool, warmup: float | None
) -> Plot:
    steps, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    with _drawing(title, 4.2, 2.5) as (axes, render):
        if warmup is not None:
            axes.axvspan(steps[0], warmup, color=_TEXT, alpha=0.07, linewidth=0)
            axes.annotate(
                "value only",
                (steps[0], 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                va="top",
                fontsize=9.5,
                alpha=0.75,
            )
        smooth = len(values) >= _SMOOTH_FROM
        every = max(1, len(values) // _DRAWN_POINTS)
        axes.plot(
            steps[::every], values[::every], color=colour, linewidth=0.8 if smooth else 1.8, alpha=0.4 if smooth else 1
        )
        if smooth:
            axes.plot(
                steps[::every], moving_average(values, max(3, len(values) // 25))[::every], color=colour, linewidth=2
            )
        axes.set_xlabel("Iteration" if title.startswith("PPO") else "Step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if is_share:
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        return Plot(title, render(title))


def moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` values; at the ends over those that are there."""
    window = np.ones(width)
    total: np.ndarray = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    return total
