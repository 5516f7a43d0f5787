"""A job under watch: what the launcher makes of its conditions and its pods, in the order in which a cluster tells."""

import contextlib
from typing import Any

import pytest

from components.core.config import Resources
from components.core.errors import Cancelled, KubealignError, RetryableError, UserError
from components.core.spec import StepSpec
from components.launch.cluster.api import Missing
from components.launch.cluster.attendance import Attendance
from components.launch.cluster.job import Job
from components.launch.cluster.pytorchjob import PyTorchJob

LABELS = {"training.kubeflow.org/replica-type": "worker"}


class Backend:
    """A cluster of one job: its conditions are what a test sets, its pods what a test tells."""

    kind = PyTorchJob()
    api: Any = None

    def __init__(self) -> None:
        self.conditions: list[dict[str, str]] | None = []
        self.deleted: list[str] = []
        self.refused = False

    def read(self, name: str) -> dict[str, Any]:
        if self.conditions is None:
            raise Missing(name)
        if self.refused:
            raise UserError("not permitted to get pytorchjobs")
        made = {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
        return {"metadata": made, "status": {"conditions": self.conditions}}

    def pods(self, name: str) -> list[dict[str, Any]]:
        return []

    def end(self, name: str) -> None:
        self.deleted.append(name)

    def say(self, *held: str) -> None:
        self.conditions = [{"type": kind, "status": "True"} for kind in held]


def attend(resources: Resources | None = None) -> tuple[Backend, Attendance]:
    config = {"resources": (resources or Resources()).model_dump()}
    spec = StepSpec(
        step="sft", run="r", seed=0, config=config, inputs={}, input_digests={}, output="s3://b/sft", code="c"
    )
    backend = Backend()
    job = Job(spec=spec, attempt=0, namespace="ns", image="i", owner=None)
    return backend, Attendance(backend, job, lambda: None)  # type: ignore[arg-type]


def pod(uid: str, *, deleted: bool = False, **status: Any) -> dict[str, Any]:
    made = status.pop("made", "2026-01-01T00:00:01Z")
    metadata: dict[str, Any] = {"name": "sft-master-0", "uid": uid, "labels": LABELS, "creationTimestamp": made}
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:01Z"
    return {"metadata": metadata, "status": status}


def ended(message: str) -> dict[str, Any]:
    end = {"exitCode": 1, "reason": "Error", "message": message, "finishedAt": "2026-01-01T00:01:00Z"}
    return {"phase": "Failed", "containerStatuses": [{"state": {"terminated": end}}]}


def failure(attendance: Attendance) -> KubealignError:
    with pytest.raises(KubealignError) as caught:
        attendance._ended()
    return caught.value


def test_pods_that_a_queue_took_back_are_not_the_failure_of_the_next_ones() -> None:
    backend, attendance = attend()
    backend.say("Created", "Running")
    attendance._pod_changed("ADDED", pod("first", phase="Running"))
    assert not attendance._ended()
    backend.say("Created", "Suspended")
    attendance._pod_changed("MODIFIED", pod("first", deleted=True, phase="Running"))
    assert not attendance._ended()
    attendance._pod_changed("DELETED", pod("first", deleted=True, phase="Failed"))
    attendance._pod_changed("MODIFIED", pod("second", **ended("1 data is empty")))
    backend.say("Failed")
    error = failure(attendance)
    assert isinstance(error, UserError) and str(error) == "data is empty"


def test_pods_that_are_there_before_the_status_says_resumed_are_kept() -> None:
    backend, attendance = attend()
    backend.say("Created", "Suspended")
    attendance._pod_changed("ADDED", pod("first", phase="Pending"))
    assert not attendance._ended()
    assert [found["metadata"]["uid"] for found in attendance._known(attendance._pods)] == ["first"]


def test_pod_that_is_deleted_while_it_runs_is_worth_another_attempt() -> None:
    backend, attendance = attend()
    attendance._pod_changed("ADDED", pod("first", phase="Running"))
    attendance._pod_changed("MODIFIED", pod("first", deleted=True, **ended("143 sft was cancelled")))
    backend.say("Failed")
    assert isinstance(failure(attendance), RetryableError)


def test_pods_and_events_of_an_earlier_job_of_this_name_tell_nothing_of_this_one() -> None:
    backend, attendance = attend()
    earlier = "2025-12-31T23:59:00Z"
    attendance._pod_changed("LISTED", {"items": [pod("first", deleted=True, made=earlier, **ended("143 cancelled"))]})
    attendance._pod_changed("ADDED", pod("second", **ended("1 data is empty")))
    event = {"reason": "FailedCreatePod", "message": "service account x not found", "lastTimestamp": earlier}
    event |= {"metadata": {"uid": "e"}, "involvedObject": {"name": attendance._job.name}}
    attendance._event_seen("ADDED", event)
    backend.say("Failed")
    assert str(failure(attendance)) == "data is empty"
    assert attendance._known(attendance._events) == []


def test_refusal_of_an_api_server_that_has_just_started_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1.0]
    monkeypatch.setattr("components.launch.cluster.attendance.time.monotonic", lambda: now[0])
    backend, attendance = attend()
    backend.refused = True
    assert not attendance._ended()
    now[0] = 100.0
    assert not attendance._ended()
    now[0] = 200.0
    assert "not permitted" in str(failure(attendance))


@pytest.mark.parametrize(("limit", "kind"), [(600, UserError), (0, RetryableError)])
def test_job_that_its_own_deadline_has_ended_names_the_option(limit: int, kind: type[KubealignError]) -> None:
    """Kubernetes deletes its pods then, as if from outside."""
    backend, attendance = attend(Resources(running_timeout_seconds=limit))
    attendance._pod_changed("MODIFIED", pod("first", deleted=True, **ended("143 sft was cancelled")))
    backend.conditions = [{"type": "Failed", "status": "True", "message": "TrainJob exceeded its active deadline"}]
    error = failure(attendance)
    assert type(error) is kind
    assert ("resources.running_timeout_seconds" in str(error)) is (limit > 0)


def test_pods_told_to_stop_by_somebody_else_are_worth_another_attempt() -> None:
    backend, attendance = attend()
    attendance._pod_changed("MODIFIED", pod("first", **ended("143 sft was cancelled")))
    backend.say("Failed")
    assert isinstance(failure(attendance), RetryableError)


def test_running_time_counts_from_the_pods_own_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that adopts a job does not give it all of its time again."""
    backend, attendance = attend(Resources(running_timeout_seconds=60))
    backend.say("Created", "Running")
    running = [{"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]
    attendance._pod_changed("ADDED", pod("first", phase="Running", containerStatuses=running))
    assert "ran for longer than 60 s" in str(failure(attendance))


def test_success_is_noticed_where_no_watch_says_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.launch.cluster.attendance._POLL_SECONDS", 0.01)
    backend, attendance = attend()
    backend.watches = lambda *_: contextlib.nullcontext()  # type: ignore[attr-defined]
    backend.say("Succeeded")
    attendance.to_the_end()


def test_operator_that_never_touches_a_job_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1.0]
    monkeypatch.setattr("components.launch.cluster.attendance.time.monotonic", lambda: now[0])
    _, attendance = attend()
    assert not attendance._ended()
    now[0] = 70.0
    assert not attendance._ended()
    assert "the training operator 1.9 (kubeflow.org/v1 PyTorchJob) has not touched it" in caplog.text


def test_job_that_is_gone_is_worth_another_attempt() -> None:
    backend, attendance = attend()
    backend.conditions = None
    assert isinstance(failure(attendance), RetryableError)


def test_time_in_a_queue_does_not_count_as_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("components.launch.cluster.attendance.time.monotonic", lambda: now[0])
    backend, attendance = attend(Resources(pending_timeout_seconds=60))
    backend.say("Created", "Suspended")
    assert not attendance._ended()
    now[0] = 1000.0
    assert not attendance._ended()
    backend.say("Created")
    assert not attendance._ended()
    now[0] = 1059.0
    assert not attendance._ended()
    now[0] = 1061.0
    assert "did not start within 60 s" in str(failure(attendance))
    assert backend.deleted == ["sft-" + attendance._job.name.split("-")[1] + "-0"]


def test_launcher_that_was_told_to_stop_stops_though_something_caught_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        raise Cancelled("sft was cancelled")

    backend, attendance = attend()
    backend.watches = lambda *_: contextlib.nullcontext()  # type: ignore[attr-defined]
    looks = iter([False, True])  # the job would end well at the second look
    monkeypatch.setattr(attendance, "_ended", lambda: next(looks))
    monkeypatch.setattr(attendance, "_check", check)
    with pytest.raises(Cancelled):
        attendance.to_the_end()
