"""One step as a PyTorchJob: to its end, adopted, cancelled, deleted, killed, refused; what is said and what is left."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from components.core import store
from components.core.chatml import ChatTokenizer
from components.core.spec import StepResult, read_result
from tests.cluster.conftest import Launcher, Place, nothing_left
from tests.cluster.harness.processes import until
from tests.steps import chats, publish_model, publish_rows

# Two pods of one process under DeepSpeed's ZeRO 2, over the pod network.
TWO_PODS = ("resources.nodes=2", "resources.processes=1", "resources.threads=1", "zero.stage=2")
LONG = ("steps=300", "batch_size=4", "checkpoint_every=25", "keep_checkpoints=2", "micro_batch_tokens=60")
SHORT = ("steps=4", "batch_size=4", "checkpoint_every=50")


@pytest.fixture(scope="module")
def inputs(
    shared_place: Place, model_folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """A tiny model and its rows, in the real S3 server."""
    folder, model = tmp_path_factory.mktemp("inputs"), model_folders("qwen2")
    publish_rows(folder / "rows", folder / "published", chats(ChatTokenizer.load(model)))
    publish_model(model, folder / "model")
    for name in ("published", "model"):
        store.publish(folder / name, f"{shared_place.root}/{name}")
    return {"base_model": f"{shared_place.root}/model", "data": f"{shared_place.root}/published"}


@pytest.fixture(scope="module")
def whole(shared_place: Place, inputs: dict[str, str]) -> tuple[StepResult, Launcher]:
    """The uninterrupted run that the interrupted ones must equal."""
    launcher = shared_place.step("sft", "whole", inputs, *TWO_PODS, *LONG)
    assert launcher.end() == 0, launcher.output
    result = read_result(f"{shared_place.root}/whole")
    assert result is not None
    return result, launcher


def same(place: Place, output: str, whole: StepResult) -> None:
    """The weights are those of the uninterrupted run, to the last bit."""
    result = read_result(f"{place.root}/{output}")
    assert result is not None
    assert result.manifests == whole.manifests


def wait_for_checkpoint(place: Place, output: str, number: int) -> None:
    """Until this one, or a later one, is complete: every rank's part of it."""
    folder = place.path(f"{place.root}/{output}/checkpoints")

    def complete() -> bool:
        parts = [path.parent for path in folder.glob("step-*/*-of-2/MANIFEST.json")]
        steps = [int(part.parent.name.removeprefix("step-")) for part in parts]
        return any(steps.count(step) == 2 and step >= number for step in steps)

    until(f"checkpoint {number}", complete, 120, pause=0.05)


def test_step_runs_in_two_pods_and_streams_its_log(shared_place: Place, whole: tuple[StepResult, Launcher]) -> None:
    result, launcher = whole
    assert result.versions["torch"]
    assert "created in namespace" in launcher.output
    assert "step 1/300: loss " in launcher.output and "step 300/300: loss " in launcher.output
    assert launcher.output.count("step 300/300") == 1
    (job,) = shared_place.get("pytorchjobs")
    names = sorted(pod["metadata"]["name"] for pod in shared_place.get("pods"))
    name = job["metadata"]["name"]
    assert names == [f"{name}-master-0", f"{name}-worker-0"]


def test_finished_step_returns_at_once(
    shared_place: Place, inputs: dict[str, str], whole: tuple[StepResult, Launcher]
) -> None:
    again = shared_place.step("sft", "whole", inputs, *TWO_PODS, *LONG)
    assert again.end() == 0
    assert "is already done" in again.output
    assert len(shared_place.get("pytorchjobs")) == 1


def test_deleted_pod_costs_only_the_steps_since_the_last_checkpoint(
    place: Place, inputs: dict[str, str], whole: tuple[StepResult, Launcher]
) -> None:
    launcher = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(place, "out", 50)
    (worker,) = [pod for pod in place.get("pods") if "worker" in pod["metadata"]["name"]]
    place.kubectl("delete", "pod", worker["metadata"]["name"], "--wait=false")
    assert launcher.end() == 0, launcher.output
    assert "starting again from the last checkpoint" in launcher.output
    assert len(place.get("pytorchjobs")) == 2
    same(place, "out", whole[0])
    nothing_left(place)


def test_killed_launcher_is_replaced_by_one_that_adopts(
    place: Place, inputs: dict[str, str], whole: tuple[StepResult, Launcher]
) -> None:
    first = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(place, "out", 50)
    first.send(signal.SIGKILL)
    first.end()
    second = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    assert second.end() == 0, second.output
    assert "is there already; adopted" in second.output
    assert len(place.get("pytorchjobs")) == 1
    same(place, "out", whole[0])


def test_other_settings_in_the_same_place_are_refused(place: Place, inputs: dict[str, str]) -> None:
    first = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    first.wait_for("created in namespace")
    other = place.step("sft", "out", inputs, *TWO_PODS, *LONG, "learning_rate=0.5")
    assert other.end() == 1
    assert "is at work in the same place with other settings" in other.last
    first.send(signal.SIGTERM)
    assert first.end() == 143


def test_cancelled_launcher_deletes_its_job_first(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(place, "out", 50)
    launcher.send(signal.SIGTERM)
    until("the job's end", lambda: place.get("pytorchjobs") == [], 2, pause=0.05)
    until("the pods' end", lambda: place.get("pods") == [], 10, pause=0.1)
    assert launcher.end() == 143
    assert "was cancelled" in launcher.last


def test_out_of_memory_names_the_option(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step("sft", "out", inputs, *SHORT, "resources.memory=150Mi")
    assert launcher.end() == 1
    assert "OOMKilled" in launcher.last and "raise resources.memory" in launcher.last
    nothing_left(place)


def test_missing_image_is_told_and_nothing_stays(place: Place, inputs: dict[str, str]) -> None:
    never = ("resources.image=localhost/nonesuch:1", "resources.image_pull_policy=Never")
    launcher = place.step("sft", "out", inputs, *SHORT, *never)
    assert launcher.end(60) == 1
    assert "ErrImageNeverPull" in launcher.last and "localhost/nonesuch:1" in launcher.last
    assert place.get("pytorchjobs") == []


def test_image_that_cannot_be_pulled_is_told_within_30_seconds(place: Place, inputs: dict[str, str]) -> None:
    changes = ("resources.image=localhost/nonesuch:1", "resources.pending_timeout_seconds=40")
    launcher = place.step("sft", "out", inputs, *SHORT, *changes)
    launcher.wait_for("created in namespace")
    launcher.wait_for("is pending: .*(ErrImagePull|ImagePullBackOff)", 30)
    assert launcher.end(60) == 1
    assert "did not start within 40 s" in launcher.last
    assert place.get("pytorchjobs") == []


def test_more_gpus_than_the_node_has_are_told_within_30_seconds(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step(
        "sft", "out", inputs, *SHORT, "resources.gpus=16", "resources.pending_timeout_seconds=20"
    )  # fmt: skip
    launcher.wait_for("created in namespace")
    launcher.wait_for("Insufficient nvidia.com/gpu", 30)
    assert launcher.end(60) == 1
    assert "did not start within 20 s" in launcher.last and "Insufficient nvidia.com/gpu" in launcher.last
    assert place.get("pytorchjobs") == []


def test_job_that_says_running_while_a_worker_waits_is_pending(place: Place, inputs: dict[str, str]) -> None:
    """The master alone fits the node's 8 GPUs; the operator says Running, and two hours later still."""
    launcher = place.step(
        "sft", "out", inputs, *SHORT, "resources.nodes=2", "resources.gpus=8", "resources.pending_timeout_seconds=25"
    )
    launcher.wait_for("worker-0: Unschedulable", 40)
    assert launcher.end(60) == 1
    assert "did not start within 25 s" in launcher.last
    nothing_left(place)


def test_image_without_our_code_is_told(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step("sft", "out", inputs, *SHORT, "resources.image=localhost/kubealign/training:test")
    assert launcher.end(60) == 1
    assert "an image without our code" in launcher.last


def test_invalid_quantity_is_refused_before_anything_is_made(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step("sft", "out", inputs, *SHORT, "resources.memory=12 apples")
    assert launcher.end(60) == 1
    assert "sft.resources.memory" in launcher.last, launcher.output
    assert not place.path(f"{place.root}/out").exists()
    assert place.get("pytorchjobs") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('resources.tolerations=[{"operator": "Sometimes"}]', "Sometimes"),
        ("resources.priority_class=no-such-class", "no-such-class"),
        ("resources.service_account=nobody", "nobody"),
    ],
)
def test_pod_that_the_api_server_refuses_ends_the_step(
    place: Place, inputs: dict[str, str], change: str, message: str
) -> None:
    """A job's schema does not check all of its pods: only the operator's events tell."""
    launcher = place.step("sft", "out", inputs, *SHORT, change)
    assert launcher.end(60) == 1
    assert message in launcher.last, launcher.output
    assert place.get("pytorchjobs") == []


def test_user_error_in_a_pod_is_the_last_line_and_is_not_tried_again(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step("sft", "out", {**inputs, "data": inputs["base_model"]}, *SHORT)
    assert launcher.end() == 1
    assert launcher.last.startswith("error: ") and "train" in launcher.last, launcher.output
    assert len(place.get("pytorchjobs")) == 1
