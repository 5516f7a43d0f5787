"""The AI judge against a real server on this machine, which answers, refuses, drops, hangs and talks nonsense."""

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.annotate.judge import NONSENSE_ATTEMPTS, Judged, judge, question, verdict, win_scores
from components.annotate.results import collect
from components.annotate.tasks import Plan, Task, make_tasks
from components.core.endpoint import ChatClient, Endpoint
from components.core.errors import RetryableError, UserError
from tests.chat_server import ChatServer, Reply, says
from tests.unit.annotate.support import NASTY, SECRET, SOME_EXAMPLES, prompt

KEY = "sk-very-secret-0123456789"
ours = partial(Endpoint, key_variable="KUBEALIGN_JUDGE_KEY")
PLAN = Plan(annotators=1, overlap=1)
Asked = dict[str, Any]
"""What a request compares: conversation, A and B."""


def prefers(word: str) -> Reply:
    return says('Because of "this":\n```json\n' + json.dumps({"verdict": word}) + "\n```")


def longer(asked: Asked, _: int) -> Reply:
    """A judge by length, wherever the text stands."""
    one, other = len(asked["A"]), len(asked["B"])
    return prefers("tie" if one == other else "A" if one > other else "B")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("KUBEALIGN_JUDGE_KEY", KEY)
    running = ChatServer(longer, json.loads)
    yield running
    running.close()


Run = Callable[..., Judged]


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def run(server: ChatServer, tmp_path: Path, pauses: list[float]) -> Run:
    """Judge tasks; pauses between attempts are noted instead of made."""

    def run(tasks: list[Task], plan: Plan = PLAN, max_failed_share: float = 1.0, **changes: Any) -> Judged:
        endpoint = ours(**{"url": server.url, "model": "m", "timeout_seconds": 30.0, **changes})
        client = ChatClient(endpoint, pause=lambda seconds: bool(pauses.append(seconds)))
        return judge(tasks, plan, client, tmp_path / "journal.jsonl", max_failed_share)

    return run


def tasks_of(*texts: tuple[str, ...]) -> list[Task]:
    return make_tasks([prompt(str(number), *some) for number, some in enumerate(texts)], PLAN)[0]


FEW = tasks_of(("a", "bbb", "cc"), ("dd", "e"))


def by_text(judged: Judged, tasks: list[Task]) -> dict[str, float]:
    known = {task.id: task for task in tasks}
    pairs = (zip(known[one.task].shown(), one.scores, strict=True) for one in judged.answers)
    return dict(pair for some in pairs for pair in some)


def test_every_pair_is_asked_in_both_orders_and_the_wins_become_scores(server: ChatServer, run: Run) -> None:
    judged = run(FEW)
    asked = Counter((one["A"], one["B"]) for one in (request["asked"] for request in server.requests))
    assert asked == Counter([*permutations(["a", "bbb", "cc"], 2), ("dd", "e"), ("e", "dd")])
    assert by_text(judged, FEW) == {"a": 1, "cc": 4, "bbb": 7, "e": 1, "dd": 7}
    assert (judged.pairs, judged.inconsistent, judged.rejected) == (4, 0, [])
    assert [one.task for one in judged.answers] == [task.id for task in FEW]
    assert {one.annotator for one in judged.answers} == {"judge:m"}
    first = server.requests[0]
    assert (first["path"], first["model"], first["temperature"]) == ("/v1/chat/completions", "m", 0)
    assert PLAN.guideline in first["messages"][0]["content"]
    assert first["asked"]["conversation"] in [list(task.prompt.messages) for task in FEW]
    rows = {row["meta"]["prompt"]: row["scores"] for row in collect(FEW, judged.answers).rows}
    assert rows == {f"{SECRET} 0": [1, 7, 4], f"{SECRET} 1": [7, 1]}


@pytest.mark.parametrize("word", ["A", "B"])
def test_a_judge_that_looks_at_places_has_no_preference(server: ChatServer, run: Run, word: str) -> None:
    server.reply = lambda *_: prefers(word)
    judged = run(FEW)
    assert set(by_text(judged, FEW).values()) == {4} and (judged.pairs, judged.inconsistent) == (4, 4)


def test_scores_by_hand() -> None:
    # Pairs 01, 02, 12: 0 wins in both orders; a tie and a win of 2 are no win; 2 (B, then A) wins in both.
    assert win_scores([("A", "B"), ("tie", "A"), ("B", "A")], 3, 7) == (5.5, 1.0, 5.5)
    assert win_scores([("A", "A")], 2, 5) == win_scores([("tie", "tie")], 2, 5) == (3, 3)
    assert win_scores([("B", "A")], 2, 10) == (1, 10)


@SOME_EXAMPLES
@given(st.lists(st.integers(0, 3), min_size=2, max_size=5), st.integers(2, 10))
def test_a_judge_who_knows_the_truth_orders_by_it(truth: list[int], highest: int) -> None:
    def compare(first: int, second: int) -> str:
        return "tie" if truth[first] == truth[second] else "A" if truth[first] > truth[second] else "B"

    pairs = list(combinations(range(len(truth)), 2))
    scores = win_scores([(compare(*pair), compare(*reversed(pair))) for pair in pairs], len(truth), highest)
    assert all(1 <= score <= highest for score in scores)
    for first, second in pairs:
        assert (truth[first] > truth[second]) == (scores[first] > scores[second])
        assert (truth[first] == truth[second]) == (scores[first] == scores[second])


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"verdict": "A"}', "A"), ('Reason.\n\n{"verdict":"B"}\n', "B"), ('```json\n{"verdict": "tie"}\n```', "tie"),
        ('`{"verdict": "Tie"}`', "tie"), ('{ "verdict" : "b" }', "B"),
        ("", None), ("A", None), ('{"verdict": "C"}', None), ('{"verdict": "A"} or so', None),
        ('It says {"verdict": "A"}', None), ('{"verdict": "A"}\nbut I am not sure', None),
    ],
)  # fmt: skip
def test_a_verdict_is_the_last_line_and_nothing_else(reply: str, found: str | None) -> None:
    assert verdict(reply) == found


def test_no_text_leaves_its_field_or_is_a_control_token() -> None:
    control = ["<s>", "</s>", "<think>", "<start_of_turn>", "<｜end｜>", "<<SYS>>", "[INST]", "[/INST]", "\\<|x|>"]
    (task,) = tasks_of((*NASTY, *control, "\ud83d"))
    for first, second in combinations(range(len(task.order)), 2):
        text = question(task, first, second)
        read = json.loads(text.encode())
        assert [read["A"], read["B"]] == [task.shown()[first], task.shown()[second]]
        assert read["conversation"] == list(task.prompt.messages)
        assert not any(sign in text for sign in ["<|", "<s", "</", "<t", "<｜", "<<", "[INST", "[/INST"])
    assert '"A": "a < b [1]"' in question(*tasks_of(("a < b [1]", "a < b [1]")), 0, 1)


def test_the_judge_is_blind(server: ChatServer, run: Run) -> None:
    run(FEW)
    assert SECRET not in json.dumps(server.requests)


@pytest.mark.parametrize("failure", [(429, {}, b""), (503, {}, b"busy"), (0, {}, b""), (200, {}, b" " * (1 << 21))])
def test_a_busy_or_broken_server_is_asked_again(
    server: ChatServer, run: Run, pauses: list[float], failure: Any
) -> None:
    server.reply = lambda asked, times: failure if times < 2 else longer(asked, times)
    tasks = tasks_of(("a", "bb"))
    assert by_text(run(tasks), tasks) == {"a": 1, "bb": 7}
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, [1, 2, 1, 2], strict=True))


def test_a_server_says_how_long_to_wait(server: ChatServer, run: Run, pauses: list[float]) -> None:
    waits = ["17", "Thu, 01 Jan 1970 00:00:00 GMT"]
    server.reply = lambda asked, times: (429, {"Retry-After": waits[times]}, b"") if times < 2 else longer(asked, times)
    run(tasks_of(("a", "bb")))
    assert pauses == [17, 0] * 2
    server.reply = lambda asked, times: (429, {"Retry-After": "3600"}, b"")
    assert [row.rule for row in run(tasks_of(("c", "dd"))).rejected] == ["judge_unreachable"]
    assert pauses == [17, 0] * 2


def test_a_server_that_hangs_is_given_up(server: ChatServer, run: Run, pauses: list[float]) -> None:
    server.reply = server.hang
    judged = run(tasks_of(("a", "bb")), timeout_seconds=0.2, attempts=2)
    assert [row.rule for row in judged.rejected] == ["judge_unreachable"] and len(pauses) == 1
    assert len(server.requests) == 2 and not judged.answers


@pytest.mark.parametrize(
    ("reply", "rule", "times"),
    [
        ((400, {}, b"too long"), "judge_refused", 1), ((422, {}, b""), "judge_refused", 1),
        (says("I like both."), "judge_nonsense", NONSENSE_ATTEMPTS),
        ((200, {}, b"<html>"), "judge_nonsense", NONSENSE_ATTEMPTS),
        ((200, {}, b'{"choices": []}'), "judge_nonsense", NONSENSE_ATTEMPTS),
        ((200, {}, b'{"choices": [{"message": {"content": null}}]}'), "judge_nonsense", NONSENSE_ATTEMPTS),
        ((500, {}, b""), "judge_unreachable", 6),
    ],
)  # fmt: skip
def test_a_task_without_all_verdicts_is_rejected_and_counted(
    server: ChatServer, run: Run, reply: Any, rule: str, times: int
) -> None:
    good, bad = sorted(tasks_of(("bad", "worse"), ("a", "bb")), key=lambda task: "bad" in task.shown())
    server.reply = lambda asked, again: reply if "bad" in (asked["A"], asked["B"]) else longer(asked, again)
    judged = run([bad, good])
    assert [(row.rule, row.source, row.place) for row in judged.rejected] == [(rule, "judge", f"task {bad.id}")]
    assert [one.task for one in judged.answers] == [good.id]
    assert len(server.requests) == times + 2
    results = collect([bad, good], [*judged.answers, *judged.rejected])
    assert results.counts == {rule: 1, "rows": 1, "answers": 1, "unanswered": 1}


MANY = tasks_of(*[(f"{number}", f"{number}+") for number in range(40)])


def test_over_the_limit_it_stops_with_what_it_has_and_goes_on_from_there(
    server: ChatServer, run: Run, tmp_path: Path
) -> None:
    client = ChatClient(ours(url=server.url, model="m", attempts=1, concurrency=1))

    def fails_after_ten(asked: Asked, _: int) -> Reply:
        if len(server.requests) > 23:
            client.stop.wait()  # what has begun when the third failure is seen
        return longer(asked, 0) if len(server.requests) <= 20 else (500, {}, b"")

    server.reply = fails_after_ten
    # An error that is kept keeps what it stopped alive, unless that was closed.
    with pytest.raises(RetryableError, match="3 of 40 tasks without a verdict.*judge_unreachable.*start again") as kept:
        judge(MANY, PLAN, client, tmp_path / "journal.jsonl", max_failed_share=0.05)
    assert kept and not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
    stopped = len(server.requests)
    assert 23 <= stopped <= 24
    server.reply = longer
    judged = run(MANY, max_failed_share=0.05, concurrency=4)
    assert len(judged.answers) == 40 and not judged.rejected
    assert len(server.requests) - stopped == 2 * 30
    assert all(score == (7 if "+" in text else 1) for text, score in by_text(judged, MANY).items())
    assert run(MANY) == judged and len(server.requests) - stopped == 2 * 30


def test_at_the_limit_it_goes_on(server: ChatServer, run: Run) -> None:
    bad = {text for task in MANY[:2] for text in task.shown()}
    server.reply = lambda asked, _: (500, {}, b"") if asked["A"] in bad else longer(asked, 0)
    judged = run(MANY, max_failed_share=0.05, attempts=1)
    assert [row.rule for row in judged.rejected] == ["judge_unreachable"] * 2 and len(judged.answers) == 38
    server.reply = longer
    assert len(run(MANY).answers) == 40


def test_no_waiting_thread_outlives_the_stop(server: ChatServer, tmp_path: Path) -> None:
    """The real pause: one worker waits for a minute when the other meets an answer that stops everything."""
    waiting = threading.Event()

    def reply(asked: Asked, _: int) -> Reply:
        if asked["A"].startswith("0") or asked["B"].startswith("0"):
            waiting.wait()
            return 401, {}, b""
        waiting.set()
        return 503, {"Retry-After": "60"}, b""

    server.reply = reply
    client = ChatClient(ours(url=server.url, model="m", concurrency=2))
    some = [task for task in MANY if task.shown()[0].strip("+") in ("0", "1")]
    with pytest.raises(UserError, match="HTTP 401"):
        judge(some, PLAN, client, tmp_path / "journal.jsonl")
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_what_no_question_can_mend_ends_the_step_at_once(server: ChatServer, run: Run, status: int) -> None:
    server.reply = lambda *_: (status, {"Location": "/v1/elsewhere"}, b"")
    with pytest.raises(UserError, match=f"HTTP {status}; (check url|put a key)"):
        run(tasks_of(("a", "bb")))
    assert len(server.requests) == 1


def test_the_key_goes_into_the_header_and_nowhere_else(
    server: ChatServer, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    run(FEW)
    server.reply = lambda *_: (401, {}, KEY.encode())
    with pytest.raises(UserError) as refused:
        run(tasks_of(("c", "dd")))
    assert all(request["headers"]["Authorization"] == f"Bearer {KEY}" for request in server.requests)
    written = [path.read_text() for path in tmp_path.iterdir()]
    seen = [str(refused.value), caplog.text, *written, repr(ours(url=server.url, model="m"))]
    assert written and caplog.text and KEY not in "".join(seen)


def test_without_a_key_none_is_sent(server: ChatServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEALIGN_JUDGE_KEY")
    run(FEW)
    assert not any("Authorization" in request["headers"] for request in server.requests)


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", "with blank"])
def test_a_key_that_no_header_can_hold_is_not_shown(run: Run, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("KUBEALIGN_JUDGE_KEY", key)
    with pytest.raises(UserError) as refused:
        run(FEW)
    assert key not in str(refused.value) and "KUBEALIGN_JUDGE_KEY" in str(refused.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://me:pass@host/v1", "http://h/?key=1", "http://h:x"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="url") as refused:
        ChatClient(ours(url=url, model="m"))
    assert "pass" not in str(refused.value)


def test_a_line_cut_off_by_a_kill_is_judged_again(server: ChatServer, run: Run, tmp_path: Path) -> None:
    judged = run(FEW)
    journal = tmp_path / "journal.jsonl"
    first, second = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + second[:-3])
    asked = len(server.requests)
    assert by_text(run(FEW), FEW) == by_text(judged, FEW) and len(server.requests) > asked
    assert Counter(journal.read_bytes().splitlines(keepends=True)) == Counter([first, second])


def test_another_model_or_guideline_judges_for_itself(server: ChatServer, run: Run) -> None:
    for changes in ({}, {"model": "n"}, {"plan": Plan(annotators=1, overlap=1, guideline="be strict")}):
        asked = len(server.requests)
        run(FEW, **changes)
        assert len(server.requests) == asked + 8


def test_a_file_that_is_no_journal_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="not a journal"):
        run(FEW)
    assert (tmp_path / "journal.jsonl").read_text() == '{"step": 1}\n'
