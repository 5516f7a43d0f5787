"""A whole Kubernetes on this one machine: etcd, control plane, kubelet, containerd; `up` and `down`.

Everything runs as a process of the host and is reached at the bridge's address. What it writes lies in
`~/.cache/kubealign/cluster` and goes with `down`; programs and imported images are kept.
"""

import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from tests.cluster.harness import machine
from tests.cluster.harness.machine import BRIDGE, CONTAINERD, NODE_IP, POD_NETWORK, SERVICE_NETWORK, STATE
from tests.cluster.harness.processes import Process, until
from tests.programs import program

NODE = "node1"
KUBECONFIG = STATE / "kubeconfig"
SOCKET = STATE / "containerd.sock"
_ETCD = "http://127.0.0.1:12379"
_TOKENS = {
    "admin-token": ("admin", "system:masters"),
    "kubelet-token": (f"system:node:{NODE}", "system:nodes"),
    "controller-token": ("system:kube-controller-manager", "system:masters"),
    "scheduler-token": ("system:kube-scheduler", ""),
    "proxy-token": ("system:kube-proxy", ""),
}
GPUS = 8
S3_PORT, S3_KEY, S3_SECRET = 7070, "testkey", "testsecret1"
S3 = f"http://{NODE_IP}:{S3_PORT}"
PROMETHEUS_PORT = 9090
PROMETHEUS = f"http://{NODE_IP}:{PROMETHEUS_PORT}"
BARE_PORT = 6444
BARE_KUBECONFIG = STATE / "bare.kubeconfig"
_OPTIONAL = ("prometheus", "bare-apiserver")


class Cluster:
    """The one cluster of this machine."""

    def __init__(self) -> None:
        self.processes = {process.name: process for process in _processes()}

    def is_up(self) -> bool:
        needed = (process for name, process in self.processes.items() if name not in _OPTIONAL)
        return KUBECONFIG.exists() and all(process.pid() for process in needed)

    def up(self) -> None:
        """Start what does not run, on a machine that has the packages; returns when the node is ready for pods."""
        STATE.mkdir(parents=True, exist_ok=True)
        machine.network_up()
        _write_settings()
        self.start("etcd")
        self.start("kube-apiserver")
        until("the API server", self.answers, 90)
        _write_kubeconfigs()
        self.start("containerd")
        until("containerd", lambda: self.ctr("version"), 30)
        for name in ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns", "s3"):
            self.start(name)
        until("the S3 server", lambda: machine.run(*_curl(f"{S3}/health")) is not None, 20)
        try:
            until("the node", self._has_registered, 60, pause=1.0)
            # What a device plug-in would do: the kubelet keeps it and the scheduler counts by it.
            gpus = [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(GPUS)}]
            self.kubectl("patch", "node", NODE, "--subresource=status", "--type=json", "-p", json.dumps(gpus))
            self.kubectl("label", "--overwrite", "node", NODE, "accelerator=h100")
            self.kubectl("wait", "node", NODE, "--for=condition=Ready", "--timeout=90s")
            until("the GPUs of the node", lambda: self._allocatable("nvidia.com/gpu") == str(GPUS), 30)
        except (TimeoutError, RuntimeError) as error:
            raise RuntimeError(f"{error}\nkubelet's log:\n{self.processes['kubelet'].last_lines()}") from error

    def down(self) -> None:
        """Stop everything and leave nothing but the caches."""
        if KUBECONFIG.exists() and self.processes["kubelet"].pid():
            with contextlib.suppress(RuntimeError, TimeoutError):
                self.kubectl("delete", "pods", "--all", "-A", "--grace-period=0", "--force", "--wait=false")
        for name in ("kubelet", "kube-proxy", "kube-scheduler", "kube-controller-manager"):
            self.processes[name].kill()
        if self.processes["containerd"].pid():
            self._remove_containers()
        for process in self.processes.values():
            process.kill()
        machine.unmount_below(STATE)
        machine.unmount_below(CONTAINERD)
        machine.pods_networks_down()
        machine.network_down()
        _remove_cgroups("kubepods")
        until("the end of all processes", lambda: not machine.processes_of(STATE), 20)
        shutil.rmtree(STATE, ignore_errors=True)
        shutil.rmtree("/var/lib/cni/networks/kubealign", ignore_errors=True)
        if left := machine.leftovers():
            raise RuntimeError(f"left behind: {', '.join(left)}")

    def start(self, name: str) -> None:
        self.processes[name].start()

    def answers(self, port: int = 6443) -> bool:
        return machine.run(*_curl(f"https://{NODE_IP}:{port}/readyz")) == "ok"

    def start_bare(self) -> None:
        """A second API server, of a cluster that has no operator and no node."""
        self.start("bare-apiserver")
        until("the bare API server", lambda: self.answers(BARE_PORT), 60)
        BARE_KUBECONFIG.write_text(json.dumps(kubeconfig("admin-token", port=BARE_PORT)))

    def start_prometheus(self) -> None:
        self.start("prometheus")
        until("Prometheus", lambda: machine.run(*_curl(f"{PROMETHEUS}/-/ready")), 30)

    def compact(self) -> None:
        """Make etcd forget all but the present, as it does by itself every five minutes."""
        status = json.loads(machine.run(*_curl(f"{_ETCD}/v3/maintenance/status"), "-d", "{}"))
        forget = json.dumps({"revision": status["header"]["revision"]})
        machine.run(*_curl(f"{_ETCD}/v3/kv/compaction"), "-d", forget)

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 180) -> str:
        return machine.run(
            str(program("kubectl")), f"--kubeconfig={KUBECONFIG}", *arguments, input=input, timeout=timeout
        )

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: dict[str, Any], namespace: str = "default") -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("-n", namespace, "apply", "--server-side", "--force-conflicts", "-f", "-", input=text)

    def ctr(self, *arguments: str) -> str:
        return machine.run("ctr", "--address", str(SOCKET), "-n", "k8s.io", *arguments)

    def _has_registered(self) -> str:
        # It ends where containerd has not begun to serve pods yet; a machine's own supervisor would start it again.
        self.start("kubelet")
        return self.kubectl("get", "node", NODE)

    def _allocatable(self, resource: str) -> str:
        return self.get("node", NODE)["status"]["allocatable"].get(resource, "")

    def _remove_containers(self) -> None:
        for task in self.ctr("tasks", "list", "-q").split():
            with contextlib.suppress(RuntimeError):
                self.ctr("tasks", "kill", "-s", "SIGKILL", task)
        deadline = time.monotonic() + 20
        while (tasks := self.ctr("tasks", "list", "-q").split()) and time.monotonic() < deadline:
            for task in tasks:
                with contextlib.suppress(RuntimeError):
                    self.ctr("tasks", "delete", "--force", task)
        for container in self.ctr("containers", "list", "-q").split():
            with contextlib.suppress(RuntimeError):
                self.ctr("containers", "delete", container)


def _processes() -> list[Process]:
    kube = "--kubeconfig"
    return [
        Process("etcd", [
            "@etcd", "--data-dir", f"{STATE}/etcd", "--unsafe-no-fsync", "--listen-client-urls", _ETCD,
            "--advertise-client-urls", _ETCD, "--listen-peer-urls", "http://127.0.0.1:12380",
            "--log-level", "warn",
        ]),
        Process("kube-apiserver", _api_server(6443, "/registry")),
        Process("bare-apiserver", _api_server(BARE_PORT, "/bare")),
        Process("containerd", ["containerd", "--config", f"{STATE}/containerd.toml"]),
        Process("kube-controller-manager", [
            "@kube-controller-manager", kube, f"{STATE}/controller.kubeconfig", "--leader-elect=false",
            "--root-ca-file", f"{STATE}/certificates/apiserver.crt", "--use-service-account-credentials=false",
            "--service-account-private-key-file", f"{STATE}/keys/service-account.key",
        ]),
        Process("kube-scheduler", [
            "@kube-scheduler", kube, f"{STATE}/scheduler.kubeconfig", "--leader-elect=false",
        ]),
        Process("kubelet", [
            "@kubelet", kube, f"{STATE}/kubelet.kubeconfig", "--config", f"{STATE}/kubelet.json", "--root-dir",
            f"{STATE}/kubelet", "--hostname-override", NODE, "--node-ip", NODE_IP,
        ]),
        Process("kube-proxy", [
            "@kube-proxy", kube, f"{STATE}/proxy.kubeconfig", "--proxy-mode", "iptables", "--hostname-override", NODE,
            "--conntrack-max-per-core", "0", "--cluster-cidr", POD_NETWORK,
        ]),
        Process("coredns", ["@coredns", "-conf", f"{STATE}/Corefile"]),
        Process("s3", [
            "@versitygw", "--port", f"{NODE_IP}:{S3_PORT}", "--quiet", "--health", "/health", "posix", "--sidecar",
            f"{STATE}/sidecar", f"{STATE}/s3",
        ], env={"ROOT_ACCESS_KEY": S3_KEY, "ROOT_SECRET_KEY": S3_SECRET}),
        Process("prometheus", [
            "@prometheus", f"--config.file={STATE}/prometheus.yaml", f"--storage.tsdb.path={STATE}/prometheus",
            "--web.listen-address", f"{NODE_IP}:{PROMETHEUS_PORT}",
        ]),
    ]  # fmt: skip


def _api_server(port: int, prefix: str) -> list[str]:
    keys = STATE / "keys"
    return [
        "@kube-apiserver", "--etcd-servers", _ETCD, "--etcd-prefix", prefix, "--advertise-address", NODE_IP,
        "--bind-address", "0.0.0.0", "--secure-port", str(port), "--cert-dir", f"{STATE}/certificates",
        "--service-cluster-ip-range", SERVICE_NETWORK, "--authorization-mode", "Node,RBAC", "--token-auth-file",
        f"{STATE}/tokens.csv", "--service-account-issuer", "https://kubernetes.default.svc",
        "--service-account-key-file", f"{keys}/service-account.pub", "--service-account-signing-key-file",
        f"{keys}/service-account.key", "--allow-privileged", "--kubelet-preferred-address-types", "InternalIP",
    ]  # fmt: skip


def _write_settings() -> None:
    keys = STATE / "keys"
    keys.mkdir(exist_ok=True)
    if not (keys / "service-account.key").exists():
        machine.run("openssl", "genrsa", "-out", str(keys / "service-account.key"), "2048")
        machine.run(
            "openssl", "rsa", "-in", str(keys / "service-account.key"), "-pubout", "-out",
            str(keys / "service-account.pub"),
        )  # fmt: skip
    rows = [",".join(filter(None, (token, user, user, group))) for token, (user, group) in _TOKENS.items()]
    (STATE / "tokens.csv").write_text("\n".join(rows) + "\n")
    for folder in ("s3", "sidecar"):
        (STATE / folder).mkdir(exist_ok=True)
    cni = STATE / "cni"
    cni.mkdir(exist_ok=True)
    (cni / "10-kubealign.conflist").write_text(json.dumps(_CNI, indent=1))
    (STATE / "containerd.toml").write_text(_CONTAINERD)
    (STATE / "kubelet.json").write_text(json.dumps(_KUBELET, indent=1))
    (STATE / "Corefile").write_text(_COREFILE)
    (STATE / "prometheus.yaml").write_text(_PROMETHEUS)


def _write_kubeconfigs() -> None:
    names = {"admin": KUBECONFIG} | {
        name: STATE / f"{name}.kubeconfig" for name in ("kubelet", "controller", "scheduler", "proxy")
    }
    for name, path in names.items():
        path.write_text(json.dumps(kubeconfig(f"{name}-token")))
        path.chmod(0o600)


def kubeconfig(token: str, namespace: str = "default", port: int = 6443) -> dict[str, Any]:
    """A kubeconfig of the cluster for whoever has this token."""
    server = {"server": f"https://{NODE_IP}:{port}", "certificate-authority": f"{STATE}/certificates/apiserver.crt"}
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "kubealign",
        "clusters": [{"name": "kubealign", "cluster": server}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [
            {"name": "kubealign", "context": {"cluster": "kubealign", "user": "user", "namespace": namespace}}
        ],
    }  # fmt: skip


def _curl(url: str) -> list[str]:
    return ["curl", "-sS", "-m", "5", "--cacert", f"{STATE}/certificates/apiserver.crt", url]


def _remove_cgroups(name: str) -> None:
    for root in Path("/sys/fs/cgroup").glob(f"*/{name}"):
        for folder in sorted((f for f in root.rglob("*") if f.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            root.rmdir()


_CNI = {
    "cniVersion": "0.4.0",
    "name": "kubealign",
    "plugins": [
        {
            "type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": True, "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": POD_NETWORK, "rangeStart": "10.244.0.10"}]],
                     "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}  # fmt: skip

_CONTAINERD = f"""version = 2
root = "{CONTAINERD}"
state = "{STATE}/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = "{SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/kubealign-test/pause:1"
  # As root without CAP_SYS_RESOURCE nothing may be made less likely to be killed.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{STATE}/cni"
"""

_KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs",
    "cgroupRoot": "/",
    "clusterDNS": [NODE_IP],
    "clusterDomain": "cluster.local",
    "containerRuntimeEndpoint": f"unix://{SOCKET}",
    "enforceNodeAllocatable": [],
    "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    "failSwapOn": False,
    "imageGCHighThresholdPercent": 100,
    "localStorageCapacityIsolation": True,
    "oomScoreAdj": 0,
    "resolvConf": "",
    "volumeStatsAggPeriod": "5s",  # how soon a pod that has filled its volume is noticed
}

_COREFILE = f"""cluster.local:53 {{
  bind {NODE_IP}
  errors
  kubernetes cluster.local {{
    kubeconfig {KUBECONFIG}
  }}
  cache 5
}}
"""

_PROMETHEUS = f"""global:
  scrape_interval: 2s
scrape_configs:
  - job_name: steps
    kubernetes_sd_configs:
      - role: pod
        kubeconfig_file: {KUBECONFIG}
    relabel_configs:
      - source_labels: [__meta_kubernetes_pod_container_port_name]
        regex: metrics
        action: keep
      - source_labels: [__meta_kubernetes_pod_phase]
        regex: Succeeded|Failed
        action: drop
      - source_labels: [__meta_kubernetes_namespace]
        target_label: namespace
      - source_labels: [__meta_kubernetes_pod_name]
        target_label: pod
"""
