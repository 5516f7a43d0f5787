"""The API server, the operator or the S3 server goes away while a job runs: nothing is lost and nothing is left."""

import signal
import time

from tests.cluster.conftest import Place, nothing_left
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.processes import until
from tests.cluster.test_jobs import LONG, TWO_PODS, inputs, same, wait_for_checkpoint, whole

__all__ = ["inputs", "whole"]


def away(cluster: Cluster, name: str, seconds: float) -> None:
    """Kill a server and start it again after a while."""
    cluster.processes[name].kill(signal.SIGKILL)
    time.sleep(seconds)  # the outage itself
    cluster.start(name)


def test_api_server_is_away_for_20_seconds(place: Place, inputs, whole) -> None:
    launcher = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(place, "out", 50)
    away(place.cluster, "kube-apiserver", 20)
    until("the API server", place.cluster.answers, 60)
    assert launcher.end() == 0, launcher.output
    assert len(place.get("pytorchjobs")) == 1
    # The log went on where it was.
    assert "step 300/300" in launcher.output
    same(place, "out", whole[0])
    nothing_left(place)


def test_store_is_away_for_30_seconds_while_checkpoints_are_written(place: Place, inputs, whole) -> None:
    launcher = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    wait_for_checkpoint(place, "out", 50)
    away(place.cluster, "s3", 30)
    assert launcher.end() == 0, launcher.output
    same(place, "out", whole[0])
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
