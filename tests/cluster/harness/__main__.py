"""`python -m tests.cluster.harness up | down`: the test cluster by hand, to look at what the tests see."""

import argparse
import time

from tests.cluster.harness import images, operators
from tests.cluster.harness.cluster import KUBECONFIG, Cluster
from tests.cluster.harness.machine import CannotRun
from tests.programs import CannotBuild


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.harness", description=__doc__)
    parser.add_argument("what", choices=["up", "down"])
    what = parser.parse_args().what
    cluster = Cluster()
    try:
        if what == "down":
            cluster.down()
        else:
            up(cluster)
            print(f"up; KUBECONFIG={KUBECONFIG}")
    except (CannotRun, CannotBuild) as error:
        print(f"error: no cluster: {error}")
        return 1
    return 0


def up(cluster: Cluster) -> None:
    """The cluster with the training operator and every image of the project."""
    with _timed("control plane"):
        images.from_program(images.PAUSE, "pause", path="/pause")
        cluster.up()
        images.load(cluster, images.PAUSE)
    with _timed("images"):
        images.load(cluster, images.BASE, *images.build(*images.targets()))
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
