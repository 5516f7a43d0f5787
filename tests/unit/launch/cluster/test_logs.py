"""Rank 0's log over lost connections and from one pod to the next, against an API that says what it is told."""

import threading
from collections.abc import Iterator

import pytest

from components.core.errors import RetryableError
from components.launch.cluster import logs
from components.launch.cluster.api import Missing, Query


class Answers:
    """What the API server answers to each request for a log, by pod; a None breaks the connection off."""

    namespace = "ns"

    def __init__(self, **answers: list[list[str | None]]) -> None:
        self._answers = answers
        self.drained = threading.Event()
        self.queries: list[Query] = []

    def lines(self, verb: str, path: str, query: Query, seconds: float | None = None) -> Iterator[bytes]:
        self.queries.append(query)
        pod = path.split("/")[-2]
        left = self._answers.get(pod) or []
        if not left:
            self.drained.set()
            raise Missing(pod)
        for line in left.pop(0):
            if line is None:
                raise RetryableError("connection lost")
            yield line.encode()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_PAUSE_SECONDS", 0.01)


def stream(answers: Answers) -> logs.LogStream:
    return logs.LogStream(answers, "pytorch")  # type: ignore[arg-type]


def test_lines_come_once_over_a_lost_connection(capsys: pytest.CaptureFixture[str]) -> None:
    answers = Answers(
        m=[["2026-01-01T00:00:01.1Z one", None], ["2026-01-01T00:00:01.1Z one", "2026-01-01T00:00:02.5Z two"]]
    )
    followed = stream(answers)
    followed.attach("m", "1")
    assert answers.drained.wait(5)
    followed.finish()
    assert capsys.readouterr().out == "one\ntwo\n"
    assert "sinceSeconds" not in answers.queries[0] and "sinceSeconds" in answers.queries[1]


def test_pod_that_takes_the_place_of_another_is_followed_from_its_start(capsys: pytest.CaptureFixture[str]) -> None:
    """Its node's clock may be behind the first one's."""
    answers = Answers(m=[["2026-01-01T00:00:05Z first"]], n=[["2026-01-01T00:00:03Z second"]])
    followed = stream(answers)
    followed.attach("m", "1")
    assert answers.drained.wait(5)
    answers.drained.clear()
    followed.attach("n", "2")
    assert answers.drained.wait(5)
    followed.finish()
    assert capsys.readouterr().out == "first\nsecond\n"
    assert "sinceSeconds" not in answers.queries[-2]
