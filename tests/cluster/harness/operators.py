"""Operators from their own modules' manifests, with images made here."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.harness import images
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.processes import until
from tests.programs import source

TRAINING_OPERATOR = "localhost/kubealign-test/training-operator:1.9.4"
JOBSET = "localhost/kubealign-test/jobset:0.12.0"
TRAINER = "localhost/kubealign-test/trainer:2.3.0"
KUEUE = "localhost/kubealign-test/kueue:0.15.2"
# Namespace and name of each one's deployment.
_TRAINING_OPERATOR = ("kubeflow", "training-operator")
_JOBSET = ("jobset-system", "jobset-controller-manager")
_TRAINER = ("kubeflow-system", "kubeflow-trainer-controller-manager")
_KUEUE = ("kueue-system", "kueue-controller-manager")
KUEUE_API = "kueue.x-k8s.io/v1beta2"

# The operator's own waits with nslookup, which our base has not.
_INIT_CONTAINER = """
- name: init-pytorch
  image: {{.InitContainerImage}}
  imagePullPolicy: IfNotPresent
  resources: {limits: {cpu: 100m, memory: 20Mi}, requests: {cpu: 50m, memory: 10Mi}}
  securityContext:
    allowPrivilegeEscalation: false
    capabilities: {drop: [ALL]}
  command: [sh, -c, "for try in $(seq {{.MaxTries}}); do getent hosts {{.MasterAddr}} && exit 0; sleep 1; done; exit 1"]
"""


def training_operator(cluster: Cluster) -> None:
    """kubeflow.org/v1 PyTorchJob."""
    if _runs(cluster, *_TRAINING_OPERATOR):
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as template:
        template.write(_INIT_CONTAINER)
        template.flush()
        Path(template.name).chmod(0o644)
        files = {"/etc/config/initContainer.yaml": Path(template.name)}
        images.from_program(TRAINING_OPERATOR, "training-operator", path="/manager", files=files)
    images.load(cluster, TRAINING_OPERATOR)
    manifests = source("operators", "github.com/kubeflow/training-operator") / "manifests"
    objects = _rendered(cluster, manifests, "overlays/standalone")
    for found in objects:
        if found["kind"] == "Deployment":
            container = found["spec"]["template"]["spec"]["containers"][0]
            container["image"], container["imagePullPolicy"] = TRAINING_OPERATOR, "Never"
            container["args"] = ["--enable-scheme=pytorchjob", f"--pytorch-init-container-image={images.BASE}"]
            container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 2}
    _install(cluster, objects, *_TRAINING_OPERATOR)


def trainer(cluster: Cluster) -> None:
    """trainer.kubeflow.org/v1alpha1 TrainJob, on JobSet."""
    if _runs(cluster, *_TRAINER):
        return
    images.from_program(JOBSET, "jobset", path="/manager")
    images.from_program(TRAINER, "trainer", path="/manager")
    images.load(cluster, JOBSET, TRAINER)
    objects = _rendered(cluster, source("operators", "sigs.k8s.io/jobset") / "config", "default")
    for found in objects:
        if found["kind"] == "Deployment":
            _use(found, JOBSET)
    _install(cluster, objects, *_JOBSET)
    manifests = source("operators", "github.com/kubeflow/trainer/v2") / "manifests"
    objects = _rendered(cluster, manifests, "overlays/manager", without="../../third-party/jobset")
    for found in objects:
        if found["kind"] == "Deployment":
            _use(found, TRAINER)
    _install(cluster, objects, *_TRAINER)


def kueue(cluster: Cluster) -> None:
    """Queues, for PyTorchJobs."""
    if _runs(cluster, *_KUEUE):
        return
    images.from_program(KUEUE, "kueue", path="/manager")
    images.load(cluster, KUEUE)
    objects = _rendered(cluster, source("kubernetes", "sigs.k8s.io/kueue") / "config", "default")
    kept = []
    for found in objects:
        if found["kind"] == "APIService":  # wants an API server with an aggregation layer; and nothing here reads it
            continue
        if found["kind"] == "Deployment":
            _use(found, KUEUE)
        if found["kind"].endswith("WebhookConfiguration"):
            # The others would stop every pod of the cluster whenever Kueue is down.
            found["webhooks"] = [hook for hook in found["webhooks"] if _of_kueue(hook)]
        if found["kind"] == "ConfigMap" and "controller_manager_config.yaml" in found.get("data", {}):
            settings = yaml.safe_load(found["data"]["controller_manager_config.yaml"])
            settings["integrations"] = {"frameworks": ["kubeflow.org/pytorchjob"]}
            found["data"]["controller_manager_config.yaml"] = yaml.safe_dump(settings)
        kept.append(found)
    _install(cluster, kept, *_KUEUE)


def _runs(cluster: Cluster, namespace: str, deployment: str) -> bool:
    try:
        cluster.kubectl("-n", namespace, "rollout", "status", f"deployment/{deployment}", "--timeout=1s")
    except RuntimeError:
        return False
    return True


def _of_kueue(hook: dict[str, Any]) -> bool:
    groups = [group for rule in hook["rules"] for group in rule["apiGroups"]]
    return "pytorchjob" in hook["name"] or any(group.endswith("kueue.x-k8s.io") for group in groups)


def _rendered(cluster: Cluster, manifests: Path, overlay: str, without: str = "") -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "manifests"
        shutil.copytree(manifests, copy, copy_function=shutil.copyfile)  # a module's own files cannot be written
        for found in [copy, *copy.rglob("*")]:
            found.chmod(0o755 if found.is_dir() else 0o644)
        if without:
            path = copy / overlay / "kustomization.yaml"
            path.write_text("".join(line for line in path.read_text().splitlines(True) if without not in line))
        text = cluster.kubectl("kustomize", str(copy / overlay))
    return [found for found in yaml.safe_load_all(text) if found]


def _use(deployment: dict[str, Any], image: str) -> None:
    pod = deployment["spec"]["template"]["spec"]
    for container in pod["containers"]:
        container["image"], container["imagePullPolicy"] = image, "Never"
        container.pop("resources", None)


def _install(cluster: Cluster, objects: list[dict[str, Any]], namespace: str, deployment: str) -> None:
    first = [found for found in objects if found["kind"] in ("Namespace", "CustomResourceDefinition")]
    for some in (first, [found for found in objects if found not in first]):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": some})
        # Not client-side: the definitions are larger than an annotation may be.
        until(
            f"the objects of {deployment}",
            lambda text=text: cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text),
            30, pause=1.0,
        )  # fmt: skip
    cluster.kubectl("-n", namespace, "rollout", "status", f"deployment/{deployment}", "--timeout=120s")
