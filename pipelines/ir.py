"""Compile the pipeline to the IR YAML that a Kubeflow backend takes, with a profile as its defaults."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import yaml

import components
from components.core.config import Profile
from components.core.errors import from_os_error
from pipelines.parameters import sections

_IMAGE_PREFIX = "kubealign/"


def compile_pipeline(profile: Profile, path: Path, image_prefix: str = "") -> None:
    """Write the IR to `path`. `image_prefix` stands before every image name: a registry and its folder."""
    spec, *platform = yaml.safe_load_all(_compiled())
    _set_defaults(spec, profile)
    _set_retries(spec)
    if image_prefix:
        _set_images(spec, image_prefix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        head = (
            f"# The pipeline `alignment` of kubealign with the profile {profile.name}; made by `kubealign compile`.\n"
        )
        path.write_text(head + yaml.safe_dump_all([spec, *platform], allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise from_os_error(error, str(path)) from error


def _compiled() -> str:
    from kfp import compiler

    from pipelines.alignment import alignment

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "alignment.yaml"
        compiler.Compiler().compile(alignment, str(path))
        return path.read_text(encoding="utf-8")


def _set_defaults(spec: dict[str, Any], profile: Profile) -> None:
    """The profile's sections as the parameters' defaults."""
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    defaults: dict[str, Any] = {"seed": profile.seed}
    defaults |= sections(profile)
    for name, value in defaults.items():
        parameters[name] |= {"defaultValue": value, "isOptional": True}


def _set_retries(spec: dict[str, Any]) -> None:
    """The backend starts a step again whose pod was deleted (a drained node); the next launcher adopts the job.

    It does not retry a step that ended by itself: what is worth another attempt, the launcher has tried. Not said in
    the pipeline itself, since kfp.local would retry every failure.
    """
    for task in spec["components"]["comp-exit-handler-1"]["dag"]["tasks"].values():
        task["retryPolicy"] = {
            "maxRetryCount": 2, "backoffDuration": "10s", "backoffFactor": 2.0, "backoffMaxDuration": "300s",
        }  # fmt: skip


def _set_images(spec: dict[str, Any], prefix: str) -> None:
    for executor in spec["deploymentSpec"]["executors"].values():
        container = executor["container"]
        container["image"] = f"{prefix.rstrip('/')}/{container['image'].removeprefix(_IMAGE_PREFIX)}"
        # Whence the launcher in it takes the images of the jobs that it starts.
        images = f"{prefix.rstrip('/')}/{{step}}:{components.__version__}"
        container.setdefault("env", []).append({"name": "KUBEALIGN_IMAGES", "value": images})
