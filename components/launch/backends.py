"""Where a step runs: on this machine, or as a job of a cluster."""

import os

from components.core.errors import UserError
from components.launch.backend import TrainingBackend
from components.launch.local import LocalBackend

NAMES = ("local", "pytorchjob", "trainjob", "auto")

# Needs no GPU and no torch: it runs beside whoever starts it.
_BESIDE_THE_LAUNCHER = ("data_prep", "annotate")


def chosen(name: str = "") -> str:
    """This name; KUBEALIGN_BACKEND where none is given, else local."""
    name = name or os.environ.get("KUBEALIGN_BACKEND", "local")
    if name not in NAMES:
        raise UserError(f"no backend {name!r}", fix=f"choose one of {', '.join(NAMES)}")
    return name


def backend_for(step: str, name: str = "") -> TrainingBackend:
    """The chosen backend for a step."""
    name = chosen(name)
    if name == "local" or step in _BESIDE_THE_LAUNCHER:
        return LocalBackend()
    try:
        from components.launch.cluster.discovery import cluster_backend
    except ModuleNotFoundError as error:
        raise UserError(
            f"backend {name} needs the package {error.name}", fix="pip install 'kubealign[pipelines]'"
        ) from error
    return cluster_backend(name)
