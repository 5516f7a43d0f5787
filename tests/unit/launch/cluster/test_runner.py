"""A launcher that is told to stop in the middle of something."""

import os
import signal
import threading
from typing import Any

import pytest

from components.core.errors import Cancelled
from components.launch.cluster import runner
from components.launch.cluster.pytorchjob import PyTorchJob
from components.launch.cluster.runner import ClusterBackend
from components.launch.cluster.settings import Settings
from tests.unit.launch.cluster.test_janitor import Server


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ClusterBackend:
    server = Server()
    monkeypatch.setattr(runner, "Api", lambda namespace: server)
    return ClusterBackend(PyTorchJob(), Settings("ns"))


def test_signal_within_the_start_of_a_thread_is_a_cancellation(
    backend: ClusterBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thread.start's own clean-up turns what a handler raises into a KeyError: seen on a cluster."""

    started: Any = threading._start_new_thread  # type: ignore[attr-defined]

    def interrupted(*given: Any) -> None:
        started(*given)
        thread._started.wait()  # type: ignore[attr-defined]
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=threading.Event().wait, args=(0,))
    monkeypatch.setattr(threading, "_start_new_thread", interrupted)
    with pytest.raises(Cancelled, match="sft was cancelled"), backend._stopped_by_signals("sft"):
        thread.start()
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_errors_stay_what_they_are(backend: ClusterBackend) -> None:
    with pytest.raises(KeyError, match="mine"), backend._stopped_by_signals("sft"):
        raise KeyError("mine")
