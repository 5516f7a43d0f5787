"""List, watch, go on from what was seen last, and list again where the server has forgotten it."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from components.core.errors import RetryableError
from components.launch.cluster import watch
from components.launch.cluster.api import Query
from components.launch.cluster.watch import Watch


def change(version: str, kind: str = "MODIFIED") -> str:
    return json.dumps({"type": kind, "object": {"metadata": {"resourceVersion": version}}})


GONE = json.dumps({"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}})


class Server:
    """Answers each watch with the next of these lists; a None breaks the connection."""

    def __init__(self, *answers: list[str | None]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.done = threading.Event()

    def call(self, verb: str, path: str, query: Query) -> dict[str, Any]:
        self.asked.append("list")
        return {"metadata": {"resourceVersion": "10"}, "items": []}

    def lines(self, verb: str, path: str, query: Query, seconds: float) -> Iterator[bytes]:
        self.asked.append(f"watch {query['resourceVersion']}")
        if not self.answers:
            self.done.set()
        for line in self.answers.pop(0) if self.answers else []:
            if line is None:
                raise RetryableError("connection lost")
            yield line.encode()


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([[change("11")], [change("12")]], ["list", "watch 10", "watch 11", "watch 12"]),
        ([[change("11"), None], []], ["list", "watch 10", "watch 11", "watch 11"]),
        ([[change("15", "BOOKMARK"), None]], ["list", "watch 10", "watch 15"]),
        ([[change("11")], [GONE], []], ["list", "watch 10", "watch 11", "list", "watch 10", "watch 10"]),
    ],
    ids=["the server ends a watch", "connection lost", "bookmark", "410"],
)
def test_goes_on_from_what_was_seen_last(
    monkeypatch: pytest.MonkeyPatch, answers: list[list[str | None]], asked: list[str]
) -> None:
    monkeypatch.setattr(watch, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(watch.random, "uniform", lambda *_: 0.001)
    server = Server(*answers)
    told: list[str] = []
    with Watch(server, "/api/v1/pods", {}, lambda kind, _: told.append(kind)):  # type: ignore[arg-type]
        assert server.done.wait(10)
    assert server.asked[: len(asked)] == asked
    assert "BOOKMARK" not in told and told[0] == "LISTED"
