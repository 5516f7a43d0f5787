"""The report's figures for people: a short table out of evaluate's report.json."""

import json
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from components.core import store
from components.core.errors import UserError
from components.core.spec import read_result
from pipelines.runs import Run


def report_uri(run: Run) -> str:
    """Where evaluate has published the report; UserError where the run has not come to it."""
    result = read_result(store.join(run.uri, "evaluate"))
    if result is None or "report" not in result.outputs:
        fix = f"finish it with `kubealign run --resume {run.id} --root {run.root}`"
        raise UserError(f"run {run.id} has no report yet ({run.state_name()})", fix=fix)
    return store.join(result.outputs["report"], "report.html")


def read_figures(run: Run) -> dict[str, Any]:
    """All figures of a run's report, as one object."""
    uri = report_uri(run).removesuffix(".html") + ".json"
    try:
        figures = json.loads(store.read_bytes(uri))
    except ValueError as error:
        raise UserError("not a report", where=uri, fix="run the step evaluate again") from error
    if not isinstance(figures, dict):
        raise UserError("not a report", where=uri, fix="run the step evaluate again")
    return figures


def summary(figures: dict[str, Any]) -> Table:
    """The key figures, each with its 95 % interval where it has one."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for label, value in _rows(figures):
        interval = f"[{value['low']:.3f}, {value['high']:.3f}]" if "low" in value and "high" in value else ""
        table.add_row(label, f"{value['value']:.3f}", interval.replace("[", "\\["))
    return table


def _rows(figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and {value, low, high}; what a report does not have is left out."""
    for part, label in (("ground_truth", "ground truth"), ("correctness", "correctness")):
        for who in ("base", "sft", "ppo", "ppo_minus_sft"):
            yield from _row(f"{label}, {who.replace('_', ' ')}", figures.get(part, {}).get(who))
    for part, label in (("reward_model", "reward model"), ("rival", "rival"), ("pmp", "pmp")):
        for name, value in figures.get(part, {}).get("accuracy", {}).items():
            yield from _row(f"{label} accuracy, {name}", value)
    for kind in ("harmful", "harmless"):
        for who in ("sft", "ppo"):
            yield from _row(f"refusals of {kind}, {who}", figures.get("refusal", {}).get(kind, {}).get(who))
    yield from _row("KL to the reference, ppo", figures.get("ppo", {}).get("kl"))


def verdict(figures: dict[str, Any]) -> str:
    """Whether several models' preference data did at least as well as one's, in one sentence; "" in other reports."""
    data = figures.get("headline_set")
    gain = figures.get("reward_model_minus_rival", {}).get("accuracy", {}).get(data)
    if gain is None:
        return ""
    ours, theirs = (figures[one]["accuracy"][data]["value"] for one in ("reward_model", "rival"))
    said = "at least as accurate as" if gain["value"] >= 0 else "less accurate than"
    interval = f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    clear = "" if gain["low"] > 0 or gain["high"] < 0 else ", which may be chance"
    return (
        f"The reward model from several models is {said} the one from a single model: {ours:.3f} against {theirs:.3f} "
        f"of {gain['n']} pairs of {data}, a difference of {interval}{clear}."
    )


def _row(label: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, int | float):
        value = {"value": value}
    if isinstance(value, dict) and isinstance(value.get("value"), int | float):
        yield label, value
