"""The contract between a step and its caller: `spec.json` in, `result.json` out, nothing else."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

import components
from components.core import store
from components.core.config import step_config
from components.core.errors import UserError

# The rooms whose code decides what a step writes, beside its own.
_SHARED_ROOMS: dict[str, tuple[str, ...]] = {
    "base_model": ("core", "training", "data_prep", "demo_world"),
    "data_prep": ("core", "demo_world"),
    "sft": ("core", "training"),
    "pmp": ("core", "training", "reward_model"),
    "reward_model": ("core", "training"),
    "ppo": ("core", "training", "reward_model"),
    "evaluate": ("core", "training", "reward_model", "data_prep", "demo_world"),
    "sample_responses": ("core", "training", "data_prep"),
    "annotate": ("core", "demo_world"),
}


class StepSpec(BaseModel):
    """What a step is to do. Written by the caller to `<output>/spec.json`; secrets never go in here."""

    model_config = ConfigDict(extra="forbid")

    step: str
    run: str
    seed: int
    attempt: int = 0
    config: dict[str, Any]
    inputs: dict[str, str]
    input_digests: dict[str, str | None]
    # What was not published by a step (raw files, a model folder given by hand), by content; never fetched or verified.
    raw_digests: dict[str, str] = {}
    output: str
    code: str
    resume: bool = False

    @property
    def uri(self) -> str:
        return store.join(self.output, "spec.json")

    @property
    def work(self) -> Path:
        """The step's local folder."""
        return work_folder(self.output, self.run)

    def fingerprint(self) -> str:
        """Digest of all that decides the result: step, settings, seed, and inputs by content where that is known.

        Not the resources: who gives a step more memory or other nodes goes on from its checkpoints.
        """
        published = {name: digest for name, digest in self.input_digests.items() if digest}
        inputs = {**self.inputs, **self.raw_digests, **published}
        config = {name: value for name, value in self.config.items() if name != "resources"}
        parts = [self.step, self.seed, config, inputs, components.__version__]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class StepResult(BaseModel):
    """What a step made. Written as its last act to `<output>/result.json`."""

    model_config = ConfigDict(extra="forbid")

    step: str
    run: str
    fingerprint: str
    code: str
    outputs: dict[str, str]
    manifests: dict[str, str]
    metrics: dict[str, Any]
    started_at: float
    seconds: float
    peak_rss_bytes: int
    versions: dict[str, str]


def work_folder(output: str, run: str) -> Path:
    """The local folder of an output: itself where it is local, else scratch space, apart from other stores' runs."""
    if (local := store.local_path(output)) is not None:
        return local
    parent, _, name = output.rstrip("/").rpartition("/")
    scratch = Path(os.environ.get("KUBEALIGN_WORK", tempfile.gettempdir())) / "kubealign"
    return scratch / f"{run}-{hashlib.sha256(parent.encode()).hexdigest()[:8]}" / name


def code_digest(step: str) -> str:
    """Digest of the source that a step runs, so that a changed program does not pass off an old result as its own."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for room in sorted({step, *_SHARED_ROOMS[step]}):
        for path in sorted((root / room).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def make_spec(
    step: str,
    *,
    run: str,
    seed: int,
    config: dict[str, Any],
    inputs: dict[str, str],
    output: str,
    resume: bool = False,
    attempt: int = 0,
    raw_digests: dict[str, str] | None = None,
) -> StepSpec:
    """A checked spec. Inputs are identified by their manifest's digest where they were published by a step.

    `raw_digests` identifies by content what was not, such as the files that data_prep reads.
    """
    checked = step_config(step, config).model_dump(mode="json")
    return StepSpec(
        step=step,
        run=run,
        seed=seed,
        attempt=attempt,
        config=checked,
        inputs=inputs,
        input_digests={name: store.manifest_digest(uri) for name, uri in inputs.items()},
        raw_digests=raw_digests or {},
        output=output,
        code=code_digest(step),
        resume=resume,
    )


def read_spec(uri: str) -> StepSpec:
    try:
        return StepSpec.model_validate_json(store.read_bytes(uri))
    except ValidationError as error:
        raise UserError(
            f"{uri}: not a step specification ({error.error_count()} errors); start the step with kubealign"
        ) from error


def read_result(output: str) -> StepResult | None:
    """The result under an output URI, or None while there is none. Raises UserError on a broken one."""
    uri = store.join(output, "result.json")
    if not store.exists(uri):
        return None
    try:
        return StepResult.model_validate_json(store.read_bytes(uri))
    except ValidationError as error:
        raise UserError(f"{uri}: not a step result; delete it to run the step again") from error


def is_done(spec: StepSpec) -> bool:
    """Whether the step has already made just this. A resumed run keeps finished steps whatever code made them."""
    result = read_result(spec.output)
    if result is None or result.fingerprint != spec.fingerprint():
        return False
    return spec.resume or result.code == spec.code
