"""What a launcher may do: the Role that we ship is enough, and each verb of it is needed and asked for by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.launch.cluster.permissions import needed
from tests.cluster.conftest import INFRA, Place
from tests.cluster.harness.cluster import kubeconfig

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


def test_namespace_that_does_not_exist(as_launcher: Place) -> None:
    as_launcher.environment |= {"KUBECONFIG": str(as_launcher.folder / "none"), "HOME": str(as_launcher.folder)}
    code, last = step(as_launcher)
    assert code == 1
    assert "no Kubernetes cluster" in last and "KUBECONFIG" in last
