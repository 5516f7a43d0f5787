"""Which jobs the janitor and a pipeline's last task delete, against an API server that holds what it is given."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.spec import StepSpec
from components.launch.cluster import discovery, runner
from components.launch.cluster.api import Missing
from components.launch.cluster.janitor import clean, clean_run
from components.launch.cluster.job import Job, Manifest
from components.launch.cluster.pytorchjob import PyTorchJob
from components.launch.cluster.runner import JobKind
from components.launch.cluster.trainjob import TrainJob

ROLE = Path(__file__).resolve().parents[4] / "infra" / "kubernetes" / "launcher.yaml"
PLACE = "s3://bucket/team/runs/r"
KINDS: tuple[JobKind, ...] = (PyTorchJob(), TrainJob("kubealign"))
ENDED = {"PyTorchJob": "Succeeded", "TrainJob": "Complete"}


class Server:
    """Serves both kinds of job, or those given; keeps every verb that it was asked for."""

    namespace = "ns"

    def __init__(self) -> None:
        self.kinds = KINDS
        self.jobs: dict[str, dict[str, Manifest]] = {kind.plural: {} for kind in KINDS}
        self.pods: dict[str, Manifest] = {}
        self.asked: set[tuple[str, str, str]] = set()

    def call(self, verb: str, path: str, query: Any = None, body: Any = None, seconds: float = 0) -> dict[str, Any]:
        parts = path.strip("/").split("/")
        group = parts.pop(1) if parts[0] == "apis" else ""
        if len(parts) == 2:  # what a group serves: anyone may ask
            served = [{"name": kind.plural} for kind in self.kinds if kind.group == group]
            return {"resources": served} if served else missing(path)
        plural, name = parts[4], parts[5] if len(parts) > 5 else ""
        self.asked.add((verb, group, plural))
        served = {kind.plural: self.jobs[kind.plural] for kind in self.kinds} | {"pods": self.pods}
        held = served[plural]
        if verb == "list":
            key, _, value = query["labelSelector"].partition("=")
            return {"items": [found for found in held.values() if found["metadata"]["labels"].get(key) == value]}
        if name not in held:
            return missing(path)
        return held.pop(name) if verb == "delete" else held[name]

    def add(self, kind: JobKind, output: str = f"{PLACE}/sft", run: str = "r", pod: str = "") -> Manifest:
        """A job as a launcher makes it, in this pod."""
        spec = StepSpec(
            step="sft", run=run, seed=0, config={}, inputs={}, input_digests={}, output=output, code="code"
        )  # fmt: skip
        owner = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": pod, "controller": False} if pod else None
        made = kind.build(Job(spec=spec, attempt=0, namespace="ns", image="i", owner=owner))
        made["metadata"]["uid"] = f"{kind.kind} {output}"
        self.jobs[kind.plural][made["metadata"]["name"]] = made
        return made

    def left(self) -> set[str]:
        return {found["metadata"]["uid"] for jobs in self.jobs.values() for found in jobs.values()}


def missing(path: str) -> dict[str, Any]:
    raise Missing(path)


def ended(job: Manifest, days: float = 0.0) -> None:
    when = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    job["status"] = {"conditions": [{"type": ENDED[job["kind"]], "status": "True", "lastTransitionTime": when}]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    for module in (runner, discovery):
        monkeypatch.setattr(module, "Api", lambda *_: made)
    monkeypatch.delenv("KUBEALIGN_ON_SIGTERM", raising=False)
    return made


@pytest.fixture
def pytorchjobs_alone(server: Server) -> Server:
    server.kinds = KINDS[:1]
    return server


def test_jobs_of_a_run_that_is_over_are_deleted_whoever_owns_them(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.pods["alive"] = {"metadata": {"uid": "alive"}, "status": {"phase": "Running"}}
    made = [
        server.add(kind, f"{PLACE}/{step}", pod=pod) for kind in KINDS for step, pod in (("sft", "alive"), ("pmp", ""))
    ]
    names = [job["metadata"]["name"] for job in made]
    with caplog.at_level(logging.INFO):
        assert clean_run("r", PLACE) == names
    assert server.left() == set()
    assert caplog.messages == [f"deleted {job['kind']} {job['metadata']['name']}: run r is over" for job in made]


def test_what_is_not_of_the_run_or_has_ended_is_left_alone(server: Server) -> None:
    for kind in KINDS:
        server.add(kind, "s3://bucket/team/runs/r2/sft", run="r2")
        server.add(kind, "s3://bucket/team/runs/r2/pmp", run="r")  # its place begins with ours
        server.add(kind, "s3://bucket/other/runs/r/sft", run="r")  # another store's run of the same name
        server.add(kind, f"{PLACE}/by-hand", run="step-sft")
        ended(server.add(kind, f"{PLACE}/sft"))
        server.add(kind, f"{PLACE}/pmp")["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    before = server.left()
    assert clean_run("r", PLACE) == []
    assert server.left() == before


def test_cluster_with_one_kind_of_job_is_cleaned_too(pytorchjobs_alone: Server) -> None:
    pytorchjobs_alone.add(PyTorchJob())
    assert len(clean_run("r", PLACE)) == 1


def test_cleaning_up_needs_no_verb_that_a_launcher_lacks(server: Server) -> None:
    server.add(PyTorchJob())
    clean_run("r", PLACE)
    (rules,) = [part["rules"] for part in yaml.safe_load_all(ROLE.read_text()) if part["kind"] == "Role"]
    granted = {
        (verb, group, resource)
        for rule in rules for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    }  # fmt: skip
    assert server.asked <= granted
    assert ("delete", "kubeflow.org", "pytorchjobs") in server.asked


def test_job_that_sigterm_leaves_waits_for_the_next_launcher(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(PyTorchJob())
    monkeypatch.setenv("KUBEALIGN_ON_SIGTERM", "leave")
    assert clean_run("r", PLACE) == []
    assert server.left()


def test_janitor_deletes_orphans_and_what_ended_a_day_ago(server: Server) -> None:
    server.pods["alive"] = {"metadata": {"uid": "alive"}, "status": {"phase": "Running"}}
    server.pods["ended"] = {"metadata": {"uid": "ended"}, "status": {"phase": "Succeeded"}}
    server.pods["again"] = {"metadata": {"uid": "another"}, "status": {"phase": "Running"}}  # of the same name
    expected = set()
    for kind in KINDS:
        orphans = [server.add(kind, f"s3://b/{pod}", pod=pod) for pod in ("ended", "again", "gone")]
        ended(old := server.add(kind, "s3://b/old", pod="gone"), days=2)
        ended(server.add(kind, "s3://b/new", pod="gone"))
        server.add(kind, "s3://b/attended", pod="alive")
        server.add(kind, "s3://b/by-hand")
        expected |= {job["metadata"]["uid"] for job in (*orphans, old)}
    before = server.left()
    assert len(clean(0.0)) == len(expected) == 8
    assert before - server.left() == expected


def test_job_that_was_adopted_within_the_grace_is_no_orphan(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    job = server.add(PyTorchJob(), pod="gone")

    def adopt(_: float) -> None:
        server.pods["next"] = {"metadata": {"uid": "next"}, "status": {"phase": "Running"}}
        job["metadata"]["ownerReferences"] = [{"kind": "Pod", "name": "next", "uid": "next"}]

    monkeypatch.setattr("components.launch.cluster.janitor.time.sleep", adopt)
    assert clean(60.0) == []
    assert server.left()
