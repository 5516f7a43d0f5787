"""A launcher here may do all that it needs, and the API server takes every step's job (dry run: nothing is made)."""

import os
import sys
from pathlib import Path

from components.core import store
from components.core.errors import KubealignError, report
from components.core.spec import StepSpec
from components.launch.backend import TRAINING_STEPS
from components.launch.cluster.discovery import cluster_backend
from pipelines import profiles

folder = Path("/profiles")
found = sorted(str(path) for path in folder.glob("*.yaml")) or ["demo"]
try:
    backend = cluster_backend(os.environ["KUBEALIGN_BACKEND"])
    for name in found:
        profile = profiles.load(name)
        for step in (*TRAINING_STEPS, "evaluate"):
            output = store.join(os.environ["KUBEALIGN_ROOT"], "helm-test", step)
            config = getattr(profile, step).model_dump(mode="json")
            spec = StepSpec(
                step=step, run="helm-test", seed=0, config=config, inputs={}, input_digests={}, output=output, code=""
            )  # fmt: skip
            backend.adopts(spec)
        print(f"{name}: the API server takes a {backend.kind.kind} of every step")
except KubealignError as error:
    sys.exit(f"error: {report(error)}")
