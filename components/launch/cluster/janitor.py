"""Deletes jobs that nobody attends to any more: the last net under a launcher that was killed."""

import logging
import time
from datetime import UTC, datetime
from typing import Any

from components.launch.cluster.discovery import cluster_backends
from components.launch.cluster.job import KEPT_SECONDS
from components.launch.cluster.runner import ClusterBackend

log = logging.getLogger(__name__)


def clean(grace_seconds: float) -> list[str]:
    """Delete orphans of every kind of job that the cluster serves; returns their names.

    An orphan still runs, was started by a pod, and that pod has ended or is gone, `grace_seconds` ago too: a pipeline
    that tries again adopts the job from a new pod. A job started from a command line has no such pod and is left
    alone. Jobs that ended a day ago go too, where their operator keeps them for ever.
    """
    deleted = []
    for backend in cluster_backends():
        before = {found["metadata"]["uid"] for found in backend.all() if _orphaned(backend, found)}
        if before:
            time.sleep(grace_seconds)
        for found in backend.all():
            name = found["metadata"]["name"]
            orphaned = found["metadata"]["uid"] in before and _orphaned(backend, found)
            if orphaned or _long_ended(backend, found):
                backend.delete(name)
                log.info("deleted %s %s: %s", backend.kind.kind, name, "orphaned" if orphaned else "ended long ago")
                deleted.append(name)
    return deleted


def _orphaned(backend: ClusterBackend, found: dict[str, Any]) -> bool:
    owners = [owner for owner in found["metadata"].get("ownerReferences") or [] if owner["kind"] == "Pod"]
    if backend.kind.state(found).ended or not owners:
        return False
    return not any(backend.pod_lives(owner["name"], owner["uid"]) for owner in owners)


def _long_ended(backend: ClusterBackend, found: dict[str, Any]) -> bool:
    if not backend.kind.state(found).ended:
        return False
    changes = [c["lastTransitionTime"] for c in found["status"]["conditions"] if c["status"] == "True"]
    ended = datetime.fromisoformat(max(changes))
    return (datetime.now(UTC) - ended).total_seconds() > KEPT_SECONDS
