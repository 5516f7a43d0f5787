"""The node's eight GPUs, and who gets them: too many asked for, taken by a higher priority, shared out by a queue."""

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from components.core.spec import read_result
from tests.cluster.conftest import Place, nothing_left
from tests.cluster.harness import images, operators
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.processes import until
from tests.cluster.test_jobs import LONG, SHORT, inputs
from tests.programs import locked

__all__ = ["inputs"]

ALL_GPUS = "resources.gpus=8"
CLASSES = {"t-low": 100, "t-high": 1000}


@pytest.fixture(scope="module", autouse=True)
def priorities(cluster: Cluster) -> None:
    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
    cluster.apply(*({**kind, "metadata": {"name": name}, "value": value} for name, value in CLASSES.items()))


@pytest.fixture(scope="module")
def kueue(cluster: Cluster) -> None:
    """Kueue with one queue over the node's GPUs."""
    with locked("operators"):
        operators.kueue(cluster)
    flavor = {"metadata": {"name": "h100"}, "spec": {"nodeLabels": {"accelerator": "h100"}}}
    gpus = {"name": "h100", "resources": [{"name": "nvidia.com/gpu", "nominalQuota": 8}]}
    queue = {
        "namespaceSelector": {}, "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [{"coveredResources": ["nvidia.com/gpu"], "flavors": [gpus]}],
    }  # fmt: skip
    objects = [
        {"apiVersion": operators.KUEUE_API, "kind": "ResourceFlavor", **flavor},
        {"apiVersion": operators.KUEUE_API, "kind": "ClusterQueue", "metadata": {"name": "gpus"}, "spec": queue},
    ]
    # Its webhook answers a moment after its pod is ready.
    until("Kueue's webhook", lambda: cluster.apply(*objects) is None, 60, pause=1.0)


@pytest.fixture
def queued(place: Place, kueue: None) -> Place:
    """A place with a queue named train."""
    spec: dict[str, Any] = {"metadata": {"name": "train"}, "spec": {"clusterQueue": "gpus"}}
    place.cluster.apply({"apiVersion": operators.KUEUE_API, "kind": "LocalQueue", **spec}, namespace=place.name)
    return place


def checkpoints(place: Place, output: str) -> list[int]:
    """The steps of the checkpoints that are complete, of a job in one pod."""
    folder = place.path(f"{place.root}/{output}/checkpoints")
    return sorted(int(path.parent.parent.name.removeprefix("step-")) for path in folder.glob("step-*/*/MANIFEST.json"))


def test_more_gpus_than_the_node_has_are_told_within_30_seconds(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step(
        "sft", "out", inputs, *SHORT, "resources.gpus=16", "resources.pending_timeout_seconds=20"
    )  # fmt: skip
    launcher.wait_for("created in namespace")
    launcher.wait_for("Insufficient nvidia.com/gpu", 30)
    assert launcher.end(60) == 1, launcher.output
    assert "did not start within 20 s" in launcher.last and "Insufficient nvidia.com/gpu" in launcher.last
    assert place.get("pytorchjobs") == []


def test_job_that_says_running_while_a_worker_waits_is_pending(place: Place, inputs: dict[str, str]) -> None:
    """One pod alone fits the node's 8 GPUs. Where that is the master, the operator says Running, and two hours later
    still; which of the two comes first is the scheduler's own."""
    changes = (*SHORT, "resources.nodes=2", ALL_GPUS, "resources.pending_timeout_seconds=25")
    for attempt in range(8):
        launcher = place.step("sft", f"out-{attempt}", inputs, *changes)
        if "worker-0" in launcher.wait_for("(worker|master)-0: Unschedulable", 40):
            break
        launcher.send(signal.SIGTERM)
        assert launcher.end() == 143, launcher.output
        until("the end of its pods", lambda: place.get("pods") == [], 60)
    (job,) = place.get("pytorchjobs")
    assert ("Running", "True") in [(c["type"], c["status"]) for c in job["status"]["conditions"]]
    assert launcher.end(60) == 1, launcher.output
    assert "did not start within 25 s" in launcher.last
    nothing_left(place)


def test_node_that_no_label_fits_is_told(place: Place, inputs: dict[str, str]) -> None:
    other = ('resources.node_selector={"accelerator": "a100"}', "resources.gpus=1")
    launcher = place.step("sft", "out", inputs, *SHORT, *other, "resources.pending_timeout_seconds=15")
    launcher.wait_for("is pending: .*didn't match Pod's node affinity/selector", 30)
    assert launcher.end(60) == 1, launcher.output
    assert place.get("pytorchjobs") == []


@pytest.fixture
def tainted_node(cluster: Cluster) -> Iterator[str]:
    """A second node with GPUs that only those may use who tolerate its taint; it is no machine, so no pod ever runs."""
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    node = {"metadata": {"name": "node2", "labels": {"accelerator": "t4"}}, "spec": {"taints": [taint]}}
    cluster.apply({"apiVersion": "v1", "kind": "Node", **node})
    room = {"cpu": "8", "memory": "16Gi", "pods": "10", "nvidia.com/gpu": "4"}
    status = json.dumps({"status": {"capacity": room, "allocatable": room}})
    cluster.kubectl("patch", "node", "node2", "--subresource=status", "--type=merge", "-p", status)
    yield "node2"
    cluster.kubectl("delete", "node", "node2")


def test_tainted_node_takes_the_steps_that_ask_for_its_gpus(
    place: Place, inputs: dict[str, str], tainted_node: str
) -> None:
    away = [{"key": f"node.kubernetes.io/{state}", "operator": "Exists"} for state in ("not-ready", "unreachable")]
    there = ('resources.node_selector={"accelerator": "t4"}', f"resources.tolerations={json.dumps(away)}")
    without = place.step("sft", "without", inputs, *SHORT, *there)
    without.wait_for("is pending: .*untolerated taint", 40)
    asks = place.step("sft", "asks", inputs, *SHORT, *there, "resources.gpus=1")
    until(
        "a pod on the node",
        lambda: [pod for pod in place.get("pods") if pod["spec"].get("nodeName") == tainted_node],
        60,
    )
    for launcher in (without, asks):
        launcher.send(signal.SIGTERM)
        assert launcher.end() == 143, launcher.output
    place.kubectl("delete", "pods", "--all", "--force", "--grace-period=0")  # no kubelet there ends them


def test_job_preempted_by_a_higher_priority_goes_on_after_it(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step("sft", "out", inputs, *LONG, "steps=500", ALL_GPUS, "resources.priority_class=t-low")
    until("a checkpoint", lambda: checkpoints(place, "out"), 120)
    place.pod(
        "urgent", images.BASE, ["sleep", "5"], priorityClassName="t-high",
        resources={"limits": {"nvidia.com/gpu": 8}},
    )  # fmt: skip
    assert launcher.end() == 0, launcher.output
    assert re.search(r"preempt.*; starting again from the last checkpoint", launcher.output), launcher.output
    assert "going on after step" in launcher.output
    assert place.ended_pod("urgent")["exitCode"] == 0
    assert len(place.get("pytorchjobs")) == 2
    nothing_left(place)


def test_full_queue_is_told_and_its_time_does_not_count(queued: Place, inputs: dict[str, str]) -> None:
    first = queued.step("sft", "first", inputs, *LONG, "steps=1000", ALL_GPUS, "resources.queue=train")
    first.wait_for("step 1/1000")
    second = queued.step(
        "sft", "second", inputs, *SHORT, ALL_GPUS, "resources.queue=train", "resources.pending_timeout_seconds=15"
    )
    second.wait_for("created in namespace")
    second.wait_for(r"is queued: .*insufficient unused quota for nvidia.com/gpu", 30)
    assert first.end() == 0, first.output
    assert second.end() == 0, second.output
    nothing_left(queued)


def test_job_that_a_queue_takes_back_goes_on_from_its_checkpoint(queued: Place, inputs: dict[str, str]) -> None:
    """Kueue suspends it, and its pods are gone; later it gets others, whose log must be followed from their start."""
    first = queued.step(
        "sft", "first", inputs, *LONG, "steps=600", ALL_GPUS, "resources.queue=train", "resources.priority_class=t-low"
    )
    until("a checkpoint", lambda: checkpoints(queued, "first"), 120)
    second = queued.step(
        "sft", "second", inputs, *SHORT, ALL_GPUS, "resources.queue=train", "resources.priority_class=t-high"
    )
    first.wait_for("is queued: ", 60)
    assert second.end() == 0, second.output
    assert first.end() == 0, first.output
    assert len(queued.get("pytorchjobs")) == 2, "suspended and resumed, not made anew"
    assert "going on after step" in first.output and "step 600/600" in first.output
    assert read_result(f"{queued.root}/first") is not None
    nothing_left(queued)


def test_queued_job_that_is_cancelled_leaves_the_queue(queued: Place, inputs: dict[str, str]) -> None:
    launcher = queued.step("sft", "out", inputs, *SHORT, "resources.gpus=10", "resources.queue=train")
    launcher.wait_for("is queued: ", 60)
    launcher.send(signal.SIGTERM)
    assert launcher.end() == 143, launcher.output
    assert queued.get("pytorchjobs") == []
    until("the workload's end", lambda: queued.get("workloads") == [], 30)
