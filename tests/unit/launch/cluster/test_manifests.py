"""The manifests of both kinds of job: golden files, names and the options that reach the pod."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.config import SFTConfig
from components.core.errors import UserError
from components.core.spec import StepSpec
from components.launch.cluster.job import Job, output_digest, pod_spec
from components.launch.cluster.pytorchjob import PyTorchJob
from components.launch.cluster.state import JobState
from components.launch.cluster.trainjob import TrainJob

GOLDEN = Path(__file__).resolve().parents[3] / "golden"
# Everything that a TrainJob can carry too.
RESOURCES: dict[str, Any] = {
    "processes": 8, "threads": 4, "nodes": 2, "gpus": 8, "cpu": "32", "memory": "512Gi",
    "node_selector": {"accelerator": "h100"}, "tolerations": [{"key": "team", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}},
    "image_pull_secrets": ["registry"], "queue": "train", "service_account": "trainer", "spot": True,
    "shared_memory": "64Gi", "disk": "200Gi", "running_timeout_seconds": 86400,
}  # fmt: skip
PYTORCHJOB_ALONE: dict[str, Any] = {
    "priority_class": "high", "image_pull_policy": "Always", "env_from_secrets": ["s3"],
    "env_from_config_maps": ["proxy"],
}  # fmt: skip


def job(step: str = "sft", **resources: Any) -> Job:
    # Not make_spec: the code's digest would change the golden files with every line of code.
    spec = StepSpec(
        step=step, run="r", seed=0, config={"resources": resources} | ({"metrics_port": 9400} if step == "sft" else {}),
        inputs={}, input_digests={}, output=f"s3://bucket/runs/r/{step}", code="code",
    )  # fmt: skip
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "launcher", "uid": "1", "controller": False}
    return Job(spec=spec, attempt=1, namespace="ns", image="kubealign/sft:1", owner=owner)


@pytest.mark.parametrize(
    ("kind", "resources"),
    [(PyTorchJob(), RESOURCES | PYTORCHJOB_ALONE), (TrainJob("kubealign"), RESOURCES)],
    ids=["pytorchjob", "trainjob"],
)
def test_manifest_is_the_golden_one(kind: Any, resources: dict[str, Any]) -> None:
    """`make golden` writes the files anew; look at the difference before keeping it."""
    path = GOLDEN / f"{kind.kind.lower()}.yaml"
    made = yaml.safe_dump(kind.build(job(**resources)), sort_keys=False)
    if os.environ.get("KUBEALIGN_GOLDEN"):
        path.write_text(made)
    assert made == path.read_text()


@pytest.mark.parametrize("name", sorted(PYTORCHJOB_ALONE))
def test_what_a_trainjob_cannot_carry_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=rf"cannot carry resources\.{name}.*TrainingRuntime kubealign"):
        TrainJob("kubealign").build(job(**{name: PYTORCHJOB_ALONE[name]}))


def test_shipped_training_runtime_gives_a_trainjobs_pods_what_a_pytorchjobs_have() -> None:
    """Where a TrainJob cannot say it itself."""
    runtime = yaml.safe_load((GOLDEN.parents[1] / "infra" / "kubernetes" / "training-runtime.yaml").read_text())
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == TrainJob.container_name
    assert replicated["template"]["spec"]["backoffLimit"] == 0
    pod, ours = replicated["template"]["spec"]["template"]["spec"], pod_spec(job(), TrainJob.container_name)
    (container,), (our,) = pod.pop("containers"), ours.pop("containers")
    ours.pop("volumes"), pod.pop("volumes")  # these a TrainJob brings itself
    assert pod == ours
    same = ("name", "imagePullPolicy", "securityContext", "terminationMessagePolicy", "volumeMounts")
    assert {key: container[key] for key in same} == {key: our[key] for key in same}
    port = SFTConfig().metrics_port
    assert container["ports"] == [{"name": our["ports"][0]["name"], "containerPort": port}]


def test_name_is_short_and_the_same_for_the_same_place() -> None:
    long = job("reward_model")
    assert long.name == f"reward-model-{output_digest(long.spec.output)}-1"
    assert len(long.name) <= 53


def test_step_without_torchrun_has_one_pod_and_no_torchrun() -> None:
    made = PyTorchJob().build(job("evaluate", nodes=4))
    assert list(made["spec"]["pytorchReplicaSpecs"]) == ["Master"]
    pod = made["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert pod["containers"][0]["command"][:3] == ["python", "-m", "components.evaluate"]


def test_installation_serves_a_job_whose_resources_name_nothing() -> None:
    plain, own = job(), job(service_account="mine", env_from_secrets=["own"])
    for found, account, secret in ((plain, "house", "s3"), (own, "mine", "own")):
        given = Job(
            spec=found.spec, attempt=0, namespace="ns", image="i", owner=None, service_account="house",
            env_from_secrets=("s3",),
        )  # fmt: skip
        pod = PyTorchJob().build(given)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
        assert pod["serviceAccountName"] == account
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": secret}}]


def condition(kind: str, status: str = "True") -> dict[str, str]:
    return {"type": kind, "status": status}


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], JobState.UNSEEN),
        (["Created"], JobState.PENDING),
        (["Created", "Running"], JobState.RUNNING),
        # Conditions stay in the order in which they were first seen.
        (["Created", "Failed", "Running"], JobState.FAILED),
        (["Created", "Succeeded"], JobState.SUCCEEDED),
        (["Created", "Suspended"], JobState.QUEUED),
        (["Created", "Restarting", "Running"], JobState.RESTARTING),
    ],
)
def test_state_of_a_pytorchjob(conditions: list[str], state: JobState) -> None:
    held = [condition(kind) for kind in conditions] + [condition("Failed", "False")] * ("Failed" not in conditions)
    assert PyTorchJob().state({"status": {"conditions": held}}) is state


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, JobState.UNSEEN),
        ({"jobsStatus": [{"name": "node", "active": 0, "ready": 0}]}, JobState.PENDING),
        ({"jobsStatus": [{"name": "node", "active": 1}]}, JobState.RUNNING),
        ({"conditions": [condition("Suspended")], "jobsStatus": [{"active": 1}]}, JobState.QUEUED),
        ({"conditions": [condition("Suspended", "False")], "jobsStatus": [{"active": 1}]}, JobState.RUNNING),
        ({"conditions": [condition("Complete")]}, JobState.SUCCEEDED),
        ({"conditions": [condition("Failed")], "jobsStatus": [{"active": 1}]}, JobState.FAILED),
    ],
)
def test_state_of_a_trainjob(status: dict[str, Any], state: JobState) -> None:
    assert TrainJob("kubealign").state({"status": status}) is state
