"""Compile the pipeline to the IR YAML that a Kubeflow backend takes, with a profile as its defaults."""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import components
from components.core.config import Profile
from components.core.errors import from_os_error
from pipelines.definitions import Definition, definition

_IMAGE_PREFIX = "kubealign/"


def compile_pipeline(profile: Profile, path: Path, image_prefix: str = "") -> None:
    """Write the IR to `path`. `image_prefix` stands before every image name: a registry and its folder."""
    chosen = definition(profile)
    spec, *platform = yaml.safe_load_all(_compiled(chosen))
    _set_defaults(spec, profile)
    _set_retries(spec)
    if image_prefix:
        _set_images(spec, image_prefix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        what = f"The pipeline `{chosen.name}` of kubealign with the profile {profile.name}"
        head = f"# {what}; made by `kubealign compile`.\n"
        path.write_text(head + yaml.safe_dump_all([spec, *platform], allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise from_os_error(error, str(path)) from error


def _compiled(chosen: Definition) -> str:
    from kfp import compiler

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(chosen.load(), str(path))
        return path.read_text(encoding="utf-8")


def _set_defaults(spec: dict[str, Any], profile: Profile) -> None:
    """The profile's sections as the parameters' defaults."""
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    for name, value in definition(profile).arguments(profile).items():
        parameters[name] |= {"defaultValue": value, "isOptional": True}


def _set_retries(spec: dict[str, Any]) -> None:
    """The backend starts a step again whose pod was deleted (a drained node); the next launcher adopts the job.

    It does not retry a step that ended by itself: what is worth another attempt, the launcher has tried. Not said in
    the pipeline itself, since kfp.local would retry every failure.
    """
    for task in _steps(spec, "comp-exit-handler-1"):
        task["retryPolicy"] = {
            "maxRetryCount": 2, "backoffDuration": "10s", "backoffFactor": 2.0, "backoffMaxDuration": "300s",
        }  # fmt: skip


def _steps(spec: dict[str, Any], component: str) -> Iterator[dict[str, Any]]:
    """The tasks of a part of the pipeline that become pods, in loops too."""
    for task in spec["components"][component]["dag"]["tasks"].values():
        inner = task["componentRef"]["name"]
        if "dag" in spec["components"][inner]:
            yield from _steps(spec, inner)
        else:
            yield task


def _set_images(spec: dict[str, Any], prefix: str) -> None:
    for executor in spec["deploymentSpec"]["executors"].values():
        container = executor["container"]
        container["image"] = f"{prefix.rstrip('/')}/{container['image'].removeprefix(_IMAGE_PREFIX)}"
        # Whence the launcher in it takes the images of the jobs that it starts.
        images = f"{prefix.rstrip('/')}/{{step}}:{components.__version__}"
        container.setdefault("env", []).append({"name": "KUBEALIGN_IMAGES", "value": images})
