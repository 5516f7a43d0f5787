"""Which kind of job a cluster takes."""

from components.core.errors import UserError
from components.launch.cluster.api import Api, Missing
from components.launch.cluster.pytorchjob import PyTorchJob
from components.launch.cluster.runner import ClusterBackend, JobKind
from components.launch.cluster.settings import Settings
from components.launch.cluster.trainjob import TrainJob


def cluster_backend(name: str) -> ClusterBackend:
    """`pytorchjob`, `trainjob`, or `auto`: the first of them that the API server knows.

    Raises UserError where there is no cluster, or none of them on it.
    """
    settings = Settings.from_environment()
    known = _kinds(settings)
    wanted = list(known.values()) if name == "auto" else [known[name]]
    api = Api(settings.namespace)
    for kind in wanted:
        if _serves(api, kind):
            return ClusterBackend(kind, settings)
    raise UserError(
        f"this cluster has no {' and no '.join(kind.kind for kind in wanted)}",
        fix=f"install {' or '.join(kind.operator for kind in wanted)}",
    )


def cluster_backends() -> list[ClusterBackend]:
    """One of every kind that the cluster serves."""
    settings = Settings.from_environment()
    api = Api(settings.namespace)
    return [ClusterBackend(kind, settings) for kind in _kinds(settings).values() if _serves(api, kind)]


def _kinds(settings: Settings) -> dict[str, JobKind]:
    return {"pytorchjob": PyTorchJob(), "trainjob": TrainJob(settings.runtime)}


def _serves(api: Api, kind: JobKind) -> bool:
    try:
        found = api.call("get", f"/apis/{kind.group}/{kind.version}")
    except Missing:
        return False
    return any(resource["name"] == kind.plural for resource in found["resources"])
