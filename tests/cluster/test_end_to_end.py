"""The demo from the command line on the cluster: every trained step a job, artifacts in S3, the laptop's numbers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from components.core import store
from components.core.config import STEPS
from tests.cluster.conftest import Place, nothing_left

LOCAL_RUN = os.environ.get("KUBEALIGN_LOCAL_RUN", "")
"""A finished local run of the demo with seed 0, as `make demo` leaves it: what the cluster's is compared with."""

TRAINED = ("base_model", "sft", "pmp", "reward_model", "ppo", "evaluate")


@pytest.fixture(scope="module")
def report(shared_place: Place) -> dict[str, Any]:
    two_pods = ("sft.resources.nodes=2", "sft.resources.processes=1", "sft.zero.stage=2")
    launcher = shared_place.start(
        "run", "--profile", "demo", "--root", shared_place.root, "--backend", "pytorchjob", "--json",
        *(f"--set={change}" for change in two_pods),
    )  # fmt: skip
    code = launcher.end(1200)
    print(launcher.output)
    assert code == 0
    found: dict[str, Any] = json.loads(launcher.last)
    return found


def test_every_trained_step_was_a_job(shared_place: Place, report: dict[str, Any]) -> None:
    jobs = {job["metadata"]["labels"]["kubealign.io/step"]: job for job in shared_place.get("pytorchjobs")}
    assert set(jobs) == set(TRAINED)
    assert all(job["status"]["conditions"][-1]["type"] == "Succeeded" for job in jobs.values())
    assert jobs["sft"]["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == 1
    nothing_left(shared_place)


def test_artifacts_are_in_the_store(shared_place: Place, report: dict[str, Any]) -> None:
    (run,) = (shared_place.path(shared_place.root) / "runs").iterdir()
    for step in STEPS:
        result = json.loads((run / step / "result.json").read_text())
        for name, uri in result["outputs"].items():
            assert store.manifest_digest(uri) == result["manifests"][name]


@pytest.mark.skipif(not LOCAL_RUN, reason="needs KUBEALIGN_LOCAL_RUN, a finished run of `make demo`")
def test_numbers_are_those_of_the_laptop(shared_place: Place, report: dict[str, Any]) -> None:
    """Steps of the same processes are equal to the bit; sft sums its gradients in another order, and ppo follows it."""
    (run,) = (shared_place.path(shared_place.root) / "runs").iterdir()
    for step in ("base_model", "data_prep", "pmp", "reward_model"):
        ours, local = (json.loads((folder / step / "result.json").read_text()) for folder in (run, Path(LOCAL_RUN)))
        assert ours["manifests"] == local["manifests"], step
    local = json.loads((Path(LOCAL_RUN) / "evaluate" / "output" / "report" / "report.json").read_text())
    for model in ("base", "sft", "ppo"):
        found, expected = (figures["ground_truth"][model]["value"] for figures in (report, local))
        assert found == pytest.approx(expected, abs=0.02), model  # both intervals are wider than 0.05
