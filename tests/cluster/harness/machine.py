"""What the machine must offer, and what is set up on it and taken down again: packages, a bridge, mounts."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.programs import CACHE

STATE = CACHE / "cluster"  # of the running cluster; gone after cluster-down
CONTAINERD = CACHE / "containerd"  # imported images; a cache
BRIDGE = "kubealign0"
NODE_IP = "10.244.0.1"  # of the bridge: the node, the API server, the name server and the S3 server
POD_NETWORK = "10.244.0.0/24"
SERVICE_NETWORK = "10.96.0.0/16"

_TABLES = ("filter", "nat", "mangle")

# Debian's package -> a program that it brings.
_PACKAGES = {
    "buildah": "buildah", "conntrack": "conntrack", "containerd": "containerd",
    "containernetworking-plugins": "/usr/lib/cni/bridge", "debootstrap": "debootstrap", "ipset": "ipset",
    "iproute2": "ip", "iptables": "iptables", "runc": "runc",
}  # fmt: skip


class CannotRun(Exception):
    """This machine cannot have a cluster; says why."""


def check() -> None:
    """Raises CannotRun where a cluster is out of the question."""
    if os.geteuid() != 0:
        raise CannotRun("only root can run containers and set up a network")
    if shutil.which("go") is None:
        raise CannotRun("there is no Go on PATH to build Kubernetes with")
    if shutil.which("apt-get") is None and _missing():
        raise CannotRun(f"needs {', '.join(_missing())}, and this is no Debian to install them on")


def free_disk() -> float:
    """GiB left where the caches are."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(CACHE).free / 2**30


def install(packages: dict[str, str] = _PACKAGES) -> None:
    """Debian's packages (name -> a file that it brings), where they are missing."""
    if missing := _missing(packages):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", "-q", env=environment)
        # Its service would start a containerd of its own; only the program is wanted.
        run("apt-get", "install", "-yq", "--no-install-recommends", *missing, env=environment)


def _missing(packages: dict[str, str] = _PACKAGES) -> list[str]:
    return [name for name, found in packages.items() if shutil.which(found) is None and not Path(found).is_file()]


def network_up() -> None:
    if not Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "replace", f"{NODE_IP}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for setting in ("ipv4/ip_forward", "bridge/bridge-nf-call-iptables"):
        with contextlib.suppress(OSError):  # no br_netfilter: then the bridge does not call iptables, which is fine
            Path("/proc/sys/net", setting).write_text("1")


def network_down() -> None:
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "delete", BRIDGE)
    # Rules of kube-proxy and of the CNI plug-ins name themselves.
    for table in _TABLES:
        saved = run("iptables-save", "-t", table).splitlines()
        kept = [line for line in saved if not _of_cluster(line)]
        if kept != saved:
            subprocess.run(["iptables-restore"], input="\n".join(kept) + "\n", text=True, check=True)


def _of_cluster(rule: str) -> bool:
    return any(mark in rule for mark in ("KUBE-", "CNI-", POD_NETWORK))


def unmount_below(folder: Path) -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        run("umount", "-l", mount)


def pods_networks_down() -> None:
    """The network namespaces that the CNI left behind; only those that a plug-in of ours named."""
    for found in Path("/run/netns").glob("cni-*"):
        subprocess.run(["ip", "netns", "delete", found.name], check=False, capture_output=True)


def processes_of(folder: Path) -> list[int]:
    """The ids of processes that were started with something in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{folder}/".encode() in (process / "cmdline").read_bytes() and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


def leftovers() -> list[str]:
    """What a cluster that is down should have taken with it."""
    rules = [line for table in _TABLES for line in run("iptables-save", "-t", table).splitlines() if _of_cluster(line)]
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [
        *(f"the bridge {BRIDGE}" for _ in range(Path(f"/sys/class/net/{BRIDGE}").exists())),
        *(f"the rule {rule}" for rule in rules),
        *(f"the mount {mount}" for mount in mounts if mount.startswith((f"{STATE}/", f"{CONTAINERD}/"))),
        *(f"the network namespace {path.name}" for path in Path("/run/netns").glob("cni-*")),
        *(f"the control group {path}" for path in Path("/sys/fs/cgroup").glob("*/kubepods")),
        *(f"process {number}" for number in processes_of(STATE)),
    ]


def run(*command: str, env: dict[str, str] | None = None, input: str | None = None, timeout: float = 600) -> str:
    """A command's output; raises RuntimeError with its last words where it fails."""
    done = subprocess.run(command, env=env, input=input, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)[:200]} failed ({done.returncode}): {(done.stderr or done.stdout)[-1500:]}"
        )
    return done.stdout
