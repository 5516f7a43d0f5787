"""Programs that the tests need, built once from the pinned Go modules in tests/tools.

`go.sum` pins every source by hash. Finished programs are kept by those pins in `~/.cache/kubealign/bin`
(KUBEALIGN_CACHE names another place), so that a second clone on the same machine builds nothing.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).parent / "tools"
CACHE = Path(os.environ.get("KUBEALIGN_CACHE") or Path.home() / ".cache" / "kubealign")
_BUILD_SECONDS = 2400


class CannotBuild(Exception):
    """The program is not there and cannot be made; says why."""


@dataclass(frozen=True)
class Module:
    """One folder of tests/tools: the program's name -> the package that it is made from."""

    packages: dict[str, str]
    ldflags: str = ""
    tags: str = ""


_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet")
_VERSION = "k8s.io/component-base/version"

MODULES = {
    "coredns": Module({"coredns": "github.com/coredns/coredns"}),
    "etcd": Module({"etcd": "go.etcd.io/etcd/server/v3"}),
    "jobset": Module({"jobset": "sigs.k8s.io/jobset"}),
    "kubernetes": Module(
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES},
        ldflags=f"-X {_VERSION}.gitVersion=v1.34.4 -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=34",
    ),
    "kueue": Module({"kueue": "sigs.k8s.io/kueue/cmd/kueue"}),
    "pause": Module({"pause": "kubealign.local/tests/pause"}),
    "prometheus": Module(
        {"prometheus": "github.com/prometheus/prometheus/cmd/prometheus"}, tags="remove_all_sd,enable_kubernetes_sd"
    ),
    "trainer": Module({"trainer": "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager"}),
    "training-operator": Module(
        {"training-operator": "github.com/kubeflow/training-operator/cmd/training-operator.v1"}
    ),
    "versitygw": Module({"versitygw": "github.com/versity/versitygw/cmd/versitygw"}),
}


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time; the others wait."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def program(name: str) -> Path:
    """The program's path; builds its module where it is not there. One process builds, others wait for the lock."""
    label, module = next((label, module) for label, module in MODULES.items() if name in module.packages)
    folder = CACHE / "bin" / f"{label}-{_pins(label)}"
    if not (folder / name).exists():
        with locked(label):
            if not (folder / name).exists():
                _build(label, module, folder)
    return folder / name


def source(label: str, package: str) -> Path:
    """The folder of a module's own source (manifests lie beside the code)."""
    found = _go(["list", "-m", "-f", "{{.Dir}}", package], label)
    if not found.strip():
        _go(["mod", "download", package], label)
        found = _go(["list", "-m", "-f", "{{.Dir}}", package], label)
    return Path(found.strip())


def _pins(label: str) -> str:
    folder, module = TOOLS / label, MODULES[label]
    digest = hashlib.sha256(f"{module}".encode())
    for path in sorted(folder.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _build(label: str, module: Module, folder: Path) -> None:
    print(f"building {', '.join(module.packages)} ...", flush=True)
    started = time.monotonic()
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name, package in module.packages.items():
        flags = ["-trimpath", "-ldflags", f"-s -w {module.ldflags}".strip(), "-tags", module.tags]
        _go(["build", "-mod=readonly", *flags, "-o", str(draft / name), package], label)
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)


def _go(arguments: list[str], label: str) -> str:
    if shutil.which("go") is None:
        raise CannotBuild("there is no Go on PATH to build it with")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    done = subprocess.run(
        ["go", *arguments], cwd=TOOLS / label, env=environment, capture_output=True, text=True, timeout=_BUILD_SECONDS,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise CannotBuild(f"go {' '.join(arguments[:2])} failed in {TOOLS / label}:\n{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    import sys

    for wanted in sys.argv[1:] or [name for module in MODULES.values() for name in module.packages]:
        print(program(wanted))
