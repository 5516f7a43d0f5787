"""The same steps as TrainJobs of Kubeflow Trainer: to the end, deleted, cancelled, refused, failed."""

import signal

from tests.cluster.conftest import Place, nothing_left
from tests.cluster.harness.processes import until
from tests.cluster.test_jobs import LONG, SHORT, TWO_PODS, inputs, is_done, same, wait_for_checkpoint, whole

__all__ = ["inputs", "whole"]


def pods(place: Place) -> dict[str, str]:
    """Rank -> name."""
    label = "batch.kubernetes.io/job-completion-index"
    return {pod["metadata"]["annotations"][label]: pod["metadata"]["name"] for pod in place.get("pods")}


def test_deleted_pod_costs_only_the_steps_since_the_last_checkpoint(trainjobs: Place, inputs, whole) -> None:
    """And the weights are those that the other backend's undisturbed run has."""
    launcher = trainjobs.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(trainjobs, "out", 20)
    assert set(pods(trainjobs)) == {"0", "1"}
    trainjobs.kubectl("delete", "pod", pods(trainjobs)["1"], "--wait=false")
    assert launcher.end() == 0, launcher.output
    assert "starting again from the last checkpoint" in launcher.output
    assert "step 160/160: loss " in launcher.output
    assert len(trainjobs.get("trainjobs")) == 2
    same(trainjobs, "out", whole)
    nothing_left(trainjobs)
    is_done(trainjobs, inputs, "trainjobs")


def test_killed_launcher_is_replaced_and_a_cancelled_one_deletes_its_job(trainjobs: Place, inputs) -> None:
    first = trainjobs.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(trainjobs, "out", 20)
    first.send(signal.SIGKILL)
    first.end()
    second = trainjobs.step("sft", "out", inputs, *TWO_PODS, *LONG)
    second.wait_for("is there already; adopted")
    second.send(signal.SIGTERM)
    until("the job's end", lambda: trainjobs.get("trainjobs") == [], 5, pause=0.05)
    until("the pods' end", lambda: trainjobs.get("pods") == [], 35, pause=0.1)
    assert second.end() == 143, second.output


def test_user_error_in_a_pod_is_the_last_line(trainjobs: Place, inputs) -> None:
    launcher = trainjobs.step("sft", "out", {**inputs, "data": inputs["base_model"]}, *SHORT)
    assert launcher.end() == 1, launcher.output
    assert launcher.last.startswith("error: ") and "train" in launcher.last, launcher.output
    assert len(trainjobs.get("trainjobs")) == 1
    nothing_left(trainjobs)


def test_volumes_of_the_step_reach_its_pods(trainjobs: Place, inputs) -> None:
    changes = ("resources.gpus=64", "resources.shared_memory=32Mi", "resources.disk=3Gi")
    launcher = trainjobs.step("sft", "out", inputs, *SHORT, *changes, "resources.pending_timeout_seconds=20")
    until("the pod", lambda: pods(trainjobs), 60)
    (pod,) = trainjobs.get("pods")
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["spec"]["volumes"]}
    assert volumes["shared-memory"] == {"medium": "Memory", "sizeLimit": "32Mi"}
    assert volumes["scratch"] == {"sizeLimit": "3Gi"}
    launcher.wait_for("Insufficient nvidia.com/gpu", 30)
    assert launcher.end(60) == 1, launcher.output
    assert "did not start within 20 s" in launcher.last
    assert trainjobs.get("trainjobs") == []


def test_runtime_that_is_not_there_is_named_before_anything_is_made(trainjobs: Place, inputs) -> None:
    launcher = trainjobs.step("sft", "out", inputs, *SHORT, KUBEALIGN_RUNTIME="nonesuch")
    assert launcher.end(60) == 1, launcher.output
    assert "nonesuch" in launcher.last and "TrainingRuntime" in launcher.last, launcher.output
    assert not trainjobs.path(f"{trainjobs.root}/out").exists()
