"""What a failed collective means: a peer that is gone is worth another attempt, anything else is not excused."""

import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest
import torch

from components.core.errors import LOST_PEER, RetryableError
from components.core.spec import make_spec
from components.core.step import Step
from components.training import runtime

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.244.0.11]:12345"


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        (GLOO, True),
        ("[gloo/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete", True),
        ("NCCL communicator was aborted on rank 1.", True),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
        ("a file timed out", False),
    ],
)
def test_messages_of_a_lost_peer(said: str, lost: bool) -> None:
    assert runtime._of_a_peer(RuntimeError(said)) is lost


NCCL = "NCCL error in: ProcessGroupNCCL.cpp:3, unhandled system error. Last error:\nError while creating shared memory \
segment /dev/shm/nccl-2yWdUF (size 9637888), error: No space left on device (28)"


@pytest.mark.parametrize(
    ("said", "full"),
    [
        (NCCL, True),
        ("unable to allocate shared memory(shm) for file </torch_1_2>: Cannot allocate memory (12)", True),
        (GLOO, False),
        ("No space left on device: a checkpoint", False),
    ],
)
def test_full_shared_memory_is_no_lost_peer(said: str, full: bool) -> None:
    assert runtime._of_shared_memory(RuntimeError(said)) is full


def rank(number: int, port: int, folder: Path, own_group: bool = False) -> None:
    """Two ranks of sft with a patience of a second; rank 1 stops for good, as a hanging driver would."""
    runtime._NOTICE_SECONDS = 0.5
    os.environ |= {"RANK": str(number), "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    config = {"resources": {"processes": 2, "collective_timeout_seconds": 2}}
    spec = make_spec("sft", run="r", seed=0, config=config, inputs={}, output=str(folder))
    try:
        with runtime.running(Step(spec)) as joined:
            group = torch.distributed.new_group() if own_group else None
            runtime.limit_waiting(2)
            if number == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            if own_group:
                torch.distributed.all_reduce(torch.ones(1), group=group)
            joined.sum(torch.ones(1))
    except RetryableError as error:
        (folder / f"said-{number}").write_text(str(error))


def run_ranks(folder: Path, by: signal.Signals, own_group: bool = False) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank, args=(number, port, folder, own_group)) for number in range(2)]
    for process in ranks:
        process.start()
    try:
        if by != signal.SIGSTOP:
            assert ranks[1].pid is not None
            os.waitid(os.P_PID, ranks[1].pid, os.WSTOPPED | os.WNOWAIT)
            os.kill(ranks[1].pid, by)
        ranks[0].join(60)
        assert ranks[0].exitcode == 0
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return (folder / "said-0").read_text()


@pytest.mark.parametrize("own_group", [False, True], ids=["first group", "DeepSpeed's group"])
def test_rank_that_hangs_is_named(tmp_path: Path, own_group: bool) -> None:
    assert "rank 1 of 2 did not answer for 2 s" in run_ranks(tmp_path, signal.SIGSTOP, own_group)


def test_rank_that_dies_is_a_lost_connection(tmp_path: Path) -> None:
    assert LOST_PEER in run_ranks(tmp_path, signal.SIGKILL)
