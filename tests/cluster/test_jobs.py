"""One step as a PyTorchJob: to its end, adopted, cancelled, deleted, killed, refused; what is said and what is left."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from components.core import store
from components.core.chatml import ChatTokenizer
from components.core.spec import StepResult, read_result
from tests.cluster.conftest import Place, nothing_left
from tests.cluster.harness.processes import until
from tests.programs import locked
from tests.steps import chats, publish_model, publish_rows

# Two pods of one process under DeepSpeed's ZeRO 2, over the pod network.
TWO_PODS = ("resources.nodes=2", "zero.stage=2")
ONE = ("resources.processes=1", "resources.threads=1", "batch_size=4")
LONG = (*ONE, "steps=160", "checkpoint_every=10", "keep_checkpoints=2", "micro_batch_tokens=60")
SHORT = (*ONE, "steps=4", "checkpoint_every=50")


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


class Undisturbed(BaseModel):
    """The run in two pods that nothing disturbs: what the disturbed ones must equal."""

    result: StepResult
    output: str
    started: set[str]
    """Names of the containers' pods, init containers' too."""
    warnings: list[str]
    """Reasons of events that warn."""


@pytest.fixture(scope="module")
def whole(shared_place: Place, inputs: dict[str, str], shared_folder: Path) -> Undisturbed:
    """One for all workers."""
    path = shared_folder / "whole.json"
    with locked("whole"):
        if not path.exists():
            launcher = shared_place.step("sft", "whole", inputs, *TWO_PODS, *LONG)
            assert launcher.end() == 0, launcher.output
            result = read_result(f"{shared_place.root}/whole")
            assert result is not None
            events = shared_place.get("events")
            started = {event["involvedObject"]["name"] for event in events if event["reason"] == "Started"}
            warnings = [event["reason"] for event in events if event["type"] == "Warning"]
            found = Undisturbed(result=result, output=launcher.output, started=started, warnings=warnings)
            path.write_text(found.model_dump_json())
        return Undisturbed.model_validate_json(path.read_bytes())


def same(place: Place, output: str, whole: Undisturbed) -> None:
    """The weights are those of the undisturbed run, to the last bit."""
    result = read_result(f"{place.root}/{output}")
    assert result is not None
    assert result.manifests == whole.result.manifests


def is_done(place: Place, inputs: dict[str, str], kind: str) -> None:
    """Starting it again returns at once and makes no job."""
    before = len(place.get(kind))
    again = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    assert again.end() == 0, again.output
    assert "is already done" in again.output
    assert len(place.get(kind)) == before


def wait_for_checkpoint(place: Place, output: str, number: int) -> None:
    """Until this one, or a later one, is complete: every rank's part of it."""
    folder = place.path(f"{place.root}/{output}/checkpoints")

    def complete() -> bool:
        parts = [path.parent for path in folder.glob("step-*/*-of-2/MANIFEST.json")]
        steps = [int(part.parent.name.removeprefix("step-")) for part in parts]
        return any(steps.count(step) == 2 and step >= number for step in steps)

    until(f"checkpoint {number}", complete, 240, pause=0.05)


def test_step_runs_in_two_pods_and_streams_its_log(whole: Undisturbed) -> None:
    assert "created in namespace" in whole.output
    assert "step 1/160: loss " in whole.output and whole.output.count("step 160/160: loss ") == 1
    assert whole.result.versions["torch"]
    (name,) = {pod.rpartition("-")[0].rpartition("-")[0] for pod in whole.started}
    assert whole.started == {f"{name}-master-0", f"{name}-worker-0"}
    assert "SetPodTemplateRestartPolicy" not in whole.warnings


def test_deleted_pod_costs_only_the_steps_since_the_last_checkpoint(
    place: Place, inputs: dict[str, str], whole: Undisturbed
) -> None:
    launcher = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(place, "out", 20)
    (worker,) = [pod for pod in place.get("pods") if "worker" in pod["metadata"]["name"]]
    place.kubectl("delete", "pod", worker["metadata"]["name"], "--wait=false")
    assert launcher.end() == 0, launcher.output
    assert "starting again from the last checkpoint" in launcher.output
    assert len(place.get("pytorchjobs")) == 2
    same(place, "out", whole)
    nothing_left(place)


def test_last_attempt_ends_in_the_exit_code_for_another_try(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step("sft", "out", inputs, *LONG, "steps=100000", "resources.max_attempts=1")
    launcher.wait_for("step 1/100000")
    place.kubectl("delete", "pod", "--all", "--wait=false")
    assert launcher.end() == 75, launcher.output
    assert "was deleted while it ran" in launcher.last
    assert len(place.get("pytorchjobs")) == 1
    nothing_left(place)


def test_killed_launcher_is_replaced_by_one_that_adopts(
    place: Place, inputs: dict[str, str], whole: Undisturbed
) -> None:
    first = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(place, "out", 20)
    first.send(signal.SIGKILL)
    first.end()
    second = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    assert second.end() == 0, second.output
    assert "is there already; adopted" in second.output
    assert len(place.get("pytorchjobs")) == 1
    same(place, "out", whole)
    is_done(place, inputs, "pytorchjobs")


def test_other_settings_in_the_same_place_are_refused(place: Place, inputs: dict[str, str]) -> None:
    first = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    first.wait_for("created in namespace")
    other = place.step("sft", "out", inputs, *TWO_PODS, *LONG, "learning_rate=0.5")
    assert other.end() == 1, other.output
    assert "is at work in the same place with other settings" in other.last
    first.send(signal.SIGTERM)
    assert first.end() == 143, first.output


@pytest.mark.alone  # on a machine that is busy, pods take longer to end
def test_cancelled_launcher_deletes_its_job_first(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(place, "out", 20)
    launcher.send(signal.SIGTERM)
    until("the job's end", lambda: place.get("pytorchjobs") == [], 2, pause=0.05)  # kubectl takes a second of it
    until("the pods' end", lambda: place.get("pods") == [], 10, pause=0.1)
    assert launcher.end() == 143, launcher.output
    assert "was cancelled" in launcher.last


def test_out_of_memory_names_the_option(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step("sft", "out", inputs, *SHORT, "resources.memory=150Mi")
    assert launcher.end() == 1, launcher.output
    assert "OOMKilled" in launcher.last and "raise resources.memory" in launcher.last
    nothing_left(place)


def test_missing_image_is_told_and_nothing_stays(place: Place, inputs: dict[str, str]) -> None:
    never = ("resources.image=localhost/nonesuch:1", "resources.image_pull_policy=Never")
    launcher = place.step("sft", "out", inputs, *SHORT, *never)
    assert launcher.end(60) == 1, launcher.output
    assert "ErrImageNeverPull" in launcher.last and "localhost/nonesuch:1" in launcher.last
    assert place.get("pytorchjobs") == []


def test_image_that_cannot_be_pulled_is_told_within_30_seconds(place: Place, inputs: dict[str, str]) -> None:
    changes = ("resources.image=localhost/nonesuch:1", "resources.pending_timeout_seconds=40")
    launcher = place.step("sft", "out", inputs, *SHORT, *changes)
    launcher.wait_for("created in namespace")
    launcher.wait_for("is pending: .*(ErrImagePull|ImagePullBackOff)", 30)
    assert launcher.end(60) == 1, launcher.output
    assert "did not start within 40 s" in launcher.last
    assert place.get("pytorchjobs") == []


def test_quota_that_is_used_up_is_told_within_30_seconds(place: Place, inputs: dict[str, str]) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    place.cluster.apply({"apiVersion": "v1", "kind": "ResourceQuota", **quota}, namespace=place.name)
    launcher = place.step("sft", "out", inputs, *SHORT, "resources.pending_timeout_seconds=20")
    launcher.wait_for("created in namespace")
    launcher.wait_for("is pending: .*exceeded quota: none", 30)
    assert launcher.end(60) == 1, launcher.output
    assert "did not start within 20 s" in launcher.last
    assert place.get("pytorchjobs") == []


def test_image_without_our_code_is_told(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step("sft", "out", inputs, *SHORT, "resources.image=localhost/kubealign/training:test")
    assert launcher.end(60) == 1, launcher.output
    assert "an image without our code" in launcher.last


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
    assert launcher.end(60) == 1, launcher.output
    assert message in launcher.last, launcher.output
    assert place.get("pytorchjobs") == []


def test_user_error_in_a_pod_is_the_last_line_and_is_not_tried_again(place: Place, inputs: dict[str, str]) -> None:
    launcher = place.step("sft", "out", {**inputs, "data": inputs["base_model"]}, *SHORT)
    assert launcher.end() == 1, launcher.output
    assert launcher.last.startswith("error: ") and "train" in launcher.last, launcher.output
    assert len(place.get("pytorchjobs")) == 1
