"""PyTorchJob, kubeflow.org/v1, of the training operator 1.9."""

from typing import Any

from components.launch.cluster.job import KEPT_SECONDS, Job, Manifest, pod_metadata, pod_spec
from components.launch.cluster.state import JobState, true_conditions


class PyTorchJob:
    """What the training operator makes of it: pods NAME-master-0 and NAME-worker-N, torchrun's PET_* in each."""

    group, version, plural, kind = "kubeflow.org", "v1", "pytorchjobs", "PyTorchJob"
    operator = "the training operator 1.9 (kubeflow.org/v1 PyTorchJob)"
    container_name = "pytorch"  # the operator's webhook refuses any other

    def build(self, job: Job) -> Manifest:
        pod = pod_spec(job, self.container_name)
        del pod["restartPolicy"]  # the replicas' own counts, and the operator warns of two
        template = {"metadata": pod_metadata(job), "spec": pod}
        # The operator takes a missing number for an error.
        replicas: Manifest = {"Master": {"replicas": 1, "restartPolicy": "Never", "template": template}}
        if job.nodes > 1:
            replicas["Worker"] = {
                "replicas": job.nodes - 1, "restartPolicy": "Never", "template": template,
            }  # fmt: skip
        return {
            "apiVersion": f"{self.group}/{self.version}",
            "kind": self.kind,
            "metadata": job.metadata(),
            "spec": {
                "nprocPerNode": str(job.resources.processes),
                "runPolicy": {
                    # On a failure the others must not hold their GPUs, and the failed one's log must stay.
                    "cleanPodPolicy": "Running",
                    "ttlSecondsAfterFinished": KEPT_SECONDS,
                    "backoffLimit": 0,
                },
                "pytorchReplicaSpecs": replicas,
            },
        }

    def state(self, found: dict[str, Any]) -> JobState:
        """Of the conditions that hold, the most final: their order in the list says nothing."""
        held = true_conditions(found)
        for kind, state in (
            ("Failed", JobState.FAILED), ("Succeeded", JobState.SUCCEEDED), ("Suspended", JobState.QUEUED),
            ("Restarting", JobState.RESTARTING), ("Running", JobState.RUNNING), ("Created", JobState.PENDING),
        ):  # fmt: skip
            if kind in held:
                return state
        return JobState.UNSEEN

    def pod_selector(self, name: str) -> str:
        return f"training.kubeflow.org/job-name={name}"

    def is_rank_zero(self, pod: dict[str, Any]) -> bool:
        return pod["metadata"]["labels"].get("training.kubeflow.org/replica-type") == "master"
