"""The command line: `kubealign`."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from components.core import store
from components.core.config import STEP_CONFIGS, STEPS, Profile
from components.core.errors import KubealignError, UserError, exit_code_for, report
from components.core.logs import log_to_stderr
from components.launch.backends import NAMES, backend_for
from components.launch.run import launch
from pipelines import profiles
from pipelines.definitions import definition
from pipelines.display import display
from pipelines.figures import read_figures, report_uri, summary, verdict
from pipelines.plan.command import plan_command
from pipelines.progress import duration
from pipelines.runs import Run, all_runs, default_id, find
from pipelines.starts import absolute, from_run
from pipelines.supervise import run_to_end

app = typer.Typer(
    name="kubealign",
    help="From a base language model to an aligned chat model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("plan")(plan_command)
config_app = typer.Typer(help="About the settings.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")

RootOption = Annotated[
    str, typer.Option("--root", envvar="KUBEALIGN_ROOT", help="Store of all runs: a folder or s3://bucket/prefix.")
]
ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="A shipped profile's name, or a profile file.")]
SetOption = Annotated[
    list[str], typer.Option("--set", help="Override one setting: section.key=value. May be repeated.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the run instead of the profile's.")]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        envvar="KUBEALIGN_BACKEND",
        help="Where steps run: local, or as jobs of the current Kubernetes context: pytorchjob, trainjob, auto.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object and nothing else.")]


@app.command("run")
def run_command(
    profile: ProfileOption = "",
    root: RootOption = "./kubealign-data",
    data_root: Annotated[str, typer.Option("--data-root", help="Folder or URI of the raw data.")] = "",
    run_id: Annotated[str, typer.Option("--run", help="Run id; made from the settings when left out.")] = "",
    seed: SeedOption = None,
    overrides: SetOption = [],  # noqa: B006 (typer copies it)
    resume: Annotated[str, typer.Option("--resume", help="Go on with this run, with its own settings.")] = "",
    source: Annotated[
        str, typer.Option("--from", help="For pipeline preference_data: take models and data from this run.")
    ] = "",
    backend: BackendOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline. The same command again skips what is finished."""
    root = _absolute(root)
    _check_backend(backend, root)
    if resume:
        given = [name for name, value in _given(profile, data_root, run_id, seed, overrides, source).items() if value]
        if given:
            raise UserError(f"--resume takes the run's own settings; leave out {', '.join(given)}")
        run = find(root, resume)
    else:
        run = _new_run(root, profile, data_root, run_id, seed, overrides, source)
    console = Console(stderr=as_json)
    console.print(f"run {run.id}, log {run.log}", soft_wrap=True, markup=False, highlight=False)
    if run.is_finished():
        console.print("all steps are already done", highlight=False)
    else:
        with display(console) as shown:
            run_to_end(run, bool(resume), backend, shown.update)
    _print_report(run, as_json)


@app.command("compile")
def compile_command(
    profile: ProfileOption = "demo",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("alignment.yaml"),
    overrides: SetOption = [],  # noqa: B006
    image_prefix: Annotated[str, typer.Option("--image-prefix", help="Registry and folder of the images.")] = "",
) -> None:
    """Compile the pipeline, with a profile as its defaults, for a Kubeflow Pipelines backend."""
    from pipelines.ir import compile_pipeline  # kfp takes seconds to import

    compile_pipeline(profiles.load(profile, overrides), output, image_prefix)
    typer.echo(f"wrote {output}")


@app.command()
def validate(
    profile: Annotated[str, typer.Argument(help=f"A profile file, or one of: {', '.join(profiles.shipped())}.")],
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Check a profile and say what is wrong with it."""
    checked = profiles.load(profile, overrides)
    typer.echo(f"{checked.name}: valid" + (f" ({checked.description})" if checked.description else ""))


@config_app.command()
def schema() -> None:
    """Print the JSON schema of a profile: every setting with its meaning, unit, limits, default and source."""
    typer.echo(json.dumps(Profile.model_json_schema(), indent=2, ensure_ascii=False))


@app.command()
def runs(root: RootOption = "./kubealign-data") -> None:
    """List the runs, the latest last."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state", "profile", "started", "time"):
        table.add_column(name, no_wrap=True)
    for run in all_runs(_absolute(root)):
        state, settings = run.state(), run.settings()
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.started_at)) if state else ""
        took = duration(state.ended_at - state.started_at) if state and state.ended_at else ""
        table.add_row(run.id, run.state_name(), settings.profile.name if settings else "", started, took)
    console = Console()
    console.print(table, soft_wrap=not console.is_terminal)


@app.command("report")
def report_command(
    run: Annotated[str | None, typer.Argument(help="Run id; the latest when left out.")] = None,
    root: RootOption = "./kubealign-data",
    as_json: JsonOption = False,
) -> None:
    """Say where a run's report is and print its key figures."""
    _print_report(find(_absolute(root), run), as_json)


@app.command()
def step(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(STEPS)}.")],
    output: Annotated[str, typer.Option("--output", help="Folder or URI of this step's own: spec, result and output.")],
    profile: ProfileOption = "demo",
    inputs: Annotated[
        list[str], typer.Option("--input", help="NAME=URI, published by a step, or a local file or folder.")
    ] = [],  # noqa: B006
    seed: SeedOption = None,
    overrides: SetOption = [],  # noqa: B006
    resume: Annotated[bool, typer.Option("--resume", help="Keep a checkpoint or result that other code made.")] = False,
    backend: BackendOption = "local",
) -> None:
    """Run one step by itself, on any data or model."""
    if name not in STEP_CONFIGS:
        raise UserError(f"no step {name}", fix=f"choose one of {', '.join(STEPS)}")
    settings = profiles.load(profile, _with_seed(overrides, seed))
    section = getattr(settings, name).model_dump(mode="json")
    log_to_stderr()
    result = launch(
        name,
        run=f"step-{name.replace('_', '-')}",
        seed=settings.seed,
        config=section,
        inputs=dict(_named_uri(text) for text in inputs),
        output=_absolute(output),
        resume=resume,
        raw_inputs=True,
        backend=backend_for(name, backend),
    )
    for label, uri in result.outputs.items():
        typer.echo(f"{label}: {uri}")


@app.command()
def janitor(
    grace_seconds: Annotated[float, typer.Option("--grace-seconds", help="How long a job must be orphaned.")] = 60.0,
) -> None:
    """Delete jobs of the namespace whose launcher's pod is gone, and ended ones that nothing else deletes."""
    from components.launch.cluster.janitor import clean

    log_to_stderr()
    deleted = clean(grace_seconds)
    typer.echo(f"deleted {len(deleted)} jobs" + (f": {', '.join(deleted)}" if deleted else ""))


def main(arguments: list[str] | None = None) -> int:
    """Entry point: runs a command and ends in its exit code, every failure in one line on stderr."""
    try:
        return app(args=arguments, prog_name="kubealign", standalone_mode=False) or 0
    except typer.Abort:
        return _fail("stopped", 143)
    except KeyboardInterrupt as error:
        return _fail(report(error), exit_code_for(error))
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "kubealign"
            return _fail(f"{error.format_message().rstrip('.')}; see `{command} --help`", 1)
        if not isinstance(error, KubealignError | OSError) and os.environ.get("KUBEALIGN_TRACEBACK"):
            raise
        known = isinstance(error, KubealignError | OSError)
        return _fail(
            report(error) + ("" if known else "; set KUBEALIGN_TRACEBACK=1 to see where"), exit_code_for(error)
        )


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _check_backend(backend: str, root: str) -> None:
    """Refuse what cannot work before there is a run."""
    if backend not in NAMES:
        raise UserError(f"--backend {backend}", fix=f"choose one of {', '.join(NAMES)}")
    if backend != "local" and store.local_path(root) is not None:
        raise UserError(f"backend {backend}: pods cannot reach the folder {root}", fix="give --root s3://bucket/prefix")
    backend_for("sft", backend)


def _new_run(
    root: str, profile: str, data_root: str, run_id: str, seed: int | None, overrides: list[str], source: str
) -> Run:
    if not profile:
        raise UserError(
            "give --profile NAME, or --resume RUN", fix=f"shipped profiles: {', '.join(profiles.shipped())}"
        )
    given = from_run(find(root, source)) if source else []
    settings = absolute(profiles.load(profile, [*given, *_with_seed(overrides, seed)]))
    data_root = _absolute(data_root) if data_root else ""
    definition(settings).check(settings, data_root)
    folder = store.local_path(data_root) if data_root else None
    if folder is not None and not folder.is_dir():
        raise UserError("no such folder", where=f"--data-root {data_root}", fix="give the folder of the raw data")
    run = Run(root, run_id or default_id(settings, data_root))
    run.begin(settings, data_root)
    return run


def _given(
    profile: str, data_root: str, run_id: str, seed: int | None, overrides: list[str], source: str
) -> dict[str, bool]:
    return {
        "--profile": bool(profile), "--data-root": bool(data_root), "--run": bool(run_id), "--seed": seed is not None,
        "--set": bool(overrides), "--from": bool(source),
    }  # fmt: skip


def _with_seed(overrides: list[str], seed: int | None) -> list[str]:
    return [*overrides, *([f"seed={seed}"] if seed is not None else [])]


def _absolute(uri: str) -> str:
    """A URI that means the same in every process, wherever that is started."""
    path = store.local_path(uri)
    return uri.rstrip("/") if path is None else str(path)


def _named_uri(text: str) -> tuple[str, str]:
    name, equals, uri = text.partition("=")
    if not equals or not name or not uri:
        raise UserError(f"--input {text}", fix="write it as NAME=URI, such as data=runs/x/data_prep/output/sft")
    return name.strip(), _absolute(uri.strip())


def _print_report(run: Run, as_json: bool) -> None:
    figures: dict[str, Any] = read_figures(run)
    if as_json:
        typer.echo(json.dumps(figures))
        return
    console = Console()
    console.print(summary(figures), soft_wrap=not console.is_terminal)
    if said := verdict(figures):
        typer.echo(said)
    typer.echo(f"report: {report_uri(run)}")
