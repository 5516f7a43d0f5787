"""Runs the pipeline on this machine through kfp.local; the command line starts it in a process group of its own.

`python -m pipelines.local_runner --root URI --run ID [--resume]`: everything else is in the run's run.json. Everything
that is printed here, by KFP or by a step, belongs in the run's log.
"""

import argparse
import os
import signal
import sys
import warnings
from itertools import pairwise
from typing import Any

from components.core.errors import KubealignError, UserError, exit_code_for, report
from pipelines.definitions import Definition, definition
from pipelines.runs import Run


class _Stopping:
    """SIGTERM, from the command line or because that ended, goes once to the whole group; all end in good order."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        if self.requested:
            return
        self.requested = True
        os.killpg(0, signal.SIGTERM)
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # between two tasks: kfp.local would start the next one
            sys.exit(143)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.local_runner")
    parser.add_argument("--root", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)  # a signal to our group must not reach whoever started us
    stopping = _Stopping()
    try:
        run_pipeline(Run(options.root, options.run), options.resume)
    except Exception as error:  # noqa: BLE001 (kfp raises all kinds; every one ends here)
        if stopping.requested:
            return 143
        if isinstance(error, KubealignError):
            print(f"error: {report(error)}", file=sys.stderr)
            return exit_code_for(error)
        # kfp.local knows only that a task failed; the step itself has said why, in the log and in its state.json.
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 143 if stopping.requested else 0


def run_pipeline(run: Run, resume: bool) -> None:
    """Run the pipeline with the run's settings; raises when a task fails."""
    for noise in ("You may be attemping", "Task .* display_name"):  # image names and display names mean nothing here
        warnings.filterwarnings("ignore", message=noise)
    from kfp import local

    settings = run.settings()
    if settings is None:
        raise UserError(f"no run {run.id}", where=run.root)
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(run.folder / "kfp"),
        raise_on_error=True,
        enable_caching=False,  # steps know by their fingerprint whether they are done
    )
    chosen = definition(settings.profile)
    pipeline = chosen.load()
    _stop_at_the_first_failure(pipeline, chosen)
    raw = {"data_root": settings.data_root} if chosen.takes_raw_data else {}
    pipeline(root=run.root, run=run.id, resume=resume, **raw, **chosen.arguments(settings.profile))


def _stop_at_the_first_failure(pipeline: Any, chosen: Definition) -> None:
    """Let each step wait for the one before.

    kfp.local runs one at a time anyway; but in an ExitHandler, after a failure or a stop, it would go on with the steps
    that need nothing of the one that failed.
    """
    tasks = pipeline.pipeline_spec.components["comp-exit-handler-1"].dag.tasks
    for before, after in pairwise(chosen.tasks.values()):
        tasks[after].dependent_tasks.append(before)


if __name__ == "__main__":
    sys.exit(main())
