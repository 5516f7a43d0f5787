"""`python -m tests.cluster.harness up | down | test`: the test cluster by hand, or for as long as its tests run."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cluster.harness import images, machine, operators
from tests.cluster.harness.cluster import KUBECONFIG, Cluster
from tests.cluster.harness.machine import CannotRun
from tests.programs import CACHE, CLUSTER, CannotBuild, program

HERE = Path(__file__).resolve().parents[1]
HOUSE = HERE.parents[1]
FAILED = "KUBEALIGN_FAILED"  # where conftest.py writes the names of tests that failed
SHARED = "KUBEALIGN_SHARED"  # a folder for what several runs of pytest make only once
_OPTIONAL = ("trainer", "jobset", "kueue", "prometheus", "helm")  # of some tests
_WORKERS = 2  # of two cores; while one waits for a time limit, the other works
# GiB: images built anew take 7, on their way to containerd another 7, there 13.
_DISK = 27
# The longest first, so that nobody waits for them at the end.
_ORDER = ("test_end_to_end.py", "test_jobs.py", "test_gpus.py", "test_end_to_end_trainjob.py", "test_trainjob.py")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.harness", description=__doc__)
    parser.add_argument("what", choices=["up", "down", "test"])
    parser.add_argument("options", nargs="*", help="of pytest, after --")
    given = parser.parse_args()
    cluster = Cluster()
    try:
        if given.what == "test":
            return test(cluster, given.options)
        if given.what == "down":
            cluster.down()
        else:
            up(cluster)
            print(f"up; KUBECONFIG={KUBECONFIG}")
    except (CannotRun, CannotBuild) as error:
        print(f"error: no cluster: {error}")
        return 1
    return 0


def test(cluster: Cluster, options: list[str]) -> int:
    """The tests side by side, what failed of them once more, and those that must be alone; 0 where all passed.

    The cluster goes with them unless it was up before.
    """
    was_up = cluster.is_up()
    found = sorted(path.name for path in HERE.glob("test_*.py"))
    files = [str(HERE / name) for name in (*_ORDER, *(name for name in found if name not in _ORDER))]
    pytest = [sys.executable, "-m", "pytest", "-q", "--durations=15", *options]
    workers = ["-n", str(_WORKERS), "--dist", "loadfile", "--no-loadscope-reorder"]
    try:
        machine.check()
    except CannotRun:
        return subprocess.call([*pytest, *files])  # every test says why it cannot run
    try:
        up(cluster, *_OPTIONAL)
        # Not while tests run, whose jobs their webhooks would refuse.
        for install in (operators.trainer, operators.kueue):
            with _timed(install.__name__):
                install(cluster)
        with tempfile.TemporaryDirectory() as shared:
            failed = Path(shared, "failed")
            environment = {**os.environ, SHARED: shared}
            with _timed("tests side by side"):
                code = subprocess.call(
                    [*pytest, "-m", "not alone", *workers, *files], cwd=HOUSE, env={**environment, FAILED: str(failed)}
                )
            again = sorted(set(failed.read_text().splitlines())) if failed.exists() else []
            if code == 1 and again:
                # Side by side is for speed alone: a time limit that two cores cannot keep for two is no defect.
                print(f"once more, alone: {', '.join(again)}", flush=True)
                code = subprocess.call([*pytest, *again], cwd=HOUSE, env=environment)
            with _timed("tests alone"):
                return subprocess.call([*pytest, "-m", "alone", *files], cwd=HOUSE, env=environment) or code
    finally:
        if not was_up:
            cluster.down()


def up(cluster: Cluster, *optional: str) -> None:
    """The cluster with the training operator and every image of the project; more programs are built where named."""
    with _timed("packages"):
        machine.check()
        machine.install()
    if machine.free_disk() < _DISK and not cluster.is_up():
        shutil.rmtree(machine.CONTAINERD, ignore_errors=True)  # images are in buildah's store too
    try:
        with ThreadPoolExecutor(max_workers=1) as builder:
            # Packing images keeps one core busy at most; meanwhile the other one compiles.
            programs = builder.submit(lambda: [program(name) for name in (*CLUSTER, *optional)])
            with _timed("images"):
                ours = images.build(*images.targets())
            with _timed("programs"):
                programs.result()
        with _timed("control plane"):
            images.from_program(images.PAUSE, "pause", path="/pause")
            cluster.up()
        with _timed("images into containerd"):
            images.load(cluster, images.PAUSE, images.BASE, *ours)
    except RuntimeError as error:
        if machine.free_disk() < 1:
            raise CannotRun(
                f"the disk is full; images with nothing cached need {_DISK} GiB: make room, or name another place in "
                f"KUBEALIGN_CACHE (now {CACHE})"
            ) from error
        raise
    with _timed("training operator"):
        operators.training_operator(cluster)


class _timed:
    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        print(f"{self.what}: {time.monotonic() - self.started:.0f} s", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
