"""Our images as they run: as any user, on a file system that cannot be written; a launcher in a pod of its own."""

from typing import Any

import pytest
import yaml

from components.core.spec import read_result
from components.launch.processes import kill_marked
from tests.cluster.conftest import INFRA, Place, nothing_left
from tests.cluster.harness import images
from tests.cluster.harness.processes import until
from tests.cluster.test_jobs import LONG, SHORT, inputs

__all__ = ["inputs"]

LAUNCHER = f"{images.PREFIX}/launcher:{images.TAG}"
BUILD_TOOLS = ("gcc", "cc", "g++", "make", "pip", "pip3", "uv", "nvcc", "git", "curl")
STEPS = ("base-model", "sft", "pmp", "reward-model", "ppo", "evaluate")


def check(lines: list[str]) -> list[str]:
    return ["sh", "-ec", "\n".join(["! touch /opt/kubealign/x", 'test -w "$HOME"', *_no_tools(), *lines, "echo fine"])]


def _no_tools() -> list[str]:
    return [f"! command -v {tool}" for tool in BUILD_TOOLS]


@pytest.mark.parametrize(
    ("image", "line"),
    [
        # What the pipeline backend's executor needs.
        ("launcher", "python3 -c 'import kfp, kubernetes, boto3' && file=$(mktemp) && test -w $file"),
        ("data-prep", "python3 -c 'import kfp, pyarrow' && python3 -m components.data_prep --help"),
        ("sft", "python -m components.sft --help"),
        ("training", "python -c 'import torch, deepspeed, transformers; assert torch.version.cuda'"),
    ],
)
def test_image_runs_as_any_user_on_a_read_only_file_system(place: Place, image: str, line: str) -> None:
    place.pod(
        "look", f"{images.PREFIX}/{image}:{images.TAG}", check([line, "test $(id -u) = 12345"]), user=12345,
        container_security={"readOnlyRootFilesystem": True},
    )  # fmt: skip
    assert place.ended_pod("look")["exitCode"] == 0, place.kubectl("logs", "look")


def test_images_say_what_they_are() -> None:
    for name in images.targets():
        config = images.config(f"{images.PREFIX}/{name}:{images.TAG}")
        labels = config["Labels"]
        assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
        assert labels["org.opencontainers.image.source"] and labels["org.opencontainers.image.revision"]
        assert config["User"] == "65532:65532"
        if name in STEPS:
            assert config["Entrypoint"][-1] == f"components.{name.replace('-', '_')}"


def start(place: Place, name: str, inputs: dict[str, str], config: dict[str, Any]) -> None:
    """What the sft component does, in a pod like a pipeline step's."""
    call = (
        "from components.launch.pipeline_step import run_component\n"
        f"run_component('sft', {config!r}, {inputs!r}, {place.root!r}, 'r', 0, False)"
    )
    of_pod = {"KFP_POD_NAME": "metadata.name", "KFP_POD_UID": "metadata.uid"}
    given = {"KUBEALIGN_IMAGES": f"{images.PREFIX}/{{step}}:{images.TAG}", "KUBEALIGN_ENV_FROM_SECRETS": "s3"}
    place.pod(
        name, LAUNCHER, ["python", "-c", call], serviceAccountName="kubealign-launcher",
        env=[{"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}} for key, path in of_pod.items()]
        + [{"name": key, "value": value} for key, value in given.items()],
        env_from=[{"secretRef": {"name": "s3"}}], container_security={"readOnlyRootFilesystem": True},
    )  # fmt: skip


def settings(*changes: str) -> dict[str, Any]:
    from pipelines import profiles

    return profiles.load("demo", [f"sft.{change}" for change in changes]).sft.model_dump(mode="json")


def test_launcher_in_a_pod_needs_nothing_but_its_service_account(place: Place, inputs) -> None:
    start(place, "launcher", inputs, settings(*SHORT))
    assert place.ended_pod("launcher", 180)["exitCode"] == 0, place.kubectl("logs", "launcher")
    said = place.kubectl("logs", "launcher")
    assert "PyTorchJob sft-" in said and "step 4/4" in said
    assert read_result(f"{place.root}/runs/r/sft") is not None
    (job,) = place.get("pytorchjobs")
    assert [owner["name"] for owner in job["metadata"]["ownerReferences"]] == ["launcher"]
    nothing_left(place)


def test_last_words_of_a_failed_step_are_those_of_the_launchers_pod(place: Place, inputs) -> None:
    start(place, "launcher", {**inputs, "data": inputs["base_model"]}, settings(*SHORT))
    end = place.ended_pod("launcher", 180)
    assert end["exitCode"] == 1
    assert end["message"].startswith("1 ") and "train.parquet" in end["message"], end
    assert place.kubectl("logs", "launcher").splitlines()[-1] == f"error: sft: {end['message'].strip()[2:]}"
    nothing_left(place)


def test_deleted_pod_of_a_launcher_takes_its_job_along(place: Place, inputs) -> None:
    start(place, "launcher", inputs, settings(*LONG))
    until("the job", lambda: place.get("pytorchjobs"), 60)
    place.kubectl("delete", "pod", "launcher", "--wait=false")
    until("the job's end", lambda: place.get("pytorchjobs") == [], 5, pause=0.05)
    until("the pods' end", lambda: place.get("pods") == [], 35, pause=0.1)


def test_janitor_deletes_on_schedule_what_a_killed_launcher_has_left(place: Place, inputs) -> None:
    start(place, "launcher", inputs, settings(*SHORT, "resources.gpus=64"))
    until("the job", lambda: place.get("pytorchjobs"), 60)
    (job,) = place.get("pytorchjobs")
    (owner,) = job["metadata"]["ownerReferences"]
    kill_marked(f"KFP_POD_UID={owner['uid']}")
    assert place.ended_pod("launcher")["exitCode"] == 137
    janitor = next(o for o in yaml.safe_load_all((INFRA / "janitor.yaml").read_text()) if o["kind"] == "CronJob")
    (container,) = janitor["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["janitor", "--grace-seconds", "60"]
    container |= {"image": LAUNCHER, "args": ["janitor", "--grace-seconds", "1"]}
    janitor["spec"]["suspend"] = True  # only when this test says so
    place.cluster.apply(janitor, namespace=place.name)
    place.kubectl("create", "job", "now", "--from=cronjob/kubealign-janitor")
    place.kubectl("wait", "job", "now", "--for=condition=Complete", "--timeout=120s")
    assert place.kubectl("logs", "job/now").splitlines()[-1] == f"deleted 1 jobs: {job['metadata']['name']}"
    assert place.get("pytorchjobs") == []
