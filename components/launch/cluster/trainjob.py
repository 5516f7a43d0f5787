"""TrainJob, trainer.kubeflow.org/v1alpha1, of Kubeflow Trainer 2.3."""

from typing import Any

from components.core.errors import UserError
from components.launch.cluster.job import (
    MANAGED_BY,
    Job,
    Manifest,
    backstop,
    environment,
    pod_metadata,
    pod_spec,
    quantities,
)
from components.launch.cluster.state import JobState, true_conditions

# What a TrainJob cannot say of its pods: the TrainingRuntime says it for all of them.
_IN_THE_RUNTIME = (
    "env_from_config_maps",
    "env_from_secrets",
    "image_pull_policy",
    "priority_class",
)


class TrainJob:
    """What the Trainer makes of it: a JobSet NAME, pods NAME-node-0-N-xxxxx, torchrun's PET_* in each.

    `runtime` names a TrainingRuntime of the namespace; `infra/kubernetes/training-runtime.yaml` is one that fits.
    """

    group, version, plural, kind = "trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob"
    operator = "Kubeflow Trainer 2.3 (trainer.kubeflow.org/v1alpha1 TrainJob)"
    container_name = "node"

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime

    def build(self, job: Job) -> Manifest:
        wanted = job.resources
        defaults = type(wanted)()
        unsaid = [name for name in _IN_THE_RUNTIME if getattr(wanted, name) != getattr(defaults, name)]
        if unsaid:
            raise UserError(
                f"{job.spec.step}: a TrainJob cannot carry resources.{', resources.'.join(unsaid)}",
                fix=f"put it into TrainingRuntime {self.runtime}, or use the backend pytorchjob",
            )
        trainer: Manifest = {
            "image": job.image,
            "command": job.command(),
            "env": [{"name": key, "value": value} for key, value in environment(wanted).items()],
            "numNodes": job.nodes,
            "numProcPerNode": wanted.processes,
        }
        if asked := quantities(wanted):
            trainer["resourcesPerNode"] = asked
        spec: Manifest = {
            "runtimeRef": {"apiGroup": self.group, "kind": "TrainingRuntime", "name": self.runtime},
            "trainer": trainer,
            "runtimePatches": [self._patch(job)],
        }
        if wanted.running_timeout_seconds:
            spec["activeDeadlineSeconds"] = backstop(wanted)
        return {
            "apiVersion": f"{self.group}/{self.version}",
            "kind": self.kind,
            "metadata": job.metadata(),
            "spec": spec,
        }

    def _patch(self, job: Job) -> Manifest:
        """Our pod, as far as a patch may say it."""
        whole = pod_spec(job, self.container_name)
        allowed = ("affinity", "imagePullSecrets", "nodeSelector", "serviceAccountName", "tolerations", "volumes")
        pod = {"metadata": pod_metadata(job), "spec": {name: whole[name] for name in allowed if name in whole}}
        jobs = [{"name": self.container_name, "template": {"spec": {"template": pod}}}]
        return {
            "manager": f"{MANAGED_BY['app.kubernetes.io/managed-by']}.io/launcher",
            "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}},
        }

    def state(self, found: dict[str, Any]) -> JobState:
        """There is no condition for a job that runs: the counts of its replicated jobs say it."""
        held = true_conditions(found)
        for kind, state in (
            ("Failed", JobState.FAILED), ("Complete", JobState.SUCCEEDED), ("Suspended", JobState.QUEUED),
        ):  # fmt: skip
            if kind in held:
                return state
        jobs = found.get("status", {}).get("jobsStatus") or []
        if any(entry.get("active") for entry in jobs):
            return JobState.RUNNING
        return JobState.PENDING if jobs else JobState.UNSEEN

    def pod_selector(self, name: str) -> str:
        return f"jobset.sigs.k8s.io/jobset-name={name}"

    def is_rank_zero(self, pod: dict[str, Any]) -> bool:
        return pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index") == "0"
