"""A real apply and destroy of the example against moto's server, of all that moto has.

moto is not part of the project's lock: it is taken from PYTHONPATH, and without it the test is skipped. It has no EKS
add-ons, access entries or pod identity associations, and answers for placement groups in a way that ends the provider:
those are left out here, and so is what needs the security group that EKS makes.
"""

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.unit.infra.support import copy, init, needs_plugins, needs_terraform, terraform

pytestmark = [
    needs_terraform,
    needs_plugins,
    pytest.mark.skipif(
        importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None,
        reason="no moto: install moto[server] into a folder and put it into PYTHONPATH",
    ),
]

BUCKET = "our-models"
ADMIN = "arn:aws:iam::123456789012:role/platform"
OVERRIDE = """
provider "aws" {
  s3_use_path_style           = true
  skip_credentials_validation = true
  skip_metadata_api_check     = true
}
"""
# moto forgets a cluster's access settings, so a second plan would change all that names the cluster.
APART_FROM_THE_CLUSTER = ["module.network", "module.store", "module.registry"]
TARGETS = [
    *APART_FROM_THE_CLUSTER,
    "module.identity.aws_iam_role_policy.store",
    "module.cluster.aws_eks_cluster.this",
    "module.cluster.aws_iam_role_policy_attachment.node",
    "module.cluster.aws_iam_role_policy_attachment.addon",
    "module.karpenter[0].aws_iam_role_policy.controller",
    "module.karpenter[0].aws_sqs_queue_policy.interruption",
    "module.karpenter[0].aws_cloudwatch_event_target.interruption",
]
SETTINGS = {
    "region": "us-east-2",
    "availability_zones": ["us-east-2a", "us-east-2b"],
    "bucket": BUCKET,
    "root": "team",
    "admin_arns": [ADMIN],
    "karpenter": True,
}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """moto's server, empty but for AWS's own policies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            ["env", "MOTO_IAM_LOAD_MANAGED_POLICIES=true", sys.executable, "-m", "moto.server", "-p", str(port)],
            stdout=out,
            stderr=out,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.25)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def client(service: str, endpoint: str) -> Any:
    return boto3.client(
        service, endpoint_url=endpoint, region_name="us-east-2", aws_access_key_id="any", aws_secret_access_key="any"
    )


def document(policy: Any) -> dict[str, Any]:
    return json.loads(policy) if isinstance(policy, str) else policy


def test_the_example_is_made_found_unchanged_and_taken_away(endpoint: str, tmp_path: Path) -> None:
    place = copy(tmp_path) / "example"
    (place / "moto_override.tf").write_text(OVERRIDE)
    (place / "terraform.tfvars.json").write_text(json.dumps(SETTINGS))
    environment = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_ENDPOINT_URL": endpoint}
    targets = [f"-target={target}" for target in TARGETS]
    steady = [f"-target={target}" for target in APART_FROM_THE_CLUSTER]
    init(place)

    terraform(place, "apply", "-auto-approve", "-input=false", "-no-color", *targets, environment=environment)
    try:
        _bucket_is_closed_kept_and_encrypted(client("s3", endpoint))
        _every_step_has_its_role(client("iam", endpoint))
        assert len(client("ecr", endpoint).describe_repositories()["repositories"]) == 11
        cluster = client("eks", endpoint).describe_cluster(name="kubealign")["cluster"]
        assert cluster["resourcesVpcConfig"]["endpointPublicAccess"] is False
        assert cluster["encryptionConfig"][0]["resources"] == ["secrets"]
        assert len(client("events", endpoint).list_rules(NamePrefix="kubealign-karpenter")["Rules"]) == 4

        # 2 would mean that what AWS says it has is not what is written down.
        again = terraform(
            place, "plan", "-detailed-exitcode", "-input=false", "-no-color", *steady, ok=False, environment=environment
        )
        assert again.returncode == 0, again.stdout + again.stderr
    finally:
        terraform(place, "destroy", "-auto-approve", "-input=false", "-no-color", environment=environment)
    assert client("s3", endpoint).list_buckets()["Buckets"] == []
    assert client("ecr", endpoint).describe_repositories()["repositories"] == []
    assert client("eks", endpoint).list_clusters()["clusters"] == []
    assert client("iam", endpoint).list_roles()["Roles"] == []
    assert json.loads((place / "terraform.tfstate").read_text())["resources"] == []


def _bucket_is_closed_kept_and_encrypted(s3: Any) -> None:
    assert all(s3.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"].values())
    assert s3.get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"
    (rule,) = s3.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms" and rule["BucketKeyEnabled"]
    statements = document(s3.get_bucket_policy(Bucket=BUCKET)["Policy"])["Statement"]
    assert {statement["Effect"] for statement in statements} == {"Deny"}
    rules = {rule["ID"]: rule for rule in s3.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]}
    assert rules["runs-forget-what-was-deleted"]["Filter"] == {"Prefix": "team/runs/"}
    assert rules["runs-forget-what-was-deleted"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 3}


def _every_step_has_its_role(iam: Any) -> None:
    roles = {role["RoleName"]: role for role in iam.list_roles()["Roles"]}
    steps = [name for name in roles if name.startswith("kubealign-kubealign-")]
    assert len(steps) == 11 and "kubealign-kubealign-launcher" in steps
    trust = document(roles["kubealign-kubealign-sft"]["AssumeRolePolicyDocument"])["Statement"][0]
    tags = trust["Condition"]["StringEquals"]
    assert tags["aws:RequestTag/kubernetes-service-account"] == "kubealign-sft"
    assert tags["aws:RequestTag/eks-cluster-arn"].endswith(":cluster/kubealign")
    policy = document(iam.get_role_policy(RoleName="kubealign-kubealign-sft", PolicyName="store")["PolicyDocument"])
    (write,) = [statement for statement in policy["Statement"] if statement["Sid"] == "Write"]
    assert all(resource.startswith(f"arn:aws:s3:::{BUCKET}/team/runs/*/sft/") for resource in write["Resource"])
