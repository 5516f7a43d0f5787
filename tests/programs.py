"""Programs that the tests need, built once from the pinned Go modules in tests/tools.

`go.sum` pins every source by hash. Finished programs are kept by those pins in `~/.cache/kubealign/bin`
(KUBEALIGN_CACHE names another place), so that a second clone on the same machine builds nothing.
"""

import contextlib
import fcntl
import functools
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
    """One folder of tests/tools: the program's name -> the package that it is made from.

    Programs that stand on the same libraries share a module, so that these are compiled once.
    """

    packages: dict[str, str]
    ldflags: str = ""
    tags: str = ""


_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet")
_VERSION = "k8s.io/component-base/version"

MODULES = {
    "helm": Module({"helm": "helm.sh/helm/v4/cmd/helm", "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform"}),
    "kubernetes": Module(
        {
            **{name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES},
            "etcd": "go.etcd.io/etcd/server/v3",
            "coredns": "kubealign.local/tests/kubernetes/coredns",
            "kueue": "sigs.k8s.io/kueue/cmd/kueue",
        },
        ldflags=f"-X {_VERSION}.gitVersion=v1.34.4 -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=34",
    ),
    "operators": Module(
        {
            "training-operator": "github.com/kubeflow/training-operator/cmd/training-operator.v1",
            "jobset": "sigs.k8s.io/jobset",
            "trainer": "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager",
        }
    ),
    "pause": Module({"pause": "kubealign.local/tests/pause"}),
    "prometheus": Module(
        {"prometheus": "github.com/prometheus/prometheus/cmd/prometheus"}, tags="remove_all_sd,enable_kubernetes_sd"
    ),
    "versitygw": Module({"versitygw": "github.com/versity/versitygw/cmd/versitygw"}),
}
CLUSTER = (*_KUBERNETES, "etcd", "coredns", "versitygw", "pause", "training-operator")
"""What every cluster of the tests runs; the rest is built when a test wants it."""


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time; the others wait."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def program(name: str) -> Path:
    """The program's path; builds it where it is not there. One process builds, others wait for the lock."""
    label, module = next((label, module) for label, module in MODULES.items() if name in module.packages)
    path = CACHE / "bin" / f"{label}-{_pins(label)}" / name
    if not path.exists():
        with locked(label):
            if not path.exists():
                _build(label, module, path)
    return path


def source(label: str, package: str) -> Path:
    """The folder of a module's own source (manifests lie beside the code)."""
    found = _go(["list", "-m", "-f", "{{.Dir}}", package], label)
    if not found.strip():
        _go(["mod", "download", package], label)
        found = _go(["list", "-m", "-f", "{{.Dir}}", package], label)
    return Path(found.strip())


@functools.cache
def _pins(label: str) -> str:
    folder, module = TOOLS / label, MODULES[label]
    digest = hashlib.sha256(f"{module}".encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _build(label: str, module: Module, path: Path) -> None:
    print(f"building {path.name} ...", flush=True)
    started = time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    flags = ["-trimpath", "-ldflags", f"-s -w {module.ldflags}".strip(), "-tags", module.tags]
    # Compiled in a third less time: no inlining, no debug data. These programs are built more than they run.
    flags += ["-gcflags", "all=-l -dwarf=false"]
    _go(["build", "-mod=readonly", *flags, "-o", str(draft), module.packages[path.name]], label)
    draft.replace(path)
    print(f"built {path.name} in {time.monotonic() - started:.0f} s", flush=True)


def _go(arguments: list[str], label: str) -> str:
    if shutil.which("go") is None:
        raise CannotBuild("there is no Go on PATH to build it with")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off", "GOGC": "800"}
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
