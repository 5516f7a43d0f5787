"""infra/terraform: well formed, valid, true to its own tests, and in step with what it serves."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.config import STEPS
from tests.unit.infra.support import HOUSE, MODULES, TERRAFORM, copy, init, needs_plugins, needs_terraform, terraform

GITOPS = HOUSE / "infra" / "gitops" / "karpenter"
FILES = sorted(path for path in TERRAFORM.rglob("*.tf") if ".terraform" not in path.parts)


def ids(path: Path) -> str:
    return path.relative_to(TERRAFORM).as_posix()


def objects(name: str) -> list[dict[str, Any]]:
    return [item for item in yaml.safe_load_all((GITOPS / name).read_text()) if item]


@needs_terraform
def test_every_file_is_formatted() -> None:
    done = terraform(TERRAFORM, "fmt", "-check", "-recursive", "-diff", "-no-color", ok=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_terraform
@needs_plugins
@pytest.mark.parametrize("folder", [*MODULES, "example"])
def test_folder_is_valid_and_passes_its_own_tests(folder: str, tmp_path: Path) -> None:
    place = copy(tmp_path) / folder
    init(place)
    terraform(place, "validate", "-no-color")
    done = terraform(place, "test", "-no-color", ok=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^Success! (\d+) passed, 0 failed\.$", done.stdout, re.MULTILINE)
    assert passed and int(passed[1]) > 0, "terraform is content with a folder of no tests"


def test_every_module_has_tests() -> None:
    assert len(MODULES) == 8
    assert all(list((TERRAFORM / folder / "tests").glob("*.tftest.hcl")) for folder in [*MODULES, "example"])


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_file_uses_plain_resources_of_aws_and_no_remote_module(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r'^(?:resource|data) "([a-z0-9]+)_', text, re.MULTILINE)) <= {"aws"}
    for block in re.findall(r'^module "\w+" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL):
        assert re.search(r'^  source\s+= "\.\./modules/[a-z-]+"$', block, re.MULTILINE)
    for required in re.findall(r"required_providers \{(.*?)^  \}", text, re.MULTILINE | re.DOTALL):
        assert re.findall(r'source\s+= "(.*)"', required) == ["hashicorp/aws"]
        assert re.findall(r'version = "(.*)"', required) in (["~> 5.100"], [">= 5.100"])


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_every_variable_and_output_is_described(path: Path) -> None:
    for block in re.findall(r'^(?:variable|output) ".*?^\}', path.read_text(), re.MULTILINE | re.DOTALL):
        assert re.search(r'^  description = "\S.{5,}"$', block, re.MULTILINE), block


def test_nothing_that_init_or_apply_leaves_is_tracked() -> None:
    if not (HOUSE / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    tracked = subprocess.run(
        ["git", "ls-files", "infra/terraform"], cwd=HOUSE, capture_output=True, text=True, check=True
    ).stdout
    assert not re.findall(r"^.*(?:\.terraform/|\.lock\.hcl$|\.tfstate|\.tfvars$).*$", tracked, re.MULTILINE)


def test_a_repository_for_every_image() -> None:
    text = (TERRAFORM / "modules" / "registry" / "variables.tf").read_text()
    images = re.search(r'variable "images".*?default = \[(.*?)\]', text, re.DOTALL)
    targets = json.loads((HOUSE / "images" / "docker-bake.json").read_text())["group"]["default"]["targets"]
    assert images and sorted(re.findall(r'"([a-z-]+)"', images[1])) == sorted(targets)


def test_a_policy_for_every_step() -> None:
    text = (TERRAFORM / "modules" / "policies" / "main.tf").read_text()
    steps = re.search(r"^  steps = \{\n(.*?)^  \}", text, re.MULTILINE | re.DOTALL)
    assert steps and set(re.findall(r"^    (\w+) += \{", steps[1], re.MULTILINE)) == {*STEPS, "publish"}


@pytest.mark.parametrize(("name", "capacity"), [("gpu", "on-demand"), ("gpu-spot", "spot")])
def test_karpenter_never_takes_a_node_from_under_a_training(name: str, capacity: str) -> None:
    (pool,) = objects(f"nodepool-{name}.yaml")
    spec, template = pool["spec"], pool["spec"]["template"]["spec"]
    assert (pool["apiVersion"], pool["kind"], pool["metadata"]["name"]) == ("karpenter.sh/v1", "NodePool", name)
    assert spec["disruption"]["consolidationPolicy"] == "WhenEmpty"
    assert template["expireAfter"] == "Never"
    budgets = {reason: budget["nodes"] for budget in spec["disruption"]["budgets"] for reason in budget["reasons"]}
    assert budgets == {"Drifted": "0", "Underutilized": "0", "Empty": "100%"}
    assert [(taint["key"], taint["effect"]) for taint in template["taints"]] == [("nvidia.com/gpu", "NoSchedule")]
    assert int(spec["limits"]["nvidia.com/gpu"]) > 0
    wanted = {item["key"]: item["values"] for item in template["requirements"]}
    assert wanted["karpenter.sh/capacity-type"] == [capacity]


def test_karpenter_s_nodes_are_as_terraform_s() -> None:
    (made_of,) = objects("ec2nodeclass.yaml")
    spec = made_of["spec"]
    variables = (TERRAFORM / "example" / "variables.tf").read_text()
    cluster = re.search(r'variable "name" \{.*?default     = "(.*?)"', variables, re.DOTALL)
    assert cluster
    for terms in (spec["subnetSelectorTerms"], spec["securityGroupSelectorTerms"]):
        assert terms == [{"tags": {"karpenter.sh/discovery": cluster[1]}}]
    assert spec["instanceProfile"] == f"{cluster[1]}-karpenter-node"
    assert spec["metadataOptions"]["httpTokens"] == "required"
    assert spec["metadataOptions"]["httpPutResponseHopLimit"] == 1
    assert all(disk["ebs"]["encrypted"] for disk in spec["blockDeviceMappings"])
    assert spec["instanceStorePolicy"] == "RAID0"
    pools = [item for name in ("gpu", "gpu-spot") for item in objects(f"nodepool-{name}.yaml")]
    assert {pool["spec"]["template"]["spec"]["nodeClassRef"]["name"] for pool in pools} == {made_of["metadata"]["name"]}
    # What a step with GPUs selects nodes by: chart_values of the example.
    assert all(pool["spec"]["template"]["metadata"]["labels"]["kubealign/gpu"] == "true" for pool in pools)
