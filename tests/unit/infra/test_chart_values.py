"""What Terraform puts out as the chart's values is what the chart takes, and every name in it is one that is made."""

import json
import re
from typing import Any

import pytest
import yaml

from tests.unit.infra.support import HOUSE, copy, init, needs_plugins, needs_terraform, terraform

SCHEMA = HOUSE / "helm" / "kubealign" / "values.schema.json"
pytestmark = [needs_terraform, needs_plugins]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Outputs of the example in the first run of its own tests, where AWS is a mock."""
    place = copy(tmp_path_factory.mktemp("example")) / "example"
    init(place)
    said = terraform(place, "test", "-json", "-verbose").stdout.splitlines()
    state = next(message for message in map(json.loads, said) if message["type"] == "test_state")["test_state"]
    return {name: output["value"] for name, output in state["outputs"].items()}


def check(value: Any, schema: dict[str, Any], whole: dict[str, Any], where: str = "values") -> None:
    """The part of JSON schema that the chart's uses for what is given here."""
    if "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "enum" in schema:
        assert value in schema["enum"], where
    if isinstance(value, str):
        assert schema.get("type", "string") == "string", where
        assert re.search(schema.get("pattern", ""), value), f"{where}: {value}"
    elif isinstance(value, bool):
        assert schema["type"] == "boolean", where
    elif isinstance(value, dict):
        assert schema["type"] == "object", where
        assert set(schema.get("required", ())) <= set(value), where
        others = schema.get("additionalProperties", True)
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, others)
            assert inner is not False, f"the chart knows no {where}.{name}"
            check(item, inner if isinstance(inner, dict) else {}, whole, f"{where}.{name}")
    else:
        raise AssertionError(f"{where}: nothing here is a {type(value).__name__}")


@pytest.mark.skipif(not SCHEMA.is_file(), reason="the chart is not here")
def test_the_chart_takes_the_values(outputs: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text())
    values = yaml.safe_load(outputs["chart_values"])
    # What must be given in one part of the whole is given by the chart's own defaults.
    check(values, {name: part for name, part in schema.items() if name != "required"}, schema)
    assert set(values) >= {"images", "store", "serviceAccounts", "stages"}


def test_the_launcher_s_account_is_the_one_of_the_manifests(outputs: dict[str, Any]) -> None:
    manifests = list(yaml.safe_load_all((HOUSE / "infra" / "kubernetes" / "launcher.yaml").read_text()))
    name = yaml.safe_load(outputs["chart_values"])["serviceAccounts"]["launcher"]["name"]
    assert name in {item["metadata"]["name"] for item in manifests if item["kind"] == "ServiceAccount"}


def test_every_account_that_a_stage_names_has_a_role_and_a_manifest(outputs: dict[str, Any]) -> None:
    stages = yaml.safe_load(outputs["chart_values"])["stages"]
    named = {stage: values["service_account"] for stage, values in stages.items() if "service_account" in values}
    made = list(yaml.safe_load_all(outputs["service_accounts"]))
    assert {item["kind"] for item in made} == {"ServiceAccount"}
    assert {item["metadata"]["name"] for item in made} == set(named.values())
    assert set(named) <= set(outputs["role_arns"])


def test_paths_are_given_as_the_command_line_takes_them(outputs: dict[str, Any]) -> None:
    assert yaml.safe_load(outputs["chart_values"])["store"]["root"] == "s3://our-models/team"
    assert outputs["data_root"] == "s3://our-models/raw"
