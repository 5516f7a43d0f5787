"""Processes, devices and precision: the same trainer code on a CPU, one GPU or many ranks."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from components.core.errors import LOST_PEER, RetryableError, UserError
from components.core.step import Step, peak_rss

_NOTICE_SECONDS = 5.0  # in which every rank whose collective failed has said so


@dataclass(frozen=True)
class Runtime:
    """This process among its peers."""

    rank: int
    world: int
    device: torch.device
    precision: str

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and arithmetic; master weights and moments are fp32 whatever it is."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any rank says so. Every rank must call it, so that all leave the loop at the same step."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item())

    def max(self, number: int) -> int:
        """The largest number of any rank."""
        if self.world == 1:
            return number
        largest = torch.tensor(number, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest.item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank, in rank order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def peak_rss(self) -> int:
        """Peak resident memory of all ranks together, in bytes."""
        return sum(self.gather(peak_rss()))


@contextlib.contextmanager
def running(step: Step, precision: str = "fp32") -> Iterator[Runtime]:
    """Join the other ranks that torchrun started, fetch inputs once a machine, and leave in good order."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    # A GPU kernel that adds in another order each time would make a resumed run differ.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # With it torch fills every new tensor, to show up reads before the first write: 5 % of an SFT step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if local_rank == 0:
        step.fetch_inputs()
    joins = world > 1 and not dist.is_initialized()
    patience = step.config.resources.collective_timeout_seconds
    runtime = Runtime(rank, world, device, precision)
    try:
        if joins:
            dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=patience))
        runtime.barrier()
        yield runtime
    except torch.OutOfMemoryError as error:
        raise UserError("GPU out of memory outside a training pass; lower micro_batch_tokens") from error
    except RuntimeError as error:
        if _of_shared_memory(error):
            what = f"/dev/shm is too small ({_first_line(error)})"
            raise UserError(what, fix="raise resources.shared_memory") from error
        if world > 1 and _of_a_peer(error):
            raise _explained(rank, world, patience, error) from error
        raise
    finally:
        # A group left open aborts the other ranks when this one exits first.
        if joins and dist.is_initialized():
            dist.destroy_process_group()


def limit_waiting(seconds: int) -> None:
    """Of every process group that there is now: a library's own wait for half an hour, whatever the first one does."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.set_timeout(timedelta(seconds=seconds), group)


def _of_a_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because of another rank, in the words of gloo, NCCL and the rendezvous store."""
    said = str(error).lower()
    signs = ("connection closed by peer", "connection reset by peer", "timed out", "timeout", "broken pipe", "aborted")
    return isinstance(error, dist.DistError) or (("gloo" in said or "nccl" in said) and any(s in said for s in signs))


def _of_shared_memory(error: RuntimeError) -> bool:
    """NCCL and torch name the file or the segment that did not fit."""
    said = str(error).lower()
    full = "no space left on device" in said or "cannot allocate memory" in said
    return full and ("/dev/shm" in said or "shared memory" in said)


def _first_line(error: RuntimeError) -> str:
    return str(error).splitlines()[0][:200]


def _explained(rank: int, world: int, patience: int, error: RuntimeError) -> RetryableError:
    """Whose fault it is: each rank that has noticed says so in the rendezvous store, and who is silent is stuck."""
    silent: list[int] = []
    last = _first_line(error)
    with contextlib.suppress(Exception):  # the store may be gone too
        notes = dist.distributed_c10d._get_default_store()
        notes.set(f"kubealign/lost/{rank}", "1")
        if "time" in last.lower():  # else the connection broke, and the peer is gone rather than silent
            time.sleep(_NOTICE_SECONDS)
            silent = [other for other in range(world) if not notes.check([f"kubealign/lost/{other}"])]
    if not silent:
        return RetryableError(f"{LOST_PEER} ({last})", fix="another rank's log says why")
    names = ", ".join(map(str, silent))
    return RetryableError(
        f"rank {names} of {world} did not answer for {patience} s",
        fix="see its pod's log, or raise resources.collective_timeout_seconds",
    )
