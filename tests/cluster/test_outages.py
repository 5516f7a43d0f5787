"""The API server, the operator or the S3 server goes away while a job runs: nothing is lost and nothing is left."""

import signal
import time

import pytest

from components.core.spec import StepResult, read_result
from tests.cluster.conftest import Place, nothing_left
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.processes import until
from tests.cluster.test_jobs import LONG as SHORTER
from tests.cluster.test_jobs import TWO_PODS, inputs, same, wait_for_checkpoint

__all__ = ["inputs"]

LONG = (*SHORTER, "steps=300")  # longer than what is away

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def whole(shared_place: Place, inputs: dict[str, str]) -> StepResult:
    """The run that nothing disturbs."""
    launcher = shared_place.step("sft", "whole", inputs, *TWO_PODS, *LONG)
    assert launcher.end() == 0, launcher.output
    result = read_result(f"{shared_place.root}/whole")
    assert result is not None
    return result


def away(cluster: Cluster, name: str, seconds: float) -> None:
    """Kill a server and start it again after a while."""
    cluster.processes[name].kill(signal.SIGKILL)
    time.sleep(seconds)  # the outage itself
    cluster.start(name)


def test_api_server_is_away_for_20_seconds_and_forgets(place: Place, inputs, whole) -> None:
    """What the launcher's watches had seen last is compacted in the meantime: they are answered 410, and list again."""
    launcher = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(place, "out", 20)
    server = place.cluster.processes["kube-apiserver"]
    server.kill(signal.SIGKILL)
    place.cluster.compact()
    time.sleep(20)  # the outage itself
    server.start()
    until("the API server", place.cluster.answers, 60)
    launcher.wait_for("no longer knows what pytorchjobs were when last seen; listing again")
    assert launcher.end() == 0, launcher.output
    assert len(place.get("pytorchjobs")) == 1
    assert "step 300/300" in launcher.output, "the log went on where it was"
    same(place, "out", whole)
    nothing_left(place)


def test_store_is_away_for_30_seconds_while_it_is_written_to(place: Place, inputs, whole) -> None:
    """Once in the middle of checkpoints, and once more when the model itself is uploaded."""
    launcher = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(place, "out", 20)
    away(place.cluster, "s3", 30)
    launcher.wait_for("step 300/300")
    away(place.cluster, "s3", 30)
    assert launcher.end() == 0, launcher.output
    same(place, "out", whole)
    nothing_left(place)


def test_operator_is_down(place: Place, inputs) -> None:
    """Its webhook refuses every job with HTTP 500: the launcher waits, and goes on when it is back."""
    operator = ("-n", "kubeflow", "scale", "deployment/training-operator")
    place.cluster.kubectl(*operator, "--replicas=0")
    try:
        until(
            "the operator's end",
            lambda: place.cluster.get("-n", "kubeflow", "pods")["items"] == [],
            60,
        )  # fmt: skip
        launcher = place.step("sft", "out", inputs, "steps=2", "batch_size=4")
        launcher.wait_for("operator of pytorchjobs is down", 60)
    finally:
        place.cluster.kubectl(*operator, "--replicas=1")
    assert launcher.end() == 0, launcher.output
