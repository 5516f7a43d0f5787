"""`kubealign plan` as people see it."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from components.core.config import Profile
from components.core.errors import UserError
from pipelines import profiles
from pipelines.plan.estimate import AFTER, GIB, GPUS, Assumptions, StepPlan, plan

_PARTS = {
    "state": ("weights", "gradients", "optimiser", "buffers"), "activations": ("activations", "logits"),
    "other models": ("other_models", "cache"),
}  # fmt: skip


def plan_command(
    profile: Annotated[str, typer.Argument(help=f"A profile file, or one of: {', '.join(profiles.shipped())}.")],
    overrides: Annotated[list[str], typer.Option("--set", help="Override one setting. May be repeated.")] = [],  # noqa: B006
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Nodes of every training step.")] = None,
    gpu: Annotated[str, typer.Option("--gpu", help=f"One of: {', '.join(GPUS)}.")] = "h100",
    price: Annotated[float | None, typer.Option("--price", min=0, help="Dollars a GPU-hour.")] = None,
    mfu: Annotated[float, typer.Option("--mfu", min=0.01, max=1, help="Share of the GPU's arithmetic reached.")] = 0.4,
    row_tokens: Annotated[int, typer.Option("--row-tokens", min=2, help="Mean tokens of a conversation.")] = 700,
    pmp_pairs: Annotated[int, typer.Option("--pmp-pairs", min=1)] = 500_000,
    reward_model_pairs: Annotated[int, typer.Option("--reward-model-pairs", min=1)] = 50_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Say what a run will need before it costs anything: memory a GPU, hours, cost, storage."""
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu}", fix=f"choose one of {', '.join(GPUS)}")
    given = Assumptions(
        gpu=gpu, mfu=mfu, row_tokens=row_tokens, pmp_pairs=pmp_pairs, reward_model_pairs=reward_model_pairs, price=price
    )
    if nodes is not None:
        overrides = [*overrides, *(f"{step}.resources.nodes={nodes}" for step in AFTER)]
    chosen = profiles.load(profile, overrides)
    steps = plan(chosen, given)
    if as_json:
        rows = [{**asdict(step), "gpu_hours": step.gpu_hours, "peak_bytes": step.memory.total} for step in steps]
        typer.echo(json.dumps({"profile": chosen.name, "assumptions": asdict(given), "steps": rows}))
        return
    console = Console()
    for table in (_memory(steps, given), _work(steps)):
        console.print(table, soft_wrap=not console.is_terminal)
        console.print()
    for line in _remarks(chosen, steps, given):
        typer.echo(line)


def _memory(steps: list[StepPlan], given: Assumptions) -> Table:
    table = Table(box=None, pad_edge=False, title=f"GiB on each {given.gpu}", title_justify="left")
    table.add_column("step", no_wrap=True)
    for name in (*_PARTS, "peak", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("peak in", no_wrap=True)
    for step in steps:
        parts = [f"{sum(getattr(step.memory, part) for part in names) / GIB:.1f}" for names in _PARTS.values()]
        left = f"{step.margin / GIB:.1f}" if step.margin >= 0 else "too much"
        table.add_row(step.step, *parts, f"{step.memory.total / GIB:.1f}", left, step.moment)
    return table


def _work(steps: list[StepPlan]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("step", "after"):
        table.add_column(name, no_wrap=True)
    for name in ("GPUs", "tokens", "hours", "GPU-h", "cost", "GiB in S3"):
        table.add_column(name, justify="right", no_wrap=True)
    for step in steps:
        cost = "–" if step.cost is None else f"${step.cost:,.0f}"
        table.add_row(
            step.step, ", ".join(step.after) or "data_prep", str(step.gpus), f"{step.tokens / 1e6:,.0f}M",
            f"{step.hours:,.1f}", f"{step.gpu_hours:,.0f}", cost, f"{step.storage / GIB:,.0f}",
        )  # fmt: skip
    costs = [step.cost for step in steps if step.cost is not None]
    total = f"${sum(costs):,.0f}" if costs else "–"
    hours, storage = sum(step.gpu_hours for step in steps), sum(step.storage for step in steps) / GIB
    table.add_row("all", "", "", "", "", f"{hours:,.0f}", total, f"{storage:,.0f}")
    return table


def _remarks(profile: Profile, steps: list[StepPlan], given: Assumptions) -> list[str]:
    found = []
    for step in steps:
        if step.margin < 0:
            how = (
                f"try {step.suggestion}"
                if step.suggestion
                else "no setting here makes it fit: take more or larger GPUs"
            )
            found.append(f"{step.step} does not fit: {how}")
    price = given.price if given.price is not None else GPUS[given.gpu].price
    found.append(
        f"assumed: {given.row_tokens} tokens a row, half of them scored; {given.pmp_pairs:,} pairs for pmp and "
        f"{given.reward_model_pairs:,} for reward_model; {given.mfu:.0%} of the {given.gpu}'s bf16 arithmetic; "
        + (f"${price} a GPU-hour" if price is not None else "no price (--price)")
        + "; 2 GiB a GPU for CUDA and NCCL, 5 % for fragments. In S3: checkpoints and models. Measured is the memory "
        "of small unsharded models alone, within 15 % (tests/unit/pipelines/test_plan.py); the rest is arithmetic"
    )
    return found
