"""The chart by Helm in a namespace under the restricted standard: installed, tested, changed, undone, removed."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import Place
from tests.cluster.harness import images
from tests.cluster.harness.cluster import KUBECONFIG, PROMETHEUS, S3
from tests.cluster.harness.processes import until
from tests.programs import program

CHART = Path(__file__).resolve().parents[2] / "helm" / "kubealign"
VALUES = CHART / "ci" / "cluster-values.yaml"


class Release:
    """A release of the chart in a test's namespace. Its objects' names start with chart-kubealign."""

    def __init__(self, place: Place) -> None:
        self.place = place
        registry, _, repository = images.PREFIX.partition("/")
        self.given = [
            "-f", str(VALUES), "--set", f"images.registry={registry},images.repository={repository}", "--set",
            f"images.tag={images.TAG},store.root={place.root}/runs,store.endpoint={S3}", "--wait", "--timeout=90s",
        ]  # fmt: skip

    def helm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(program("helm")), "--kubeconfig", str(KUBECONFIG), "-n", self.place.name, *arguments]
        environment = {**os.environ, "HELM_NO_PLUGINS": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)

    def install(self, *changes: str) -> None:
        self.ok("install", "chart", str(CHART), *self.given, *changes)

    def ok(self, *arguments: str) -> str:
        done = self.helm(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def test(self, *names: str) -> subprocess.CompletedProcess[str]:
        """`helm test` of all or of some of its pods, with their logs."""
        chosen = [f"--filter=name=chart-kubealign-test-{name}" for name in names]
        return self.helm("test", "chart", "--logs", "--timeout=300s", *chosen)

    def objects(self) -> list[str]:
        """Names of all that is there of the release, and of its tests; the quota and the like included."""
        kinds = "sa,secret,cm,role,rolebinding,cronjob,job,pod,quota,pdb,networkpolicy,priorityclass"
        found = self.place.kubectl("get", kinds, "-l", "app.kubernetes.io/instance=chart", "-o", "name")
        return sorted(found.split())

    def revisions(self) -> list[tuple[int, str]]:
        history: list[dict[str, Any]] = json.loads(self.ok("history", "chart", "-o", "json"))
        return [(int(entry["revision"]), str(entry["status"])) for entry in history]

    def config_map(self, name: str) -> dict[str, str]:
        found = json.loads(self.place.kubectl("get", "configmap", f"chart-kubealign-{name}", "-o", "json"))
        return dict(found["data"])

    def schedule(self) -> str:
        found = json.loads(self.place.kubectl("get", "cronjob", "chart-kubealign-janitor", "-o", "json"))
        return str(found["spec"]["schedule"])


@pytest.fixture
def release(place: Place) -> Iterator[Release]:
    found = Release(place)
    yield found
    # Not by the namespace's end alone: a priority class outlives it.
    found.helm("uninstall", "chart", "--ignore-not-found", "--wait", "--timeout=60s")


def test_release_is_installed_tested_upgraded_rolled_back_and_leaves_nothing(release: Release) -> None:
    release.place.cluster.start_prometheus()
    release.install("--set", f"tests.metrics=true,tests.prometheusUrl={PROMETHEUS}")
    assert "priorityclass.scheduling.k8s.io/kubealign-chart-test" in release.objects()

    tested = release.test()
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert tested.stdout.count(f"wrote, read and deleted {release.place.root}/runs/helm-test/") == 2
    assert "the API server takes a PyTorchJob of every step" in tested.stdout
    assert "Prometheus has read this pod's metrics" in tested.stdout
    assert release.place.get("pytorchjobs") == []  # a dry run makes nothing
    assert [name for name in release.objects() if name.startswith("pod/")] == []

    release.ok("upgrade", "chart", str(CHART), *release.given, "--set", "janitor.schedule=*/5 * * * *")
    assert release.schedule() == "*/5 * * * *"
    refused = release.helm("upgrade", "chart", str(CHART), *release.given, "--set", "janitor.graceSeconds=soon")
    assert refused.returncode != 0 and "at '/janitor/graceSeconds'" in refused.stderr
    assert release.revisions() == [(1, "superseded"), (2, "deployed")]
    release.ok("rollback", "chart", "1", "--wait", "--timeout=60s")
    assert release.schedule() == "*/10 * * * *"

    release.ok("uninstall", "chart", "--wait", "--timeout=60s")
    until("the end of all that the release made", lambda: release.objects() == [], 30)


def test_trainer_takes_every_steps_job_too(release: Release, trainer: None) -> None:
    release.install("--set", "launcher.backend=trainjob,trainingRuntime.enabled=true")
    tested = release.test("jobs")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "the API server takes a TrainJob of every step" in tested.stdout


def test_janitor_runs_as_the_chart_sets_it_up(release: Release) -> None:
    release.install()
    release.place.kubectl("create", "job", "now", "--from=cronjob/chart-kubealign-janitor")
    release.place.kubectl("wait", "job", "now", "--for=condition=Complete", "--timeout=120s")
    assert "deleted 0 jobs" in release.place.kubectl("logs", "job/now")


def test_helm_test_tells_what_is_missing(release: Release) -> None:
    release.install("--set", "rbac.create=false,store.root=s3://there-is-no-such-bucket")
    for name, reason in (("store-jobs", "NoSuchBucket"), ("jobs", "not permitted")):
        tested = release.test(name)
        assert tested.returncode != 0
        assert "error: " in tested.stdout and reason in tested.stdout, tested.stdout + tested.stderr


def test_step_started_with_the_charts_profile_runs_as_it_says(release: Release) -> None:
    """As the notes say: the profile and the launchers' settings from their config maps, from outside of the cluster."""
    place = release.place
    release.install("--set", "podDisruptionBudget.enabled=false")
    told, shipped = (release.config_map(name) for name in ("launcher", "profiles"))
    path = place.folder / "demo.yaml"
    path.write_text(shipped["demo.yaml"])
    launcher = place.start(
        "step", "base_model", "--profile", str(path), "--output", f"{place.root}/out",
        "--set", "base_model.init.steps=2", **told,
    )  # fmt: skip
    launcher.wait_for("created in namespace")
    (job,) = place.get("pytorchjobs")
    pod = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert pod["serviceAccountName"] == "chart-kubealign-jobs" and pod["priorityClassName"] == "kubealign-chart-test"
    secrets = [source["secretRef"]["name"] for source in pod["containers"][0]["envFrom"]]
    assert secrets == ["chart-kubealign-store", "s3"]
    assert launcher.end() == 0, launcher.output


def test_values_name_what_this_cluster_has() -> None:
    assert yaml.safe_load(VALUES.read_text())["images"]["tag"] == images.TAG
