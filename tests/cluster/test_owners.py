"""A job belongs to the launcher's pod: it goes with it, the next launcher takes it over, the janitor takes the rest."""

import signal

from tests.cluster.conftest import Place
from tests.cluster.harness import images
from tests.cluster.harness.processes import until
from tests.cluster.test_jobs import LONG, inputs

__all__ = ["inputs"]


def pod(place: Place, name: str, seconds: int) -> dict[str, str]:
    """A pod in the place of a pipeline step's, that ends by itself; what its launcher finds in its environment."""
    uid = place.pod(name, images.BASE, ["sh", "-c", f"trap 'exit 0' TERM; sleep {seconds} & wait"])
    return {"KFP_POD_NAME": name, "KFP_POD_UID": uid}


def owners(place: Place) -> list[str]:
    (job,) = place.get("pytorchjobs")
    return [owner["name"] for owner in job["metadata"]["ownerReferences"]]


def test_job_goes_with_the_pod_of_its_launcher(place: Place, inputs) -> None:
    launcher = place.step("sft", "out", inputs, *LONG, **pod(place, "first", 600))
    launcher.wait_for("created in namespace")
    launcher.send(signal.SIGKILL)
    place.kubectl("delete", "pod", "first")
    until("the job's end", lambda: place.get("pytorchjobs") == [], 30)


def test_job_is_taken_over_by_the_pod_of_the_next_launcher(place: Place, inputs) -> None:
    endless = (*LONG, "steps=100000")
    first = place.step("sft", "out", inputs, *endless, **pod(place, "first", 600))
    first.wait_for("created in namespace")
    first.send(signal.SIGKILL)
    second = place.step("sft", "out", inputs, *endless, **pod(place, "second", 600))
    second.wait_for("is there already; adopted")
    assert "is attended by pod first too" in second.output
    assert owners(place) == ["second"]
    place.kubectl("delete", "pod", "first")
    second.wait_for("step 1/100000")  # it did not go with the first one's pod
    second.send(signal.SIGTERM)
    assert second.end() == 143, second.output


def test_janitor_deletes_what_nobody_attends_to_and_nothing_else(place: Place, inputs) -> None:
    ended = place.step("sft", "ended", inputs, *LONG, "resources.gpus=64", **pod(place, "short", 3))
    alive = place.step("sft", "alive", inputs, *LONG, "resources.gpus=64", **pod(place, "long", 600))
    by_hand = place.step("sft", "by-hand", inputs, *LONG, "resources.gpus=64")
    for launcher in (ended, alive, by_hand):
        launcher.wait_for("created in namespace")
        launcher.send(signal.SIGKILL)
    place.kubectl("wait", "pod", "short", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
    janitor = place.start("janitor", "--grace-seconds", "1")
    assert janitor.end() == 0, janitor.output
    assert "deleted 1 jobs" in janitor.last
    left = {job["metadata"]["annotations"]["kubealign.io/output-uri"] for job in place.get("pytorchjobs")}
    assert left == {f"{place.root}/alive", f"{place.root}/by-hand"}
