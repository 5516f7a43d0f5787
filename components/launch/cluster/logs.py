"""Rank 0's log in the launcher's own, attached again whenever the connection is lost. It never fails a job."""

import logging
import math
import sys
import threading
import time

from components.core.errors import KubealignError
from components.launch.cluster.api import Api, Missing, Query

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0
_DRAIN_SECONDS = 10.0
_SILENCE_SECONDS = 300.0  # then the connection may be dead; it is made again, and no line is lost or said twice
_OVERLAP_SECONDS = 10  # asked for again after a gap; what was seen is left out by its time stamp


class LogStream:
    """Follows one container, from its first line; `attach` names the pod once it runs, and again when it is another."""

    def __init__(self, api: Api, container: str) -> None:
        self._api, self._container = api, container
        self._pod = ("", "")  # name and uid, of the pod to follow
        self._read_pod = self._pod  # whose log the next two are about
        self._last = ""  # time stamp of the last line, to the nanosecond
        self._last_at = math.nan
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def attach(self, name: str, uid: str) -> None:
        """Follow this pod's log: the first one's, and after a preemption that of the one in its place."""
        self._pod = (name, uid)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Print what is left, for a few seconds at most."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_DRAIN_SECONDS)

    def _run(self) -> None:
        gone, said = ("", ""), ""
        while True:
            last_round, pod = self._ended.is_set(), self._pod
            try:
                if pod != gone:
                    self._read(pod)
            except Missing:  # deleted; or another of this name, that has not begun yet
                gone = pod
            except (KubealignError, OSError, ValueError) as error:
                log.log(logging.DEBUG if str(error) == said else logging.INFO, "log of %s: %s", pod[0], error)
                said = str(error)
            if last_round:
                return
            self._ended.wait(_PAUSE_SECONDS)

    def _read(self, pod: tuple[str, str]) -> None:
        if pod != self._read_pod:
            self._read_pod, self._last, self._last_at = pod, "", math.nan
        query: Query = {"container": self._container, "follow": not self._ended.is_set(), "timestamps": True}
        if not math.isnan(self._last_at):
            query["sinceSeconds"] = math.ceil(time.monotonic() - self._last_at) + _OVERLAP_SECONDS
        for line in self._api.lines("get", log_path(self._api, pod[0]), query, _SILENCE_SECONDS):
            stamp, _, text = line.decode(errors="replace").partition(" ")
            if stamp <= self._last:
                continue
            self._last, self._last_at = stamp, time.monotonic()
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def last_lines(api: Api, pod: str, container: str, count: int = 100) -> list[str]:
    """The end of a container's log; empty where it cannot be read."""
    query: Query = {"container": container, "tailLines": count}
    try:
        return [line.decode(errors="replace") for line in api.lines("get", log_path(api, pod), query, _DRAIN_SECONDS)]
    except (Missing, KubealignError) as error:
        log.info("log of %s: %s", pod, error)
        return []


def log_path(api: Api, pod: str) -> str:
    return f"/api/v1/namespaces/{api.namespace}/pods/{pod}/log"
