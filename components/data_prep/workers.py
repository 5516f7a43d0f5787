"""Units mapped on all cores: the same units in the same order, whatever the number of processes."""

import gc
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

from components.core.chatml import ChatTokenizer
from components.core.config import DataPrepConfig
from components.data_prep.labellers import labellers
from components.data_prep.mapping import Mapped, Mapper
from components.data_prep.units import Unit

_mapper: Mapper | None = None


def make_mapper(config: DataPrepConfig, model: Path, data_root: str, work: Path) -> Mapper:
    return Mapper(config, ChatTokenizer.load(model), data_root, labellers(config, work))


def map_units(
    units: Iterator[Unit], config: DataPrepConfig, model: Path, data_root: str, work: Path, processes: int
) -> Iterator[Mapped]:
    """The units' results in their order. Few units are not worth a process of their own.

    No more than two units a process are under way, so that memory does not grow with the input.
    """
    first = list(islice(units, 2))
    given = (config, model, data_root, work)
    if processes == 1 or len(first) < 2:
        yield from map(make_mapper(*given).map, chain(first, units))
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start, initargs=given)
    under_way: deque[Future[Mapped]] = deque()
    try:
        under_way.extend(pool.submit(_map, unit) for unit in first)
        make_mapper(*given)  # while they start: what it refuses, it says here, where somebody reads it
        for unit in units:
            under_way.append(pool.submit(_map, unit))
            if len(under_way) >= 2 * processes:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(config: DataPrepConfig, model: Path, data_root: str, work: Path) -> None:
    global _mapper
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to act on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    seldom_collect()
    _mapper = make_mapper(config, model, data_root, work)


def seldom_collect() -> None:
    """For processes that do nothing but handle rows: these are trees, which end with their last reference. Looking for
    cycles after each 700 objects, as Python does, takes a quarter of what a row costs beside its tokens."""
    gc.freeze()
    gc.set_threshold(200_000)


def _end_with_parent() -> None:
    """A parent that is killed cannot shut its pool down."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _map(unit: Unit) -> Mapped:
    assert _mapper is not None
    return _mapper.map(unit)
