"""Objects as they change, whatever happens to the connection: list, watch, list again."""

import json
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from components.core.errors import RetryableError
from components.launch.cluster.api import Api, Expired, Query

log = logging.getLogger(__name__)

_WATCH_SECONDS = 240  # then the server ends the watch and we go on from where it was
_SILENCE_SECONDS = 300.0  # a connection that is silent for longer than its watch is dead
_LONGEST_PAUSE = 15.0

Told = Callable[[str, dict[str, Any]], None]


class Watch:
    """Tells of every object of a kind: at first, at every change, and all of them again after a gap.

    `told(change, object)`, in a thread of the watch's own: ADDED, MODIFIED, DELETED, or LISTED with the whole list.
    """

    def __init__(self, api: Api, path: str, query: Query, told: Told) -> None:
        self._api, self._path, self._query, self._told = api, path, query, told
        self._plural = path.rpartition("/")[2]
        self._version = ""  # of what was seen last; a watch goes on from there, until the server has forgotten it
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def _run(self) -> None:
        pause = 0.5
        while not self._stopped.is_set():
            started = time.monotonic()
            try:
                if not self._version:
                    self._list()
                self._watch()
            except Expired:
                log.info("the API server no longer knows what %s were when last seen; listing again", self._plural)
                self._version = ""
            except RetryableError as error:
                log.warning("%s; the job goes on, trying again", error)
            except Exception:  # the polling beside us says what is wrong, and this thread must not die of it
                log.debug("watch of %s failed", self._path, exc_info=True)
                self._version = ""
            if time.monotonic() - started > 60:
                pause = 0.5
            self._stopped.wait(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _list(self) -> None:
        """Tell of all there is."""
        listing = self._api.call("list", self._path, self._query)
        self._told("LISTED", listing)
        self._version = listing["metadata"]["resourceVersion"]

    def _watch(self) -> None:
        """Tell of what changes from what was seen last on."""
        query = self._query | {
            "watch": True, "resourceVersion": self._version, "timeoutSeconds": _WATCH_SECONDS,
            "allowWatchBookmarks": True,
        }  # fmt: skip
        for line in self._api.lines("watch", self._path, query, _SILENCE_SECONDS):
            if self._stopped.is_set():
                return
            event = json.loads(line)
            if event["type"] == "ERROR":  # with HTTP 200, and 410 in here
                raise Expired(event["object"].get("message", ""))
            if event["type"] != "BOOKMARK":
                self._told(event["type"], event["object"])
            self._version = event["object"]["metadata"]["resourceVersion"]
