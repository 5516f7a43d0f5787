"""Runs a step as a job: create or adopt, attend to its end, say why it failed, try again what is worth it."""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from components.core import store
from components.core.errors import Cancelled, KubealignError, RetryableError, UserError
from components.core.spec import StepSpec
from components.launch.cluster import job as jobs
from components.launch.cluster import permissions
from components.launch.cluster.api import Api, Exists, Missing
from components.launch.cluster.attendance import Attendance
from components.launch.cluster.job import Job, Manifest
from components.launch.cluster.settings import Settings
from components.launch.cluster.state import JobState
from components.launch.cluster.watch import Told, Watch

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 180.0  # an API server or an operator that is being replaced is back by then
_CANCEL_SECONDS = 1.0
T = TypeVar("T")


class JobKind(Protocol):
    """PyTorchJob or TrainJob."""

    group: str
    version: str
    plural: str
    kind: str
    operator: str
    container_name: str

    def build(self, job: Job) -> Manifest: ...

    def state(self, found: dict[str, Any]) -> JobState: ...

    def pod_selector(self, name: str) -> str: ...

    def is_rank_zero(self, pod: dict[str, Any]) -> bool: ...


class ClusterBackend:
    """Steps as jobs of one kind in one namespace."""

    def __init__(self, kind: JobKind, settings: Settings) -> None:
        self.kind, self.settings = kind, settings
        self.name = kind.kind.lower()
        self.api = Api(settings.namespace)
        self._jobs = f"/apis/{kind.group}/{kind.version}/namespaces/{self.api.namespace}/{kind.plural}"
        self._pods = f"/api/v1/namespaces/{self.api.namespace}/pods"
        self._on_signal = Api(settings.namespace)  # a connection pool that nobody has locked when a signal comes

    def adopts(self, spec: StepSpec) -> bool:
        """Whether a job that an earlier launcher started is still at work on just this.

        Where there is none, all that could refuse one is asked first. Raises UserError for what is refused, and where
        a job is at work on something else in the same place.
        """
        if store.local_path(spec.output) is not None:
            raise UserError(
                "a job's pods cannot reach a folder of this machine", where=spec.output, fix="give --root s3://..."
            )
        patiently(lambda: permissions.check(self.api, permissions.needed(self.kind.group, self.kind.plural)))
        earlier = patiently(lambda: self._earlier(spec))
        for found in earlier:
            if not self.is_over(found):
                self._check_same(found, spec)
                return True
        patiently(lambda: self._create(self._job(spec, self._next_attempt(earlier)), {"dryRun": "All"}))
        return False

    def run(self, spec: StepSpec) -> None:
        """Return when a job has made the step's result; see `TrainingBackend`."""
        number = self._next_attempt(patiently(lambda: self._earlier(spec)))
        attempts = self._job(spec, number).resources.max_attempts
        with self._stopped_by_signals(spec.step) as current:
            for left in reversed(range(attempts)):
                current.job = self._job(spec, number)
                made = False
                try:
                    self._create_or_adopt(current.job)
                    made = True
                    return Attendance(self, current.job, current.check).to_the_end()
                except RetryableError as error:
                    current.check()
                    if not left:
                        raise
                    log.warning("%s; starting again from the last checkpoint (%d more attempts)", error, left)
                    number += made  # one whose creation was not answered may be there; then it is adopted
        return None

    def _job(self, spec: StepSpec, attempt: int) -> Job:
        return Job(
            spec=spec, attempt=attempt, namespace=self.api.namespace, image=self.settings.image(spec),
            owner=self.settings.owner(), service_account=self.settings.service_account,
            env_from_secrets=self.settings.env_from_secrets,
        )  # fmt: skip

    def _earlier(self, spec: StepSpec) -> list[Manifest]:
        selector = f"{jobs.OUTPUT_LABEL}={jobs.output_digest(spec.output)}"
        return self.api.call("list", self._jobs, {"labelSelector": selector})["items"]

    def _next_attempt(self, earlier: list[Manifest]) -> int:
        """The number of the job that still runs, or one more than the last one's."""
        numbers = {int(found["metadata"]["labels"][jobs.ATTEMPT_LABEL]): found for found in earlier}
        if not numbers:
            return 0
        last = max(numbers)
        return last + self.is_over(numbers[last])

    def _check_same(self, found: Manifest, spec: StepSpec) -> None:
        name = found["metadata"]["name"]
        if found["metadata"].get("annotations", {}).get(jobs.FINGERPRINT) != spec.fingerprint():
            raise UserError(
                f"job {name} is at work in the same place with other settings or inputs",
                where=spec.output,
                fix=f"wait for its end, or: kubectl -n {self.api.namespace} delete {self.kind.plural} {name}",
            )

    def _create_or_adopt(self, job: Job) -> None:
        def attempt() -> bool:
            with contextlib.suppress(Exists):
                self._create(job)
                log.info("%s %s created in namespace %s", self.kind.kind, job.name, self.api.namespace)
                return True
            return self._adopted(job)

        while not patiently(attempt):
            time.sleep(1.0)  # one of this name is being deleted

    def _create(self, job: Job, query: dict[str, str | int | bool] | None = None) -> None:
        self.api.call("create", self._jobs, {"fieldValidation": "Strict", **(query or {})}, self.kind.build(job))

    def _adopted(self, job: Job) -> bool:
        try:
            found = self.read(job.name)
        except Missing:
            return False
        if found["metadata"].get("deletionTimestamp"):
            return False
        self._check_same(found, job.spec)
        owner = self.settings.owner()
        if owner is not None:
            self._warn_of_other(found, owner)
            # It must not go with the pod of the launcher that started it.
            self.api.call("patch", f"{self._jobs}/{job.name}", body={"metadata": {"ownerReferences": [owner]}})
        log.info("%s %s is there already; adopted", self.kind.kind, job.name)
        return True

    def _warn_of_other(self, found: Manifest, owner: Manifest) -> None:
        for other in found["metadata"].get("ownerReferences") or []:
            if other["uid"] != owner["uid"] and self.pod_lives(other["name"], other["uid"]):
                log.warning("%s is attended by pod %s too", found["metadata"]["name"], other["name"])

    def pod_lives(self, name: str, uid: str) -> bool:
        """Whether this very pod is there and has not ended."""
        try:
            pod = self.api.call("get", f"{self._pods}/{name}")
        except Missing:
            return False
        return pod["metadata"]["uid"] == uid and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")

    def read(self, name: str) -> Manifest:
        return self.api.call("get", f"{self._jobs}/{name}")

    def all(self) -> list[Manifest]:
        """Every job that a launcher of ours has made."""
        (key, value), *_ = jobs.MANAGED_BY.items()
        return self.api.call("list", self._jobs, {"labelSelector": f"{key}={value}"})["items"]

    def is_over(self, found: Manifest) -> bool:
        """Ended, or being deleted."""
        return self.kind.state(found).ended or "deletionTimestamp" in found["metadata"]

    def delete(self, name: str, api: Api | None = None, seconds: float = 10.0) -> None:
        """Delete the job and, in the background, its pods. No error where it is gone."""
        with contextlib.suppress(Missing):
            query: dict[str, str | int | bool] = {"propagationPolicy": "Background"}
            (api or self.api).call("delete", f"{self._jobs}/{name}", query, seconds=seconds)

    def end(self, name: str) -> None:
        """Delete the job, however long the API server is away."""
        patiently(lambda: self.delete(name))

    def pods(self, name: str) -> list[dict[str, Any]]:
        return self.api.call("list", self._pods, {"labelSelector": self.kind.pod_selector(name)})["items"]

    @contextlib.contextmanager
    def watches(self, name: str, job: Told, pod: Told, event: Told) -> Iterator[None]:
        """Tell of every change of the job, of its pods, and of the namespace's events."""
        events = f"/api/v1/namespaces/{self.api.namespace}/events"
        with (
            Watch(self.api, self._jobs, {"fieldSelector": f"metadata.name={name}"}, job),
            Watch(self.api, self._pods, {"labelSelector": self.kind.pod_selector(name)}, pod),
            Watch(self.api, events, {}, event),
        ):
            yield

    @contextlib.contextmanager
    def _stopped_by_signals(self, step: str) -> Iterator["_Current"]:
        """SIGTERM and SIGINT delete the job before anything else: the pipeline backend kills us within a second.

        A node that is drained sends SIGTERM too; with KUBEALIGN_ON_SIGTERM=leave the job goes on, for the next
        launcher.
        """
        current = _Current()

        def on_signal(number: int, _: object) -> None:
            current.stopped = Cancelled(f"{step} was cancelled")
            if current.job is None:
                raise current.stopped
            name = current.job.name
            if number != signal.SIGINT and not self.settings.delete_on_sigterm:
                current.stopped = Cancelled(f"{step}: the launcher was told to stop; {name} goes on")
                raise current.stopped
            try:
                self.delete(name, self._on_signal, _CANCEL_SECONDS)
                current.stopped = Cancelled(f"{step} was cancelled; {name} is deleted")
            except KubealignError as error:
                current.stopped = Cancelled(f"{step} was cancelled, but {name} may still run ({error})")
            raise current.stopped

        if threading.current_thread() is not threading.main_thread():  # Python allows no handlers there
            yield current
            return
        restore = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield current
        except Exception as error:
            # Raised inside some libraries the Cancelled comes out as another exception (Thread.start: a KeyError).
            stopped = error if isinstance(error, Cancelled) else current.stopped
            if stopped is None:
                raise
            if current.job is not None and self.settings.delete_on_sigterm:
                with contextlib.suppress(KubealignError):  # a creation may have been under way
                    self.delete(current.job.name)
            raise stopped from None
        finally:
            for number, handler in restore.items():
                signal.signal(number, handler)


class _Current:
    """The job that a signal would delete, and that one has come: what was interrupted may have caught its exception."""

    job: Job | None = None
    stopped: Cancelled | None = None

    def check(self) -> None:
        if self.stopped is not None:
            raise self.stopped


def patiently(ask: Callable[[], T]) -> T:
    """Ask again while the API server or an operator's webhook is away."""
    deadline, pause = time.monotonic() + _PATIENCE_SECONDS, 1.0
    while True:
        try:
            return ask()
        except RetryableError as error:
            if time.monotonic() > deadline:
                raise
            log.warning("%s; trying again", error)
        time.sleep(pause)
        pause = min(pause * 2, 15.0)
