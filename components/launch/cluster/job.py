"""One attempt at a step as a job: its name, and the pod that every kind of job runs on each node."""

import hashlib
from dataclasses import dataclass
from typing import Any

from components.core.config import Resources, step_config
from components.core.spec import StepSpec
from components.launch.backend import ENVIRONMENT, TRAINING_STEPS

Manifest = dict[str, Any]

DOMAIN = "kubealign.io"
MANAGED_BY = {"app.kubernetes.io/managed-by": "kubealign"}
STEP_LABEL, OUTPUT_LABEL, ATTEMPT_LABEL = f"{DOMAIN}/step", f"{DOMAIN}/output", f"{DOMAIN}/attempt"
FINGERPRINT, RUN, OUTPUT = f"{DOMAIN}/fingerprint", f"{DOMAIN}/run", f"{DOMAIN}/output-uri"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
METRICS_PORT_NAME = "metrics"
USER = 65532  # as in images/
KEPT_SECONDS = 86_400  # of a finished job, for whoever wants its pods' logs
GRACE_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a kind of job is rendered from."""

    spec: StepSpec
    attempt: int
    namespace: str
    image: str
    owner: Manifest | None  # ownerReference to the launcher's own pod
    service_account: str = ""  # these two where the resources name none
    env_from_secrets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The same for every start of this attempt, so that a second launcher finds the first one's job.

        At most 53 characters: pods and services add up to ten, and a service's name may have 63.
        """
        return f"{self.spec.step.replace('_', '-')}-{output_digest(self.spec.output)}-{self.attempt}"

    @property
    def resources(self) -> Resources:
        return step_config(self.spec.step, self.spec.config).resources

    @property
    def nodes(self) -> int:
        """One for a step that torchrun does not start: a second would do the same again."""
        return self.resources.nodes if self.spec.step in TRAINING_STEPS else 1

    def metadata(self) -> Manifest:
        labels = self.labels() | ({QUEUE_LABEL: self.resources.queue} if self.resources.queue else {})
        made: Manifest = {
            "name": self.name,
            "namespace": self.namespace,
            "labels": labels,
            "annotations": {
                FINGERPRINT: self.spec.fingerprint(), RUN: self.spec.run, OUTPUT: self.spec.output,
            },
        }  # fmt: skip
        return made | ({"ownerReferences": [self.owner]} if self.owner else {})

    def labels(self) -> dict[str, str]:
        return MANAGED_BY | {
            STEP_LABEL: self.spec.step, OUTPUT_LABEL: output_digest(self.spec.output), ATTEMPT_LABEL: str(self.attempt),
        }  # fmt: skip

    def command(self) -> list[str]:
        """No rendezvous arguments: torchrun reads the PET_* variables that both operators set."""
        worker = ["-m", f"components.{self.spec.step}", "--spec", self.spec.uri]
        if self.spec.step not in TRAINING_STEPS:
            return ["python", *worker]
        # As long as the launcher waits for all pods: by itself torchrun gives up after 600 s.
        patience = f"--rdzv-conf=timeout={self.resources.pending_timeout_seconds + 60}"
        return ["python", "-m", "torch.distributed.run", patience, f"--shutdown-timeout={GRACE_SECONDS - 5}", *worker]


def output_digest(output: str) -> str:
    return hashlib.sha256(output.encode()).hexdigest()[:10]


def pod_metadata(job: Job) -> Manifest:
    """Labels and annotations of a pod."""
    annotations = {"sidecar.istio.io/inject": "false"}  # its proxy outlives the training and hides the master
    if not job.resources.spot:
        annotations["karpenter.sh/do-not-disrupt"] = "true"
    return {"labels": job.labels(), "annotations": annotations}


def pod_spec(job: Job, container_name: str) -> Manifest:
    """A pod that the restricted security standard admits."""
    wanted = job.resources
    tolerations = [*wanted.tolerations]
    if wanted.gpus:
        tolerations.append({"key": wanted.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    spot = {"karpenter.sh/capacity-type": "spot"} if wanted.spot else {}
    made: Manifest = {
        "restartPolicy": "Never",  # a rank that starts again does not find the others: the launcher starts all again
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(job, container_name)],
        "volumes": _volumes(wanted),
    }  # fmt: skip
    optional: Manifest = {
        "nodeSelector": wanted.node_selector | spot,
        "tolerations": tolerations,
        "affinity": wanted.affinity,
        "priorityClassName": wanted.priority_class,
        "serviceAccountName": wanted.service_account or job.service_account,
        "imagePullSecrets": [{"name": name} for name in wanted.image_pull_secrets],
    }
    if wanted.running_timeout_seconds:
        optional["activeDeadlineSeconds"] = backstop(wanted)
    return made | {name: value for name, value in optional.items() if value}


def backstop(wanted: Resources) -> int:
    """The launcher enforces running_timeout_seconds; this holds where there is no launcher any more."""
    return wanted.running_timeout_seconds + 600


def _container(job: Job, name: str) -> Manifest:
    wanted = job.resources
    made: Manifest = {
        "name": name,
        "image": job.image,
        "imagePullPolicy": wanted.image_pull_policy,
        "command": job.command(),
        "env": [{"name": key, "value": value} for key, value in environment(wanted).items()],
        "resources": quantities(wanted),
        "securityContext": {
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "scratch", "mountPath": "/tmp", "subPath": "tmp"},
            {"name": "scratch", "mountPath": "/work", "subPath": "work"},
        ],
    }  # fmt: skip
    port = job.spec.config.get("metrics_port")
    if port:
        made["ports"] = [{"name": METRICS_PORT_NAME, "containerPort": port}]
    sources = [{"secretRef": {"name": name}} for name in wanted.env_from_secrets or job.env_from_secrets]
    sources += [{"configMapRef": {"name": name}} for name in wanted.env_from_config_maps]
    return made | ({"envFrom": sources} if sources else {})


def environment(wanted: Resources) -> dict[str, str]:
    """What a step reads from its surroundings. No secret: those come by reference."""
    own = {
        "HOME": "/tmp",
        "KUBEALIGN_METRICS_ADDRESS": "0.0.0.0",
        # About a minute: a store that is away for a moment must not cost a job its place on the GPUs.
        "KUBEALIGN_STORE_ATTEMPTS": "16",
        "KUBEALIGN_TERMINATION_LOG": "/dev/termination-log",
        "KUBEALIGN_WORK": "/work",
    }
    return dict(sorted((ENVIRONMENT | own).items())) | (
        {"OMP_NUM_THREADS": str(wanted.threads)} if wanted.threads else {}
    )


def quantities(wanted: Resources) -> Manifest:
    """Requests equal limits for what cannot be shared; CPU is only requested, so that it is never throttled."""
    fixed = {"memory": wanted.memory} if wanted.memory else {}
    if wanted.gpus:
        fixed[wanted.gpu_resource] = str(wanted.gpus)
    requests = fixed | ({"cpu": wanted.cpu} if wanted.cpu else {})
    return ({"requests": requests} if requests else {}) | ({"limits": fixed} if fixed else {})


def _volumes(wanted: Resources) -> list[Manifest]:
    memory: Manifest = {"medium": "Memory"}  # without it /dev/shm has 64 MiB
    if wanted.shared_memory:
        memory["sizeLimit"] = wanted.shared_memory
    scratch = {"sizeLimit": wanted.disk} if wanted.disk else {}
    return [{"name": "shared-memory", "emptyDir": memory}, {"name": "scratch", "emptyDir": scratch}]
