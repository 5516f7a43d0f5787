"""Run one step to its result, or find that it has been made already."""

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from components.core import store
from components.core.errors import Cancelled, KubealignError, UserError, exit_code_for, report
from components.core.spec import StepResult, StepSpec, is_done, make_spec, read_result, read_spec, work_folder
from components.launch import raw_data
from components.launch.backend import TrainingBackend

log = logging.getLogger(__name__)

# Changes while the step runs, so it has no content to be identified by.
_LIVE_INPUTS = ("run",)
# What people bring, whenever they do: known by its content, be it nothing yet.
_HANDED_IN = ("results",)


class StepState(BaseModel):
    """How a step is getting on: `state.json` in its local folder, for whoever watches. No step depends on it."""

    model_config = ConfigDict(extra="ignore")

    step: str
    state: Literal["running", "done", "skipped", "failed", "cancelled"]
    started_at: float
    ended_at: float | None = None
    exit_code: int = 0
    error: str = ""


def run_step(
    step: str,
    *,
    run: str,
    seed: int,
    config: dict[str, Any],
    inputs: dict[str, str],
    root: str,
    resume: bool = False,
    backend: TrainingBackend,
    place: str = "",
) -> StepResult:
    """One step of a run, in its place under the root: by default, its name. Finished steps are not run again."""
    output = store.join(root, "runs", run, place or step)
    return launch(step, run=run, seed=seed, config=config, inputs=inputs, output=output, resume=resume, backend=backend)


def launch(
    step: str,
    *,
    run: str,
    seed: int,
    config: dict[str, Any],
    inputs: dict[str, str],
    output: str,
    resume: bool = False,
    raw_inputs: bool = False,
    backend: TrainingBackend,
) -> StepResult:
    """One step with an output of its own. With `raw_inputs`, inputs may be what no step has published."""
    state = StepState(step=step, state="running", started_at=time.time())
    work = work_folder(output, run)
    inputs = {name: uri for name, uri in inputs.items() if uri}
    try:
        raw = _raw_digests(config, inputs, raw_inputs)
        spec = make_spec(
            step, run=run, seed=seed, config=config, inputs=inputs, output=output, resume=resume, raw_digests=raw
        )
        if (found := _existing(spec)) is not None:
            log.info("%s is already done: %s", step, output)
            state.state = "skipped"
            return found
        if not backend.adopts(spec):
            spec = _prepare(spec)
        _write_state(work, state)
        log.info("%s starts (%s): %s", step, backend.name, spec.uri)
        backend.run(spec)
        result = read_result(output)
        if result is None:
            raise UserError(f"{step} ended without a result", where=output, fix="see its log")
        state.state = "done"
        return result
    except BaseException as error:
        state.state = "cancelled" if isinstance(error, Cancelled | KeyboardInterrupt) else "failed"
        state.exit_code, state.error = exit_code_for(error), report(error)
        raise
    finally:
        state.ended_at = time.time()
        with contextlib.suppress(KubealignError, OSError):  # a full disk must not hide what the step died of
            _write_state(work, state)


def is_current(output: str) -> bool:
    """Whether the step with this output is done and would not run again: same code, and the same inputs by content."""
    old = _read_spec(store.join(output, "spec.json"))
    if old is None:
        return False
    raw = _raw_digests(old.config, old.inputs, raw_inputs=False)
    again = make_spec(
        old.step, run=old.run, seed=old.seed, config=old.config, inputs=old.inputs, output=output, raw_digests=raw
    )
    return _existing(again) is not None


def read_state(work: Path) -> StepState | None:
    """The state of the step whose local folder this is; None where it was never started."""
    try:
        return StepState.model_validate_json((work / "state.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _write_state(work: Path, state: StepState) -> None:
    work.mkdir(parents=True, exist_ok=True)
    temporary = work / "state.json.tmp"
    temporary.write_text(state.model_dump_json(), encoding="utf-8")
    os.replace(temporary, work / "state.json")


def _raw_digests(config: dict[str, Any], inputs: dict[str, str], raw_inputs: bool) -> dict[str, str]:
    paths = raw_data.source_paths(config)
    raw = {"data_root": raw_data.digest(paths, inputs.get("data_root", ""))} if paths else {}
    raw |= {name: raw_data.digest([inputs[name]]) for name in _HANDED_IN if name in inputs}
    for name, uri in inputs.items() if raw_inputs else ():
        if name in ("data_root", *_HANDED_IN, *_LIVE_INPUTS) or store.manifest_digest(uri) is not None:
            continue
        path = store.local_path(uri)
        if path is None or not path.exists():
            raise UserError(
                f"input {name}: neither published by a step nor a local file", where=uri, fix="check the path"
            )
        raw[name] = raw_data.digest([uri])
    return raw


def _existing(spec: StepSpec) -> StepResult | None:
    """The result, if this has been made already and what was made is still there."""
    if not is_done(spec):
        return None
    result = read_result(spec.output)
    if result is None or any(
        store.manifest_digest(uri) != result.manifests[name] for name, uri in result.outputs.items()
    ):
        return None
    return result


def _prepare(spec: StepSpec) -> StepSpec:
    """Write spec.json, and keep the checkpoints of an earlier attempt only where it was at just this.

    With other code, a checkpoint of the last step would pass off what the old code had trained; --resume keeps it.
    """
    previous = _read_spec(spec.uri)
    if previous and previous.fingerprint() == spec.fingerprint() and (spec.resume or previous.code == spec.code):
        spec = spec.model_copy(update={"attempt": previous.attempt + 1})
        _delete(spec, "result.json")
    else:
        _delete(spec, "result.json", "checkpoints", "metrics.jsonl", "output")
    store.write_bytes(spec.uri, spec.model_dump_json(indent=1).encode())
    return spec


def _read_spec(uri: str) -> StepSpec | None:
    """What the last attempt in this place was to do; None where there was none, or its spec is not one of ours now."""
    try:
        return read_spec(uri) if store.exists(uri) else None
    except UserError:
        return None


def _delete(spec: StepSpec, *names: str) -> None:
    for place in {spec.output, str(spec.work)}:
        for name in names:
            store.delete(store.join(place, name))
