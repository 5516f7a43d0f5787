"""What a launcher may do: the Role that we ship is enough, and each verb of it is needed and asked for by name."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.launch.cluster.permissions import needed
from tests.cluster.conftest import INFRA, Place
from tests.cluster.harness import images
from tests.cluster.harness.cluster import kubeconfig
from tests.cluster.harness.processes import until
from tests.cluster.test_jobs import LONG, inputs
from tests.programs import program

__all__ = ["inputs"]

ROLE = next(found for found in yaml.safe_load_all((INFRA / "launcher.yaml").read_text()) if found["kind"] == "Role")
VERBS = [
    (group, resource, verb)
    for (group, resource), verbs in needed("kubeflow.org", "pytorchjobs").items()
    for verb in verbs
]  # fmt: skip


@pytest.fixture
def as_launcher(place: Place, tmp_path: Path) -> Place:
    """The namespace, seen with the rights of the launcher's own service account."""
    token = place.kubectl("create", "token", "kubealign-launcher").strip()
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(kubeconfig(token, place.name)))
    place.environment["KUBECONFIG"] = str(path)
    return place


def step(place: Place, **environment: str) -> tuple[int, str]:
    """A step that cannot be placed, so that it ends by its own time limit: create, watch, explain, delete."""
    launcher = place.step(
        "base_model", "out", {}, "resources.gpus=64", "resources.pending_timeout_seconds=12", **environment
    )
    return launcher.end(60), launcher.last


def without(group: str, resource: str, verb: str) -> dict[str, Any]:
    rules = [dict(rule) for rule in ROLE["rules"]]
    for rule in rules:
        if rule["apiGroups"] == [group] and rule["resources"] == [resource]:
            rule["verbs"] = [other for other in rule["verbs"] if other != verb]
    return {**ROLE, "rules": [rule for rule in rules if rule["verbs"]]}


def test_shipped_role_holds_what_the_launcher_asks_for_and_nothing_else() -> None:
    granted = {(rule["apiGroups"][0], rule["resources"][0]): tuple(rule["verbs"]) for rule in ROLE["rules"]}
    assert granted == {
        key: tuple(sorted(verbs))
        for kind in (("kubeflow.org", "pytorchjobs"), ("trainer.kubeflow.org", "trainjobs"))
        for key, verbs in needed(*kind).items()
    }
    assert "*" not in json.dumps(ROLE)


def test_shipped_role_is_enough(as_launcher: Place) -> None:
    code, last = step(as_launcher)
    assert code == 1
    assert "did not start within 12 s" in last and "Insufficient nvidia.com/gpu" in last
    assert as_launcher.cluster.get("-n", as_launcher.name, "pytorchjobs")["items"] == []


@pytest.mark.parametrize(("group", "resource", "verb"), VERBS)
def test_one_verb_fewer_is_named_before_anything_is_made(
    as_launcher: Place, group: str, resource: str, verb: str
) -> None:
    as_launcher.cluster.apply(without(group, resource, verb), namespace=as_launcher.name)
    code, last = step(as_launcher)
    assert code == 1
    assert f"not permitted in namespace {as_launcher.name} to {verb} {resource}" in last
    assert not as_launcher.path(f"{as_launcher.root}/out").exists()


def test_token_that_is_replaced_while_a_job_runs(place: Place, inputs: dict[str, str], tmp_path: Path) -> None:
    """A pod's token lives for an hour, in a file that the kubelet writes anew."""
    uid = place.pod("bound", images.BASE, ["sleep", "600"], serviceAccountName="kubealign-launcher")
    bound = ("--bound-object-kind=Pod", "--bound-object-name=bound", f"--bound-object-uid={uid}")
    first = place.kubectl("create", "token", "kubealign-launcher", *bound).strip()
    file, path = tmp_path / "token", tmp_path / "kubeconfig"
    file.write_text(first)
    config = kubeconfig("", place.name)
    config["users"][0]["user"] = {"tokenFile": str(file)}
    path.write_text(json.dumps(config))

    launcher = place.step("sft", "out", inputs, *LONG, "steps=100000", KUBECONFIG=str(path))
    launcher.wait_for("step 1/100000")
    file.write_text(place.kubectl("create", "token", "kubealign-launcher").strip())
    place.kubectl("delete", "pod", "bound", "--grace-period=0", "--force")
    old = tmp_path / "old"
    old.write_text(json.dumps(kubeconfig(first, place.name)))
    asked = [str(program("kubectl")), f"--kubeconfig={old}", "get", "pods"]
    until("the end of the first token", lambda: subprocess.run(asked, capture_output=True, check=False).returncode, 60)
    assert launcher.process.poll() is None
    launcher.send(signal.SIGTERM)
    assert launcher.end() == 143, launcher.output
    assert "is deleted" in launcher.last
    assert place.get("pytorchjobs") == []
