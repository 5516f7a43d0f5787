"""What cannot work is refused in one line, with exit code 1, before anything is made; and manifests that can, pass."""

import json
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import HOUSE, INFRA, Place
from tests.cluster.harness.cluster import BARE_KUBECONFIG, Cluster
from tests.cluster.test_jobs import SHORT

LONG_NAME = "q" * 64


def refused(place: Place, *changes: str, **environment: str) -> str:
    """The one line of a step that is refused."""
    launcher = place.step("sft", "out", {}, *SHORT, *changes, **environment)
    assert launcher.end(60) == 1, launcher.output
    errors = [line for line in launcher.lines if line.startswith("error: ")]
    assert errors == [launcher.lines[-1]], launcher.output
    assert not place.path(f"{place.root}/out").exists()
    return launcher.last


@pytest.mark.parametrize("kind", ["pytorchjob", "trainjob"])
def test_manifest_is_accepted_by_the_real_schema_and_webhook(place: Place, trainer: None, kind: str) -> None:
    manifest = yaml.safe_load((HOUSE / "tests" / "golden" / f"{kind}.yaml").read_text())
    manifest["metadata"] |= {"namespace": place.name}
    manifest["metadata"].pop("ownerReferences")
    strictly = ("create", "--dry-run=server", "--validate=strict", "-f", "-")
    place.apply(INFRA / "training-runtime.yaml")
    place.cluster.kubectl("-n", place.name, *strictly, input=json.dumps(manifest))
    # The check can fail: a field that the schema does not know.
    manifest["spec"]["nonesuch"] = 1
    with pytest.raises(RuntimeError, match="nonesuch"):
        place.cluster.kubectl("-n", place.name, *strictly, input=json.dumps(manifest))


@pytest.mark.parametrize(
    ("backend", "operator"),
    [
        ("pytorchjob", "no PyTorchJob; install the training operator 1.9"),
        ("trainjob", "no TrainJob; install Kubeflow Trainer 2.3"),
        ("auto", "no PyTorchJob and no TrainJob; install the training operator 1.9"),
    ],
)
def test_cluster_without_the_operator_says_which_to_install(
    cluster: Cluster, place: Place, backend: str, operator: str
) -> None:
    """A second, real API server that has never heard of either kind."""
    cluster.start_bare()
    try:
        place.backend = backend
        assert operator in refused(place, KUBECONFIG=str(BARE_KUBECONFIG))
    finally:
        cluster.processes["bare-apiserver"].kill()


def test_namespace_that_is_not_there(place: Place) -> None:
    said = refused(place, KUBEALIGN_NAMESPACE="nonesuch")
    assert "there is no namespace nonesuch; kubectl create namespace nonesuch" in said


def test_no_kubeconfig(place: Place) -> None:
    said = refused(place, KUBECONFIG=str(place.folder / "none"), HOME=str(place.folder))
    assert "no Kubernetes cluster" in said and "KUBECONFIG" in said


def test_kubeconfig_that_is_none(place: Place) -> None:
    path = place.folder / "kubeconfig"
    path.write_text("apiVersion: [")
    assert "no Kubernetes cluster" in refused(place, KUBECONFIG=str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("resources.memory=12 apples", "sft.resources.memory"),
        ("resources.cpu=-1", "sft.resources.cpu"),
        (f"resources.queue={LONG_NAME}", "must be no more than 63"),
        ("resources.gpu_resource=GPU!", "sft.resources.gpu_resource"),
    ],
    ids=["memory", "cpu", "queue-name-too-long", "gpu-resource"],
)
def test_setting_that_kubernetes_cannot_take(place: Place, change: str, message: str) -> None:
    assert message in refused(place, change)
    assert place.get("pytorchjobs") == []


def test_folder_of_this_machine_is_no_place_for_a_job(place: Place, tmp_path: Path) -> None:
    launcher = place.start("step", "sft", "--output", str(tmp_path / "out"), "--backend", "pytorchjob")
    assert launcher.end(60) == 1, launcher.output
    assert "cannot reach a folder of this machine" in launcher.last and "s3://" in launcher.last
