"""What goes wrong inside a job's pods: said in one line that names the option, and nothing is left over."""

import os
import signal
from pathlib import Path

import pytest

from tests.cluster.conftest import Place, nothing_left
from tests.cluster.harness import images, machine
from tests.cluster.harness.processes import until
from tests.cluster.test_jobs import LONG, SHORT, TWO_PODS, inputs, same, wait_for_checkpoint, whole

__all__ = ["inputs", "whole"]

SFT = f"{images.PREFIX}/sft:{images.TAG}"
WRONG_CLOCK, FILLS_SHARED_MEMORY = "localhost/kubealign-test/wrong-clock:1", "localhost/kubealign-test/fills-shm:1"

# What NCCL and data loaders do on a GPU node: nothing on a CPU writes to /dev/shm, so this stands in for them.
FILLING = """
import mmap, os
if "LOCAL_RANK" in os.environ:
    with open("/dev/shm/segment", "wb+") as file:
        file.truncate(64 << 20)
        mmap.mmap(file.fileno(), 64 << 20).write(bytes(64 << 20))
"""


@pytest.fixture(scope="module")
def wrong_clock(cluster) -> str:
    """An image whose processes live two hours ahead."""
    library = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
    machine.install({"libfaketime": str(library)})
    environment = {"LD_PRELOAD": "/opt/libfaketime.so.1", "FAKETIME": "+2h"}
    images.derived(WRONG_CLOCK, SFT, {"/opt/libfaketime.so.1": library}, environment)
    images.load(cluster, WRONG_CLOCK)
    return WRONG_CLOCK


@pytest.fixture(scope="module")
def fills_shared_memory(cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image whose ranks write 64 MiB to /dev/shm before anything else."""
    path = tmp_path_factory.mktemp("fills") / "sitecustomize.py"
    path.write_text(FILLING)
    path.chmod(0o644)
    images.derived(FILLS_SHARED_MEMORY, SFT, {"/opt/kubealign/sitecustomize.py": path})
    images.load(cluster, FILLS_SHARED_MEMORY)
    return FILLS_SHARED_MEMORY


def ranks(place: Place, output: str) -> dict[int, int]:
    """Rank -> its process's id on this machine, where pods run."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:  # it has ended
            continue
        variables = dict(text.partition("=")[::2] for text in environment.decode(errors="replace").split("\0"))
        if f"{place.root}/{output}/spec.json".encode() in command and "RANK" in variables and "LOCAL_RANK" in variables:
            found[int(variables["RANK"])] = int(folder.name)
    return found


@pytest.mark.alone  # on a machine that is busy, ranks start further apart than the limit
def test_rank_that_hangs_is_named_and_the_step_goes_on(place: Place, inputs, whole) -> None:
    launcher = place.step("sft", "out", inputs, *TWO_PODS, *LONG, "resources.collective_timeout_seconds=15")
    wait_for_checkpoint(place, "out", 20)
    os.kill(ranks(place, "out")[1], signal.SIGSTOP)
    launcher.wait_for("rank 1 of 2 did not answer for 15 s.*; starting again from the last checkpoint", 90)
    assert launcher.end() == 0, launcher.output
    same(place, "out", whole)
    nothing_left(place, 60)  # the stopped process is killed at the end of its pod's grace


def test_wrong_clock_is_named(place: Place, inputs, wrong_clock: str) -> None:
    launcher = place.step("sft", "out", inputs, *SHORT, f"resources.image={wrong_clock}")
    assert launcher.end(90) == 1, launcher.output
    assert "RequestTimeTooSkewed" in launcher.last and "clock" in launcher.last, launcher.output
    nothing_left(place)


def test_too_little_disk_names_the_option(place: Place, inputs) -> None:
    launcher = place.step("sft", "out", inputs, *LONG, "steps=100000", "resources.disk=100Ki")
    assert launcher.end(180) == 1, launcher.output
    assert 'EmptyDir volume "scratch" exceeds the limit "100Ki"; raise resources.disk' in launcher.last
    assert len(place.get("pytorchjobs")) == 1
    nothing_left(place)


@pytest.mark.parametrize("processes", [1, 2])
def test_too_little_shared_memory_names_the_option(
    place: Place, inputs, fills_shared_memory: str, processes: int
) -> None:
    changes = (f"resources.image={fills_shared_memory}", "resources.shared_memory=16Mi")
    launcher = place.step("sft", "out", inputs, *SHORT, *changes, f"resources.processes={processes}")
    assert launcher.end(90) == 1, launcher.output
    assert "SIGBUS" in launcher.last and "raise resources.shared_memory" in launcher.last, launcher.output
    assert len(place.get("pytorchjobs")) == 1
    nothing_left(place)


def test_enough_shared_memory_is_enough(place: Place, inputs, fills_shared_memory: str) -> None:
    changes = (f"resources.image={fills_shared_memory}", "resources.shared_memory=128Mi")
    launcher = place.step("sft", "out", inputs, *SHORT, *changes)
    assert launcher.end(90) == 0, launcher.output


def test_running_time_limit_is_enforced(place: Place, inputs) -> None:
    """The operator's own limit never comes to an end by itself."""
    launcher = place.step("sft", "out", inputs, *LONG, "steps=100000", "resources.running_timeout_seconds=10")
    assert launcher.end(90) == 1, launcher.output
    assert "ran for longer than 10 s" in launcher.last and "resources.running_timeout_seconds" in launcher.last
    assert place.get("pytorchjobs") == []
    until("the pods' end", lambda: place.get("pods") == [], 30)
