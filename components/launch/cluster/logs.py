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
_OVERLAP_SECONDS = 10  # asked for again after a gap; what was seen is left out by its time stamp


class LogStream:
    """Follows one container from its first line; `attach` names the pod once it runs."""

    def __init__(self, api: Api, container: str) -> None:
        self._api, self._container = api, container
        self._last = ""  # time stamp of the last line, to the nanosecond
        self._last_at = math.nan
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._pod = ""

    def attach(self, pod: str) -> None:
        """Follow this pod's log, if not yet done."""
        if self._thread is None:
            self._pod = pod
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Print what is left, for a few seconds at most."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_DRAIN_SECONDS)

    def _run(self) -> None:
        while True:
            last_round = self._ended.is_set()
            try:
                self._read()
            except Missing:
                return
            except (KubealignError, OSError, ValueError) as error:
                log.info("log of %s: %s; attaching again", self._pod, error)
            if last_round:
                return
            self._ended.wait(_PAUSE_SECONDS)

    def _read(self) -> None:
        path = f"/api/v1/namespaces/{self._api.namespace}/pods/{self._pod}/log"
        query: Query = {"container": self._container, "follow": not self._ended.is_set(), "timestamps": True}
        if not math.isnan(self._last_at):
            query["sinceSeconds"] = math.ceil(time.monotonic() - self._last_at) + _OVERLAP_SECONDS
        for line in self._api.lines("get", path, query):
            stamp, _, text = line.decode(errors="replace").partition(" ")
            if stamp <= self._last:
                continue
            self._last, self._last_at = stamp, time.monotonic()
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
