"""The cluster under the tests, and a namespace with a bucket for each of them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.harness import images, machine, operators
from tests.cluster.harness.__main__ import FAILED, SHARED, up
from tests.cluster.harness.cluster import KUBECONFIG, S3, S3_KEY, S3_SECRET, Cluster
from tests.cluster.harness.machine import STATE, CannotRun
from tests.cluster.harness.processes import until
from tests.programs import locked
from tests.s3 import S3Server

HOUSE = Path(__file__).resolve().parents[2]
INFRA = HOUSE / "infra" / "kubernetes"
SERVER = S3Server(S3, S3_KEY, S3_SECRET, STATE / "s3")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what failed, for make test-cluster; of the workers' tests the main process hears too."""
    path = os.environ.get(FAILED)
    if path and report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster. One that was up before (make cluster-up) is used and left; else it goes with the tests."""
    try:
        machine.check()
    except CannotRun as error:
        if os.environ.get("KUBEALIGN_REQUIRE_CLUSTER"):
            pytest.fail(f"no cluster: {error}", pytrace=False)
        pytest.skip(f"no cluster: {error}")
    found = Cluster()
    was_up = found.is_up()
    try:
        if not was_up or "PYTEST_XDIST_WORKER" not in os.environ:  # side by side, make test-cluster has done it
            up(found)
        yield found
    finally:
        if not was_up:
            found.down()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers, and for all runs of pytest in one make test-cluster."""
    own = tmp_path_factory.getbasetemp()
    return Path(os.environ.get(SHARED) or (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own))


@pytest.fixture(scope="session", autouse=True)
def aws() -> Iterator[None]:
    """This process reads and writes the cluster's S3 server."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= SERVER.environment | {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    yield
    os.environ.clear()
    os.environ |= before


class Place:
    """A namespace under the restricted pod standard, with a bucket of its own and what a launcher finds there."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.name = f"t-{uuid.uuid4().hex[:8]}"
        self.root = f"s3://{self.name}"
        self.backend = "pytorchjob"
        self.environment = {"KUBECONFIG": str(KUBECONFIG)}
        self._launchers: list[Launcher] = []
        restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
        secret = {"metadata": {"name": "s3"}, "stringData": SERVER.environment}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": restricted}})
        cluster.apply({"apiVersion": "v1", "kind": "Secret", **secret}, namespace=self.name)
        self.apply(INFRA / "launcher.yaml")
        SERVER.client().create_bucket(Bucket=self.name)
        # A controller makes it, a moment later; without it no pod can be.
        until("the service account", lambda: self.kubectl("get", "serviceaccount", "default"), 60)

    def remove(self) -> None:
        for launcher in self._launchers:  # of a test that failed before their end
            launcher.close()
        self.cluster.kubectl("delete", "namespace", self.name, "--wait=false")

    def apply(self, path: Path) -> None:
        """The objects of a file, in this namespace."""
        self.cluster.apply(*yaml.safe_load_all(path.read_text()), namespace=self.name)

    def pod(self, name: str, image: str, command: list[str], **spec: Any) -> str:
        """Start a pod that the restricted standard admits; its uid."""
        security: dict[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        security |= spec.pop("container_security", {})
        container = {
            "name": "main", "image": image, "imagePullPolicy": "Never", "securityContext": security,
            "command": command, "env": spec.pop("env", []), "envFrom": spec.pop("env_from", []),
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}], "resources": spec.pop("resources", {}),
        }  # fmt: skip
        user = {
            "runAsNonRoot": True,
            "runAsUser": spec.pop("user", 65532),
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        whole = {
            "restartPolicy": "Never", "containers": [container], "securityContext": user,
            "volumes": [{"name": "tmp", "emptyDir": {}}], **spec,
        }  # fmt: skip
        self.cluster.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": whole}, namespace=self.name
        )
        return str(json.loads(self.kubectl("get", "pod", name, "-o", "json"))["metadata"]["uid"])

    def ended_pod(self, name: str, seconds: float = 120) -> dict[str, Any]:
        """Block until the pod has ended; its container's end."""
        found: dict[str, Any] = {}

        def ended() -> bool:
            found.update(json.loads(self.kubectl("get", "pod", name, "-o", "json")))
            return found["status"]["phase"] in ("Succeeded", "Failed")

        until(f"the end of pod {name}", ended, seconds)
        end: dict[str, Any] = found["status"]["containerStatuses"][0]["state"]["terminated"]
        return end

    def start(self, *command: str, **environment: str) -> "Launcher":
        """A process of the command line, as on a laptop with a kubeconfig."""
        self._launchers.append(Launcher(self, command, environment))
        return self._launchers[-1]

    def step(self, step: str, output: str, inputs: dict[str, str], *changes: str, **environment: str) -> "Launcher":
        """One step as a job; `changes` are section.key=value, with the step's own section left out."""
        sets = [f"{step}.{change}" for change in changes]
        return self.start(
            "step", step, "--output", f"{self.root}/{output}", "--backend", self.backend,
            *(f"--input={name}={uri}" for name, uri in inputs.items()), *(f"--set={change}" for change in sets),
            **environment,
        )  # fmt: skip

    def get(self, *what: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.cluster.get("-n", self.name, *what)["items"]
        return found

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl("-n", self.name, *arguments)

    def path(self, uri: str) -> Path:
        """Where the S3 server keeps an object."""
        return SERVER.folder / uri.removeprefix("s3://")


class Launcher:
    """A process of ours; its output is kept and can be waited for."""

    def __init__(self, place: Place, command: tuple[str, ...], environment: dict[str, str]) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *command], cwd=HOUSE, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, process_group=0,
            env={
                **os.environ, **place.environment, "KUBEALIGN_NAMESPACE": place.name,
                "KUBEALIGN_IMAGES": f"{images.PREFIX}/{{step}}:{images.TAG}", "PYTHONUNBUFFERED": "1",
                "KUBEALIGN_ENV_FROM_SECRETS": "s3", "KUBEALIGN_WORK": str(place.folder), **environment,
            },
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def last(self) -> str:
        return self.lines[-1].strip() if self.lines else ""

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """Block until a line matches; it."""
        found: list[str] = []

        def seen() -> bool:
            found[:] = [line for line in self.lines if re.search(pattern, line)]
            return bool(found) or not self._reader.is_alive()

        with self._news:
            assert self._news.wait_for(seen, seconds) and found, f"no {pattern!r} in:\n{self.output}"
        return found[0]

    def end(self, seconds: float = 240) -> int:
        """Block until the process has ended; its exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.output}") from None
        self._reader.join()
        return code

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()


@pytest.fixture(scope="module")
def shared_place(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A namespace that a module's tests share, for what is made once."""
    place = Place(cluster, tmp_path_factory.mktemp("shared"))
    yield place
    place.remove()


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> Iterator[Place]:
    found = Place(cluster, tmp_path)
    yield found
    found.remove()


@pytest.fixture(scope="session")
def trainer(cluster: Cluster) -> None:
    """Kubeflow Trainer and JobSet, beside the training operator."""
    with locked("operators"):
        operators.trainer(cluster)


@pytest.fixture
def trainjobs(place: Place, trainer: None) -> Place:
    """A place whose steps are TrainJobs."""
    place.cluster.apply(reaching_the_store(), namespace=place.name)
    place.backend = "trainjob"
    return place


def reaching_the_store() -> dict[str, Any]:
    """The shipped TrainingRuntime, with the secret that a TrainJob itself cannot name."""
    runtime: dict[str, Any] = yaml.safe_load((INFRA / "training-runtime.yaml").read_text())
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    container["envFrom"] = [{"secretRef": {"name": "s3"}}]
    return runtime


def nothing_left(place: Place, seconds: float = 30) -> None:
    """No job and no pod that still runs."""
    assert [job["metadata"]["name"] for job in place.get(f"{place.backend}s") if not _ended(job)] == []
    until(
        "the end of all pods",
        lambda: [p for p in place.get("pods") if p["status"]["phase"] in ("Pending", "Running")] == [],
        seconds,
    )


def _ended(job: dict[str, Any]) -> bool:
    conditions = job.get("status", {}).get("conditions") or []
    return any(c["type"] in ("Succeeded", "Failed", "Complete") and c["status"] == "True" for c in conditions)
