"""What the chart renders is what Kubernetes, Kueue and Kubeflow Trainer take: kubeconform with their own schemas.

The schemas lie in the Go modules that the cluster tests pin. The Prometheus operator's is not among them.
"""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.programs import CannotBuild, program, source
from tests.unit.helm.test_chart import CASES, text_of

Json = dict[str, Any]
_ANY_OF_BOTH: Json = {"type": ["string", "integer", "number"]}
WITHOUT_SCHEMA = {"PodMonitor"}


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one schema for each kind."""
    folder = tmp_path_factory.mktemp("schemas")
    try:
        for kind, schema in {**_core(), **_custom()}.items():
            (folder / f"{kind}.json").write_text(json.dumps(schema))
    except CannotBuild as error:
        pytest.skip(f"no schemas: {error}")
    return folder


def _core() -> dict[str, Json]:
    path = source("kubernetes", "k8s.io/kubernetes") / "api" / "openapi-spec" / "swagger.json"
    definitions: dict[str, Json] = json.loads(path.read_text())["definitions"]

    @cache
    def expanded(name: str) -> Json:
        if name.endswith((".IntOrString", ".Quantity")):
            return _ANY_OF_BOTH
        return _closed(definitions[name], lambda reference: expanded(reference.rpartition("/")[2]))

    wanted = {kind for case in CASES for kind in _kinds(text_of("-f", str(case)))}
    found = {}
    for name, definition in definitions.items():
        for entry in definition.get("x-kubernetes-group-version-kind", []):
            if entry["kind"].lower() in wanted and len(definition.get("properties", {})) > 2:
                found[_file(entry["group"], entry["version"], entry["kind"])] = expanded(name)
    return found


def _custom() -> dict[str, Json]:
    trainer = source("operators", "github.com/kubeflow/trainer/v2") / "manifests" / "base" / "crds"
    kueue = source("kubernetes", "sigs.k8s.io/kueue") / "config" / "components" / "crd" / "bases"
    found = {}
    for path in (
        trainer / "trainer.kubeflow.org_trainingruntimes.yaml",
        kueue / "kueue.x-k8s.io_localqueues.yaml",
    ):
        spec = yaml.safe_load(path.read_text())["spec"]
        for version in spec["versions"]:
            kind = _file(spec["group"], version["name"], spec["names"]["kind"])
            schema = _closed(version["schema"]["openAPIV3Schema"], lambda reference: {})
            schema["properties"]["metadata"] = {"type": "object"}
            found[kind] = schema
    return found


def _file(group: str, version: str, kind: str) -> str:
    """As kubeconform looks for it: {{.ResourceKind}}{{.KindSuffix}}."""
    return "-".join(filter(None, (kind.lower(), group.split(".")[0], version)))


def _closed(part: Any, resolve: Any) -> Any:
    """A schema without references, that refuses unknown fields."""
    if isinstance(part, list):
        return [_closed(item, resolve) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return resolve(part["$ref"])
    if part.get("x-kubernetes-int-or-string"):
        return _ANY_OF_BOTH
    made = {
        key: {name: _closed(inner, resolve) for name, inner in value.items()}
        if key == "properties"
        else _closed(value, resolve)
        for key, value in part.items()
        if not key.startswith("x-") and key not in ("description", "default", "format", "pattern")
    }
    if "properties" in made and not part.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def _kinds(text: str) -> set[str]:
    return {found["kind"].lower() for found in yaml.safe_load_all(text) if found}


def conform(text: str, schemas: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "rendered.yaml"
    path.write_text(text)
    location = f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    command = [str(program("kubeconform")), "-strict", "-summary", "-schema-location", location]
    command += ["-skip", ",".join(sorted(WITHOUT_SCHEMA)), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_every_object_is_one_that_the_api_takes(case: Path, schemas: Path, tmp_path: Path) -> None:
    text = text_of("-f", str(case))
    done = conform(text, schemas, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = sum(f"\nkind: {kind}\n" in text for kind in WITHOUT_SCHEMA)
    assert "Invalid: 0, Errors: 0" in done.stdout and f"Skipped: {skipped}" in done.stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("successfulJobsHistoryLimit: 1", "successfulJobHistoryLimit: 1"),
        ("clusterQueue: gpus", "clusterQueues: gpus"),
        ("minAvailable: 1000000", "minAvailable: [1]"),
        ("runAsUser: 65532", 'runAsUser: "65532"'),
    ],
)
def test_field_that_does_not_exist_is_found(old: str, new: str, schemas: Path, tmp_path: Path) -> None:
    text = text_of("-f", str(next(case for case in CASES if case.stem == "eks-values")))
    assert old in text
    assert conform(text.replace(old, new), schemas, tmp_path).returncode == 1
