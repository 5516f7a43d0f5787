"""The API server, the operator or the S3 server goes away while a job runs: nothing is lost and nothing is left."""

import signal
import time

import pytest

from tests.cluster.conftest import Place, nothing_left
from tests.cluster.harness.processes import until
from tests.cluster.test_jobs import LONG, SHORT, TWO_PODS, inputs, same, wait_for_checkpoint, whole

__all__ = ["inputs", "whole"]

pytestmark = pytest.mark.alone


def test_api_server_and_store_go_away(place: Place, inputs, whole) -> None:
    """In the middle of the run the store is away for 30 s and, within these, the API server for 20; and the store once
    more when the model is uploaded.

    Training waits for the store at its next checkpoint but one, so the API server is back in the middle of the run.
    What the launcher's watches had seen last is compacted in the meantime: they are answered 410, and list again.
    """
    launcher = place.step("sft", "out", inputs, *TWO_PODS, *LONG)
    api_server, s3 = (place.cluster.processes[name] for name in ("kube-apiserver", "s3"))
    wait_for_checkpoint(place, "out", 20)
    s3.kill(signal.SIGKILL)
    without_store = time.monotonic()
    api_server.kill(signal.SIGKILL)
    place.cluster.compact()
    time.sleep(20)  # the outage itself
    api_server.start()
    until("the API server", place.cluster.answers, 60)
    launcher.wait_for("no longer knows what pytorchjobs were when last seen; listing again")
    time.sleep(max(0.0, without_store + 30 - time.monotonic()))  # the rest of the store's
    assert "step 160/160" not in launcher.output
    s3.start()
    launcher.wait_for("step 160/160")
    s3.kill(signal.SIGKILL)
    time.sleep(30)  # the outage itself
    s3.start()
    assert launcher.end() == 0, launcher.output
    assert len(place.get("pytorchjobs")) == 1, "no attempt was lost"
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
        launcher = place.step("sft", "out", inputs, *SHORT)
        launcher.wait_for("operator of pytorchjobs is down", 60)
    finally:
        place.cluster.kubectl(*operator, "--replicas=1")
    assert launcher.end() == 0, launcher.output
