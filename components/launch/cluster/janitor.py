"""Deletes jobs that nobody attends to any more: the last nets under a launcher that was killed."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from components.core.errors import UserError
from components.launch.cluster.discovery import cluster_backends
from components.launch.cluster.job import KEPT_SECONDS, OUTPUT, RUN, Manifest
from components.launch.cluster.runner import ClusterBackend, patiently
from components.launch.cluster.settings import Settings

log = logging.getLogger(__name__)


def clean(grace_seconds: float) -> list[str]:
    """Delete orphans of every kind of job that the cluster serves; returns their names.

    An orphan still runs, was started by a pod, and that pod has ended or is gone, `grace_seconds` ago too: a pipeline
    that tries again adopts the job from a new pod. A job started from a command line has no such pod and is left
    alone. Jobs that ended a day ago go too, where their operator keeps them for ever.
    """
    backends = patiently(cluster_backends)
    before = {found["metadata"]["uid"] for backend in backends for found in _all(backend) if _orphaned(backend, found)}
    if before:
        time.sleep(grace_seconds)

    def reason(backend: ClusterBackend, found: Manifest) -> str:
        if found["metadata"]["uid"] in before and _orphaned(backend, found):
            return "orphaned"
        return "ended long ago" if _long_ended(backend, found) else ""

    return _delete(backends, reason)


def clean_run(run: str, place: str) -> list[str]:
    """Delete the jobs of a run that is over, whose outputs lie below `place`; returns their names.

    No launcher of the run is left when the pipeline's last task runs, so those of its jobs that have not ended are
    orphans, whoever owns them. Who has started the same run again within those seconds loses an attempt: its launcher
    goes on from the last checkpoint. Not where KUBEALIGN_ON_SIGTERM=leave keeps jobs for the next launcher.
    """
    if not Settings.from_environment().delete_on_sigterm:
        return []

    def reason(backend: ClusterBackend, found: Manifest) -> str:
        notes = found["metadata"].get("annotations", {})
        of_run = notes.get(RUN) == run and notes.get(OUTPUT, "").startswith(f"{place}/")
        return f"run {run} is over" if of_run and not backend.is_over(found) else ""

    return _delete(patiently(cluster_backends), reason)


def _delete(backends: list[ClusterBackend], reason: Callable[[ClusterBackend, Manifest], str]) -> list[str]:
    """Delete every job that there is a reason to delete; returns their names."""
    deleted = []
    for backend in backends:
        for found in _all(backend):
            if why := reason(backend, found):
                name = found["metadata"]["name"]
                backend.end(name)
                log.info("deleted %s %s: %s", backend.kind.kind, name, why)
                deleted.append(name)
    return deleted


def _all(backend: ClusterBackend) -> list[Manifest]:
    """The jobs of a kind; none where this account may not see them, for then it has started none."""
    try:
        return patiently(backend.all)
    except UserError as error:
        log.warning("%s", error)
        return []


def _orphaned(backend: ClusterBackend, found: Manifest) -> bool:
    owners = [owner for owner in found["metadata"].get("ownerReferences") or [] if owner["kind"] == "Pod"]
    if backend.kind.state(found).ended or not owners:
        return False
    return not any(backend.pod_lives(owner["name"], owner["uid"]) for owner in owners)


def _long_ended(backend: ClusterBackend, found: Manifest) -> bool:
    if not backend.kind.state(found).ended:
        return False
    changes = [c["lastTransitionTime"] for c in found["status"]["conditions"] if c["status"] == "True"]
    ended = datetime.fromisoformat(max(changes))
    return (datetime.now(UTC) - ended).total_seconds() > KEPT_SECONDS
