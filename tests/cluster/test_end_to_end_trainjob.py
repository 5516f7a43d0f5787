"""The whole pipeline once more, by Kubeflow Trainer: a small demo, or KUBEALIGN_TRAINJOB_PROFILE=demo for all of it."""

import os

from tests.cluster.conftest import Place
from tests.cluster.test_end_to_end import LOCAL_RUN, compare, jobs, published, run
from tests.integration.test_demo_small import PROFILE


def test_every_trained_step_is_a_trainjob(trainjobs: Place) -> None:
    small = trainjobs.folder / "small.yaml"
    small.write_text(PROFILE)
    profile = os.environ.get("KUBEALIGN_TRAINJOB_PROFILE") or str(small)
    figures = run(trainjobs, profile, 1500)
    assert {"base", "sft", "ppo"} <= set(figures["ground_truth"])
    assert jobs(trainjobs)["sft"]["spec"]["trainer"]["numNodes"] == 2
    published(trainjobs)
    if profile == "demo" and LOCAL_RUN:
        compare(trainjobs, figures)
