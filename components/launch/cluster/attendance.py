"""From a job's creation to its end: what it waits for, its log, its time limits, its reason."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from components.core.errors import Cancelled, KubealignError, RetryableError, UserError
from components.launch.cluster import reasons
from components.launch.cluster.api import Missing
from components.launch.cluster.job import Job
from components.launch.cluster.logs import LogStream, last_lines
from components.launch.cluster.state import JobState, true_conditions
from components.launch.last_words import is_consequence

if TYPE_CHECKING:
    from components.launch.cluster.runner import ClusterBackend

log = logging.getLogger(__name__)

_POLL_SECONDS = 5.0  # where a watch is silent or dead, the job is read this often
_EXPLAIN_SECONDS = 10.0  # what a job waits for is said within 30 s
_UNSEEN_SECONDS = 60.0
_REFUSED_SECONDS = 120.0
_LONGER = "raise resources.running_timeout_seconds; the next start goes on from the last checkpoint"
_HOPELESS_SECONDS = 20.0  # a kubelet that cannot read a secret just now says what one says where there is none


class Attendance:
    """One job under watch. Decisions are taken from all that is known, by one thread; watches only bring news."""

    def __init__(self, backend: "ClusterBackend", job: Job, check: Callable[[], None]) -> None:
        """`check` raises where the launcher has been told to stop."""
        self._backend, self._job, self._check = backend, job, check
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._pods: dict[str, dict[str, Any]] = {}  # by uid, as last seen: a deleted pod says most about a failure
        self._deleted: set[str] = set()  # uids of pods that are gone
        self._taken_back: set[str] = set()  # and of those that a queue has taken away again
        self._events: dict[str, dict[str, Any]] = {}
        self._log = LogStream(backend.api, backend.kind.container_name)
        self._clock = _Clock()
        self._since = ""  # when the job was made: what is older is of another one of this name
        self._refused_since = 0.0
        self._said = ""
        self._hopeless_since = 0.0

    def to_the_end(self) -> None:
        """Return when the job has succeeded; raises what it failed of."""
        with self._backend.watches(self._job.name, self._job_changed, self._pod_changed, self._event_seen):
            try:
                while not self._ended():
                    self._check()
                    self._news.wait(_POLL_SECONDS)
                    self._news.clear()
            finally:
                self._log.finish()

    def _job_changed(self, change: str, found: dict[str, Any]) -> None:
        self._news.set()

    def _pod_changed(self, change: str, found: dict[str, Any]) -> None:
        if change == "DELETED":
            self._deleted.add(found["metadata"]["uid"])
        self._keep(self._pods, found["items"] if change == "LISTED" else [found])
        self._news.set()

    def _event_seen(self, change: str, found: dict[str, Any]) -> None:
        """Of the job, of its pods, and of what a queue made of it: their names all hold the job's."""
        some = found["items"] if change == "LISTED" else [found]
        self._keep(self._events, [e for e in some if self._job.name in e.get("involvedObject", {}).get("name", "")])
        self._news.set()

    def _keep(self, known: dict[str, dict[str, Any]], objects: list[dict[str, Any]]) -> None:
        with self._lock:
            known.update({item["metadata"]["uid"]: item for item in objects})
            for uid in self._taken_back:
                known.pop(uid, None)

    def _ended(self) -> bool:
        found = self._read()
        if found is None:
            return False
        state = self._backend.kind.state(found)
        if state is JobState.QUEUED:
            self._forget_pods()
        pods = self._known(self._pods)
        for pod in filter(self._backend.kind.is_rank_zero, pods):
            if pod.get("status", {}).get("phase") not in (None, "Pending"):
                self._log.attach(pod["metadata"]["name"], pod["metadata"]["uid"])
        if state is JobState.SUCCEEDED:
            return True
        if state is JobState.FAILED:
            raise self._failure(true_conditions(found).get("Failed", ""))
        self._limits(state, pods)
        return False

    def _forget_pods(self) -> None:
        """A queue has suspended the job: its pods are deleted, which is no failure. Those of its next start may be
        here before its status says that it is suspended no more."""
        with self._lock:
            for uid, pod in list(self._pods.items()):
                if uid in self._deleted or "deletionTimestamp" in pod["metadata"]:
                    self._taken_back.add(uid)
                    del self._pods[uid]

    def _failure(self, said: str) -> KubealignError:
        """What the job died of."""
        self._ask_for_pods()
        pods, step = self._known(self._pods), self._job.spec.step
        error = reasons.failure(pods, step, said)
        limit = self._job.resources.running_timeout_seconds
        if limit and "deadline" in said.lower():  # the job's own, where a launcher was away for long
            return UserError(f"{step}: {self._job.name} ran for longer than {limit} s", fix=_LONGER)
        if isinstance(error, Cancelled):  # by whom? Not by this launcher, which would not be here
            error = RetryableError(f"{step}: {self._job.name} was told to stop from outside ({error})")
        if not is_consequence(error):
            return error
        names = [pod["metadata"]["name"] for pod in pods]
        logs = {name: last_lines(self._backend.api, name, self._backend.kind.container_name) for name in names}
        return reasons.unsaid(pods, step, logs) or error

    def _read(self) -> dict[str, Any] | None:
        """The job, or None while the API server cannot be asked: the job does not need it."""
        try:
            found = self._backend.read(self._job.name)
        except Missing:
            raise RetryableError(f"{self._job.spec.step}: {self._job.name} was deleted from outside") from None
        except RetryableError as error:
            log.debug("%s", error)
            return None
        except UserError as error:
            # An API server that has just started knows nobody's rights yet; the job must not be left for that.
            self._refused_since = self._refused_since or time.monotonic()
            if time.monotonic() - self._refused_since > _REFUSED_SECONDS:
                raise
            log.warning("%s; trying again", error)
            return None
        self._refused_since = 0.0
        self._since = found["metadata"].get("creationTimestamp", "")
        return found

    def _ask_for_pods(self) -> None:
        """The watch may be behind by a moment, and the last moment is what tells of the cause."""
        try:
            self._keep(self._pods, self._backend.pods(self._job.name))
        except KubealignError as error:
            log.warning("cannot list the pods of %s: %s", self._job.name, error)

    def _known(self, objects: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        with self._lock:
            return [item for item in objects.values() if (reasons.last_seen(item) or "~") >= self._since]

    def _limits(self, state: JobState, pods: list[dict[str, Any]]) -> None:
        """Say what the job waits for, and end it where it has waited or run for too long."""
        wanted, step, name = self._job.resources, self._job.spec.step, self._job.name
        if state is JobState.QUEUED:
            phase = "queued"
        elif state is JobState.RUNNING and not reasons.waits(pods, self._job.nodes):
            phase = "running"
        else:
            phase = "pending"  # an operator says Running as soon as one pod runs
        if phase == "running":
            self._clock.adopt(phase, reasons.seconds_since_start(pods))
        waited = self._clock.enter(phase)
        if phase == "running":
            if wanted.running_timeout_seconds and self._clock.total(phase) > wanted.running_timeout_seconds:
                what = f"{step}: {name} ran for longer than {wanted.running_timeout_seconds} s"
                self._give_up(UserError(what, fix=_LONGER))
            return
        why = reasons.pending(pods, self._known(self._events))
        if not why and state is JobState.UNSEEN and waited > _UNSEEN_SECONDS:
            why = f"{self._backend.kind.operator} has not touched it: is it running?"
        if why and why != self._said and waited >= _EXPLAIN_SECONDS:
            log.warning("%s is %s: %s", name, phase, why)
            self._said = why
        if phase == "pending":
            refused = self._known(self._events) if len(pods) < self._job.nodes else []  # else they came after all
            hopeless = reasons.hopeless(pods, refused)
            self._hopeless_since = (self._hopeless_since or time.monotonic()) if hopeless else 0.0
            if hopeless and time.monotonic() - self._hopeless_since > _HOPELESS_SECONDS:
                self._give_up(UserError(f"{step}: {hopeless}", fix=f"mend {step}.resources"))
            if self._clock.total(phase) > wanted.pending_timeout_seconds:
                what = f"{step}: {name} did not start within {wanted.pending_timeout_seconds} s"
                self._give_up(UserError(f"{what}: {why or 'nobody says why'}"))

    def _give_up(self, error: KubealignError) -> None:
        try:
            self._backend.end(self._job.name)
        except KubealignError as failed:
            log.warning("%s may still run: %s", self._job.name, failed)
        raise error


class _Clock:
    """Seconds in each phase; a job that is queued again after a preemption keeps what it has."""

    def __init__(self) -> None:
        self._phase, self._since = "", time.monotonic()
        self._before: dict[str, float] = {}

    def enter(self, phase: str) -> float:
        """Now in this phase; the seconds since it began."""
        now = time.monotonic()
        if phase != self._phase:
            if self._phase:
                self._before[self._phase] = self._before.get(self._phase, 0.0) + now - self._since
            self._phase, self._since = phase, now
        return now - self._since

    def adopt(self, phase: str, seconds: float) -> None:
        """What the first entry into a phase has behind it already, for a launcher that finds a job which runs."""
        if phase != self._phase and phase not in self._before:
            self._before[phase] = seconds

    def total(self, phase: str) -> float:
        running = time.monotonic() - self._since if phase == self._phase else 0.0
        return self._before.get(phase, 0.0) + running
