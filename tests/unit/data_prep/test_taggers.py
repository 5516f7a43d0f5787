"""The endpoint's tagger against a real server that hangs, limits, refuses and talks nonsense; the offline baseline."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core import endpoint
from components.core.endpoint import ChatClient, Endpoint, retry_after
from components.core.errors import Cancelled, RetryableError, UserError, exit_code_for, report
from components.data_prep.asking import Answers
from components.data_prep.lexical_tags import LexicalTagger
from components.data_prep.taggers import EndpointTagger, read_tags
from tests.chat_server import ChatServer, Reply, says

KEY = "sk-a-very-secret-key"
ours = partial(Endpoint, key_variable="KUBEALIGN_TAGGER_KEY")


def tagged(*tags: str) -> Reply:
    return says(json.dumps([{"tag": tag, "explanation": "it is so"} for tag in tags]))


def status(code: int, **headers: str) -> Reply:
    """An error whose body repeats the key, as some servers do."""
    return code, {name.replace("_", "-"): value for name, value in headers.items()}, f"wrong key {KEY}".encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("KUBEALIGN_TAGGER_KEY", KEY)
    running = ChatServer(lambda query, _: tagged(query))
    yield running
    running.close()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def make(server: ChatServer, tmp_path: Path, pauses: list[float]) -> Callable[..., EndpointTagger]:
    """A tagger that notes the pauses it would make instead of making them."""

    def make(max_untagged_ratio: float = 1.0, **settings: Any) -> EndpointTagger:
        settings = {"url": server.url, "model": "m", "timeout_seconds": 30.0, **settings}
        client = ChatClient(ours(**settings), pause=lambda seconds: bool(pauses.append(seconds)))
        return EndpointTagger(client, tmp_path / "tags" / "cache.jsonl", max_untagged_ratio)

    return make


def test_every_query_is_asked_once_and_its_tags_come_back_in_order(
    server: ChatServer, make: Callable[..., EndpointTagger]
) -> None:
    server.reply = lambda query, _: tagged(f"{query}  one", "two", "two")
    tagger = make()
    assert tagger.tag(["a", "b", "a"]) == [["a one", "two"], ["b one", "two"], ["a one", "two"]]
    assert tagger.tag(["b", "c"]) == [["b one", "two"], ["c one", "two"]]
    assert tagger.tag([]) == []
    assert server.asked() == {"a": 1, "b": 1, "c": 1} and tagger.counts == {"answered": 3}
    request = server.requests[0]
    assert (request["path"], request["model"], request["temperature"]) == ("/v1/chat/completions", "m", 0)
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert request["headers"]["Authorization"] == f"Bearer {KEY}"


def test_a_connection_serves_one_question_after_the_other(
    server: ChatServer, make: Callable[..., EndpointTagger]
) -> None:
    server.reply = lambda query, times: [status(503), says("no"), tagged(query)][times]
    make(concurrency=1).tag(["a", "b", "c"])
    assert len(server.requests) == 9 and len({request["from"] for request in server.requests}) == 1


def test_a_query_without_intentions_is_tagged(server: ChatServer, make: Callable[..., EndpointTagger]) -> None:
    server.reply = lambda *_: says("[]")
    assert make().tag(["a"]) == [[]]


def test_without_a_key_none_is_sent(
    server: ChatServer, make: Callable[..., EndpointTagger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBEALIGN_TAGGER_KEY")
    assert make().tag(["a"]) == [["a"]]
    assert "Authorization" not in server.requests[0]["headers"]


def test_a_long_query_is_cut(server: ChatServer, make: Callable[..., EndpointTagger]) -> None:
    make().tag(["x" * 9000])
    assert server.requests[0]["asked"] == "x" * 8000


def test_a_busy_server_is_asked_again_when_it_says(
    server: ChatServer, make: Callable[..., EndpointTagger], pauses: list[float]
) -> None:
    server.reply = lambda query, times: [status(429, Retry_After="7"), status(503), status(500), tagged(query)][times]
    assert make().tag(["a"]) == [["a"]]
    assert pauses[0] == 7
    assert 1 <= pauses[1] <= 2 and 2 <= pauses[2] <= 4


def test_a_server_that_asks_for_too_long_a_wait_is_not_waited_for(
    server: ChatServer, make: Callable[..., EndpointTagger], pauses: list[float]
) -> None:
    server.reply = lambda query, _: status(429, Retry_After="121") if query == "late" else tagged(query)
    tagger = make()
    assert tagger.tag(["late", "b"]) == [None, ["b"]]
    assert pauses == [] and tagger.counts == {"answered": 1, "untagged_unreachable": 1}


def test_a_server_that_hangs_is_asked_again(server: ChatServer, make: Callable[..., EndpointTagger]) -> None:
    def hang_once(query: str, times: int) -> Reply | None:
        if times == 0:
            server.released.wait()
            server.handlers.current.close_connection = True
            return None
        return tagged(query)

    server.reply = hang_once
    assert make(timeout_seconds=0.2, attempts=100).tag(["a"]) == [["a"]]
    assert server.asked()["a"] >= 2


def test_an_answer_that_breaks_off_is_asked_for_again(server: ChatServer, make: Callable[..., EndpointTagger]) -> None:
    def break_off(query: str, times: int) -> Reply | None:
        code, headers, data = tagged(query)
        return (code, {"Content-Length": str(len(data) + 1)}, data) if times == 0 else (code, headers, data)

    server.reply = break_off
    tagger = make()
    assert tagger.tag(["a"]) == [["a"]]
    assert server.asked() == {"a": 2} and tagger.counts == {"answered": 1}


def test_an_endless_answer_is_given_up(server: ChatServer, make: Callable[..., EndpointTagger]) -> None:
    def endless(*_: object) -> None:
        handler = server.handlers.current
        handler.start(200, {"Transfer-Encoding": "chunked"})
        try:
            while not server.released.is_set():
                handler.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        except OSError:
            handler.close_connection = True

    server.reply = endless
    tagger = make(attempts=2)
    assert tagger.tag(["a"]) == [None]
    assert server.asked() == {"a": 2} and tagger.counts == {"untagged_unreachable": 1}


def test_an_answer_that_trickles_is_given_up_at_the_timeout(
    server: ChatServer, make: Callable[..., EndpointTagger], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 31.0, 100.0, 101.0, 102.0, 103.0])  # of each attempt: its beginning, then each piece
    monkeypatch.setattr(endpoint, "time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time))
    assert make(attempts=2).tag(["a"]) == [["a"]]
    assert server.asked() == {"a": 2}


@pytest.mark.parametrize(
    "nonsense",
    [
        says("Sure! Here are the tags: math"),
        says('["math"]'),
        says('{"tag": "math", "explanation": "x"}'),
        says(None),
        says([{"type": "text", "text": "[]"}]),
        (200, {}, b"<html>Welcome</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b"[1]"),
        (200, {}, b"\xff"),
        (200, {}, b"[" * 100_000),
    ],
)
def test_nonsense_is_asked_about_once_more_and_then_left_untagged(
    server: ChatServer, make: Callable[..., EndpointTagger], nonsense: Reply, pauses: list[float]
) -> None:
    server.reply = lambda query, times: nonsense if query == "never" or times == 0 else tagged(query)
    tagger = make()
    assert tagger.tag(["later", "never"]) == [["later"], None]
    assert server.asked() == {"later": 2, "never": 2}
    assert tagger.counts == {"answered": 1, "asked_again": 2, "untagged_nonsense": 1} and pauses == []
    first, second = [request["messages"][0]["content"] for request in server.requests if request["asked"] == "later"]
    assert second.startswith(first) and len(second) > len(first)


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_query_that_the_server_refuses_stays_untagged(
    server: ChatServer, make: Callable[..., EndpointTagger], code: int
) -> None:
    server.reply = lambda query, _: status(code) if query == "bad" else tagged(query)
    tagger = make()
    assert tagger.tag(["bad", "good"]) == [None, ["good"]]
    assert server.asked() == {"bad": 1, "good": 1}
    assert tagger.counts == {"answered": 1, "untagged_refused": 1}


@pytest.mark.parametrize(
    ("code", "mended_by"), [(401, "KUBEALIGN_TAGGER_KEY"), (403, "KUBEALIGN_TAGGER_KEY"), (404, "url and model")]
)
def test_a_server_that_says_no_ends_the_step_and_nobody_sees_the_key(
    server: ChatServer, make: Callable[..., EndpointTagger], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    code: int, mended_by: str,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    server.reply = lambda *_: status(code)
    tagger = make()
    with pytest.raises(UserError) as caught:
        tagger.tag(["a"] * 20 + ["b", "c"])
    line = report(caught.value)
    assert f"HTTP {code}" in line and server.url in line and mended_by in line
    shown = line + caplog.text + repr(tagger) + repr(vars(tagger)) + repr(vars(tagger._client))
    assert "secret" not in shown + "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))


def test_a_redirect_is_not_followed_with_the_key(server: ChatServer, make: Callable[..., EndpointTagger]) -> None:
    server.reply = lambda *_: (307, {"Location": f"{server.url}/elsewhere"}, b"")
    with pytest.raises(UserError, match="HTTP 307"):
        make(concurrency=1).tag(["a"])
    assert [request["path"] for request in server.requests] == ["/v1/chat/completions"]


def test_an_invalid_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEALIGN_TAGGER_KEY", f"{KEY}\nX-Header: 1")
    with pytest.raises(UserError, match="KUBEALIGN_TAGGER_KEY") as caught:
        ChatClient(ours(url="http://localhost/v1", model="m"))
    assert "secret" not in report(caught.value)


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host/v1", "http://", "http://[", "http://h:99999", "http://u:secret@host",
     "http://h/v1?key=secret"],
)  # fmt: skip
def test_a_url_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="url") as caught:
        ChatClient(ours(url=url, model="m"))
    assert "secret" not in report(caught.value)


def test_over_the_limit_the_step_stops_and_goes_on_from_what_was_answered(
    server: ChatServer, make: Callable[..., EndpointTagger]
) -> None:
    queries = [f"good {number}" for number in range(6)] + ["bad 0", "bad 1"]
    server.reply = lambda query, _: tagged(query) if query.startswith("good") else says("no")
    stopped = make(max_untagged_ratio=0.2, concurrency=1)
    with pytest.raises(UserError) as caught:
        stopped.tag(queries)
    assert exit_code_for(caught.value) == 1
    line = report(caught.value)
    assert "of 8 texts these stay untagged: 2 nonsense" in line and "cache.jsonl" in line and server.url in line

    server.reply, before = (lambda query, _: tagged(query)), server.asked()
    resumed = make(max_untagged_ratio=0.0)
    assert resumed.tag(queries) == [[query] for query in queries]
    assert server.asked() - before == {"bad 0": 1, "bad 1": 1}
    assert resumed.counts == {"answered": 2}


def test_the_limit_is_a_share_of_all_queries_so_far(server: ChatServer, make: Callable[..., EndpointTagger]) -> None:
    server.reply = lambda query, _: says("no") if query.startswith("bad") else tagged(query)
    tagger = make(max_untagged_ratio=0.25)
    tagger.tag(["a", "b", "c", "bad 1"])
    tagger.tag(["d", "e", "f", "bad 2"])
    with pytest.raises(UserError, match="of 10 texts these stay untagged: 3 nonsense"):
        tagger.tag(["g", "bad 3"])


def test_a_server_out_of_reach_is_worth_a_retry(server: ChatServer, make: Callable[..., EndpointTagger]) -> None:
    server.reply = lambda *_: status(503)
    with pytest.raises(RetryableError, match="HTTP 503") as caught:
        make(max_untagged_ratio=0.5, attempts=3, concurrency=1).tag(["a"])
    assert exit_code_for(caught.value) == 75 and "try again" in report(caught.value)
    assert server.asked() == {"a": 3}
    server.close()
    with pytest.raises(RetryableError, match="NewConnectionError"):
        make(max_untagged_ratio=0.5).tag(["a"])


def test_a_server_that_is_gone_is_not_asked_about_every_query(
    server: ChatServer, make: Callable[..., EndpointTagger]
) -> None:
    queries = [str(number) for number in range(100)]
    server.reply = lambda query, _: status(400 if int(query) < 20 else 502)
    with pytest.raises(RetryableError, match="unreachable"):
        make(attempts=1, concurrency=2).tag(queries)
    assert 25 <= len(server.requests) <= 40  # 20 refused, then 5 in a row, and what two threads did beside it


def test_a_server_that_answers_now_and_then_is_not_gone(
    server: ChatServer, make: Callable[..., EndpointTagger]
) -> None:
    server.reply = lambda query, _: tagged(query) if int(query) % 3 == 2 else status(502)
    queries = [str(number) for number in range(12)]
    found = make(attempts=1, concurrency=1).tag(queries)
    assert [tags for tags in found if tags] == [["2"], ["5"], ["8"], ["11"]]


def test_as_many_questions_as_allowed_are_under_way_at_once(
    server: ChatServer, make: Callable[..., EndpointTagger]
) -> None:
    together, lock = threading.Barrier(3), threading.Lock()
    active, most = 0, 0

    def meet(query: str, _: int) -> Reply:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        together.wait()
        with lock:
            active -= 1
        return tagged(query)

    server.reply = meet
    queries = [str(number) for number in range(12)]
    assert make(concurrency=3).tag(queries) == [[query] for query in queries]
    assert most == 3


def test_an_error_in_one_thread_ends_the_waits_of_the_others(server: ChatServer, tmp_path: Path) -> None:
    waiting, stopped = threading.Event(), []

    def pause(seconds: float) -> bool:
        waiting.set()
        stopped.append(client.stop.wait(seconds))
        return stopped[-1]

    def reply(query: str, _: int) -> Reply:
        if query == "busy":
            return status(429, Retry_After="60")
        waiting.wait()
        return status(401)

    server.reply = reply
    client = ChatClient(ours(url=server.url, model="m", concurrency=2), pause)
    with pytest.raises(UserError, match="HTTP 401"):
        EndpointTagger(client, tmp_path / "cache").tag(["busy", "other"])
    assert stopped == [True]


def test_whoever_stops_the_client_gets_no_half_answer(server: ChatServer, tmp_path: Path) -> None:
    def pause(_: float) -> bool:
        client.stop.set()
        return True

    server.reply = lambda query, _: status(503) if query == "busy" else tagged(query)
    client = ChatClient(ours(url=server.url, model="m", concurrency=1), pause)
    tagger = EndpointTagger(client, tmp_path / "cache")
    with pytest.raises(Cancelled):
        tagger.tag(["a", "busy", "b"])
    assert tagger.counts == {"answered": 1} and server.asked() == {"a": 1, "busy": 1}
    server.reply = lambda query, _: tagged(query)
    assert tagger.tag(["a", "busy", "b"]) == [["a"], ["busy"], ["b"]]


def test_a_cache_survives_a_torn_line_and_strange_ones(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache.jsonl"
    one, none = (json.dumps([{"tag": tag, "explanation": "x"} for tag in tags]) for tags in (["ä", "b"], []))
    first = Answers(path, read_tags)
    first.keep("k1", one, ["ä", "b"])
    first.keep("k2", none, [])
    whole = path.read_bytes()
    strange = b'\n\xff\n[1]\n{"key": 1, "answer": "[]"}\n{"key": "k3", "answer": "[1]"}\n{"key": "k3", "answer": []}\n'
    for torn in range(len(whole)):
        path.write_bytes(whole[:torn] + strange + b'{"key": "k')
        again = Answers(path, read_tags)
        assert set(again.read) <= {"k1", "k2"} and again.read.get("k1", ["ä", "b"]) == ["ä", "b"]
        again.keep("k4", "[]", [])
        assert Answers(path, read_tags).read == again.read
        assert again.read["k4"] == []
    path.write_bytes(whole)
    assert Answers(path, read_tags).read == {"k1": ["ä", "b"], "k2": []}
    assert path.read_bytes() == whole


def test_another_models_answers_are_not_taken(server: ChatServer, make: Callable[..., EndpointTagger]) -> None:
    make().tag(["a"])
    make(model="other").tag(["a"])
    make(model="other").tag(["a"])
    assert server.asked() == {"a": 2}


@pytest.mark.parametrize(
    ("answer", "tags"),
    [
        ('[{"tag": " spell   check ", "explanation": ""}]', ["spell check"]),
        ('[{"tag": "a", "explanation": "x", "more": 1}, {"explanation": "y", "tag": "b"}]', ["a", "b"]),
        ('```json\n[{"tag": "a", "explanation": "b"}]\n```', ["a"]),
        ('```\n[]\n```', []),
        ('<think>[{"tag": "no"}]</think>\n[{"tag": "翻译", "explanation": "b"}]', ["翻译"]),
        ('[{"tag": "a"}]', None),
        ('[{"tag": "", "explanation": "b"}]', None),
        ('[{"tag": 1, "explanation": "b"}]', None),
        ('[{"tag": "\\ud800", "explanation": "b"}]', None),
        ('[{"tag": "a\\u0000b", "explanation": "b"}]', None),
        ('[{"tag": "a", "explanation": "b"}', None),
        ('Tags: [{"tag": "a", "explanation": "b"}]', None),
        ("", None),
        ("null", None),
    ],
)  # fmt: skip
def test_only_a_list_of_tags_with_explanations_counts(answer: str, tags: list[str] | None) -> None:
    assert read_tags(answer) == tags


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("0", 0), ("1.5", 1.5), (formatdate(1130, usegmt=True), 130), (formatdate(900, usegmt=True), 0),
     ("", None), ("-1", None), ("nan", None), ("inf", None), ("soon", None), ("Thu, 99 Foo 1970", None)],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after(value, now=1000.0) == seconds


@pytest.mark.parametrize(
    ("query", "tags"),
    [
        ("Please write a poem about my grandmother's garden.", ["writing", "garden"]),
        ("How many apples are left?", ["calculation", "apples", "left"]),
        ("How do I wrap a present neatly?", ["how-to", "wrap", "neatly"]),
        ("Translating this: don't use C++ or C#", ["translation", "c++", "c#"]),
        ("如何用Python实现快速排序算法？请解释时间复杂度。",
         ["coding", "explanation", "how-to", "快速排序", "时间复杂度"]),
        ("请写一首关于春天的诗", ["writing", "春天"]),
        ("春天的雪", ["春天"]),
        ("介绍一下中国历史和量子力学基础课程", ["description", "中国历史", "基础课程"]),
        ("ＳＵＭＭＡＲＩＺＥ　ｔｈｅ　ａｒｔｉｃｌｅ", ["summarisation", "article"]),
        ("12 + 30 = ?", []),
        ("", []),
    ],
)  # fmt: skip
def test_the_baseline_names_tasks_and_topics(query: str, tags: list[str]) -> None:
    assert LexicalTagger().tag([query]) == [tags]


def test_the_baseline_stops_at_its_number_of_topics() -> None:
    query = "explain: " + ", ".join(f"word{letter}" for letter in "abcdef")
    assert LexicalTagger(most_phrases=2).tag([query]) == [["explanation", "worda", "wordb"]]


@given(queries=st.lists(st.text(), max_size=5))
def test_the_baseline_leaves_no_query_untagged_and_looks_at_each_alone(queries: list[str]) -> None:
    tagger = LexicalTagger()
    found = tagger.tag(queries)
    assert found == [tagger.tag([query])[0] for query in queries]
    for tags in found:
        assert tags is not None and len(set(tags)) == len(tags) and all(tags)
