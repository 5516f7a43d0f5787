"""What the pipeline components call: run a step and describe what it made. Components are serialised; this is not."""

import contextlib
import math
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from components.core import store
from components.core.errors import KubealignError, report
from components.core.logs import log_to_stderr
from components.core.spec import StepResult, read_result
from components.launch.backends import backend_for, chosen
from components.launch.run import run_step

# Components run in this image; the steps that train, in images of their own, as jobs that it starts.
IMAGE = "kubealign/launcher:0.1.0"
DATA_PREP_IMAGE = "kubealign/data-prep:0.1.0"
ANNOTATE_IMAGE = "kubealign/annotate:0.1.0"

SHARDS = "data_shards"  # where in a run the shards of the raw data lie


def run_component(
    step: str,
    config: dict[str, Any],
    inputs: dict[str, str],
    root: str,
    run: str,
    seed: int,
    resume: bool,
    place: str = "",
) -> StepResult:
    """Run a step for a pipeline task; a failure ends the task with one line and its own exit code.

    `place` is its folder in the run, where that has the same step twice.
    """
    log_to_stderr()
    try:
        return run_step(
            step, run=run, seed=seed, config=config, inputs=inputs, root=root, resume=resume,
            backend=backend_for(step), place=place,
        )  # fmt: skip
    except KubealignError as error:
        _fail(step, error)


def place_of_shard(shard: str) -> str:
    """The folder in the run of a shard of the raw data, such as 2/4."""
    return f"{SHARDS}/{shard.replace('/', '-of-')}"


def output_of(step: str, name: str, root: str, run: str) -> str:
    """The URI of what a step of the run has made; "" where it is not there."""
    result = read_result(store.join(root, "runs", run, step))
    return result.outputs.get(name, "") if result else ""


def clean_up_run(root: str, run: str) -> None:
    """Delete what still runs of a run that is over. On this machine nothing does (`processes.py`)."""
    log_to_stderr()
    try:
        if chosen() != "local":
            from components.launch.cluster.janitor import clean_run  # needs the package kubernetes

            clean_run(run, store.join(root, "runs", run))
    except KubealignError as error:
        _fail("clean_up", error)


def describe(artifact: Any, result: StepResult, name: str) -> str:
    """Write an output's lineage into a pipeline artifact; returns the output's URI, or "" where there is none.

    Never touch `artifact.uri`: the backend refuses one outside the run's own prefix, though a local run does not.
    """
    uri = result.outputs.get(name, "")
    artifact.metadata.update(
        location=uri,
        manifest=result.manifests.get(name, ""),
        step=result.step,
        run=result.run,
        fingerprint=result.fingerprint,
        code=result.code,
        **{f"version_{package}": version for package, version in result.versions.items()},
    )
    return uri


def describe_metrics(artifact: Any, result: StepResult) -> None:
    """The step's numbers as metadata, which is where the pipeline UI reads metrics from."""
    artifact.metadata.update(_numbers(result.metrics), seconds=result.seconds, peak_rss_bytes=result.peak_rss_bytes)


def copy_report(result: StepResult, target: str) -> None:
    """The report's bytes into an HTML artifact's own file."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    uri = store.join(result.outputs["report"], "report.html")
    path = store.local_path(uri)
    if path is not None:
        shutil.copyfile(path, target)
    else:
        Path(target).write_bytes(store.read_bytes(uri))


def _fail(task: str, error: KubealignError) -> NoReturn:
    print(f"error: {task}: {report(error)}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):  # the pod's last words; on a laptop there is no such file
        if Path("/dev/termination-log").exists():
            Path("/dev/termination-log").write_text(f"{error.exit_code} {report(error)}\n", encoding="utf-8")
    sys.exit(error.exit_code)


def _numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and math.isfinite(value):
            found[prefix + name] = float(value)
    return found
