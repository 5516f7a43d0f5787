"""Answers to rows: means worked out by hand, and a rule for every answer that does not count."""

import itertools
import time
from dataclasses import replace

import pytest

from components.annotate.results import Answer, collect, rating, timestamp
from components.annotate.tasks import Plan, Task, make_tasks
from components.core.records import Rejected
from tests.unit.annotate.support import SECRET, answer, prompt

PLAN = Plan(annotators=3, overlap=3, overlap_share=1)
TASKS, _ = make_tasks([prompt("a", "x", "y", "z"), prompt("b", "v", "w"), prompt("g", "r", "s", gold=[1, 0])], PLAN)


def task(key: str, slot: int = 0) -> Task:
    (found,) = (one for one in TASKS if one.prompt.id == f"{SECRET} {key}" and one.slot == slot)
    return found


def test_the_score_of_a_response_is_the_mean_of_its_annotators() -> None:
    given = [
        answer(task("a", 0), "ann", 7, 1, 4), answer(task("a", 1), "bob", 6, 2, 4),
        answer(task("a", 2), "cid", 6, 2, 7), answer(task("b", 1), "bob", 3, 3),
    ]  # fmt: skip
    first, second = collect(TASKS, given).rows
    assert first["scores"] == [19 / 3, 5 / 3, 5] and second["scores"] == [3, 3]
    assert first["messages"][-1] == {"role": "user", "content": "question a"}
    assert first["responses"] == ["x", "y", "z"]
    assert first["meta"] == {
        "prompt": f"{SECRET} a", "annotators": 3,
        "response_ids": [f"{SECRET}-a-{index}" for index in range(3)],
        "models": [f"{SECRET} model {index}" for index in range(3)],
        "strategies": [f"{SECRET} top_p=0.{index}" for index in range(3)],
    }  # fmt: skip
    for order in itertools.permutations(given):
        assert collect(TASKS, order).rows == [first, second]


def test_a_mean_does_not_depend_on_who_comes_first() -> None:
    tenths = [0.1, 0.2, 0.3]
    for order in itertools.permutations(range(3)):
        given = [answer(task("b", slot), f"ann {order[slot]}", tenths[order[slot]], 1) for slot in range(3)]
        assert collect(TASKS, given).rows[0]["scores"] == [0.6 / 3, 1]


def test_gold_tasks_are_answers_but_no_rows() -> None:
    results = collect(TASKS, [answer(task("g"), "ann", 7, 1)])
    assert not results.rows and [one.task for one in results.answers] == [task("g").id]
    assert results.counts == {"rows": 0, "answers": 1, "unanswered": len(TASKS) - 1}
    assert task("g").id not in results.unanswered


def test_the_latest_answer_of_an_annotator_counts() -> None:
    old, new = (
        answer(task("b"), "ann", 1, 7, updated=1, place="1"),
        answer(task("b"), "ann", 6, 2, updated=2, place="0"),
    )
    for given in ([old, new], [new, old], [old, new, old, new]):
        results = collect(TASKS, given)
        assert results.rows[0]["scores"] == [6, 2]
        assert [(row.rule, row.place) for row in results.rejected] == [("superseded", "1")]


def test_an_annotator_counts_once_a_prompt() -> None:
    first = answer(task("b", 0), "ann", 1, 7, updated=2)
    second = answer(task("b", 1), "ann", 6, 2, updated=1)
    results = collect(TASKS, [first, second, answer(task("b", 2), "bob", 1, 1)])
    assert results.rows[0]["scores"] == [1, 4] and results.rows[0]["meta"]["annotators"] == 2
    assert [row.rule for row in results.rejected] == ["seen_before"]


def test_who_skips_a_task_after_all_takes_the_answer_back() -> None:
    given = [answer(task("b"), "ann", 6, 2, updated=1)]
    given.append(Answer(task=task("b").id, annotator="ann", fault="skipped", updated=2, place="later"))
    results = collect(TASKS, given)
    assert not results.rows and results.counts["skipped"] == results.counts["superseded"] == 1
    assert task("b").id in results.unanswered


def test_every_answer_that_does_not_count_has_a_rule() -> None:
    good = answer(task("b"), "ann", 6, 2)
    foreign = Rejected(role="annotate", source="tool", place="elsewhere", rule="draft", row="{}")
    given = [
        good, foreign, replace(good, task="0123456789abcdef", annotator="bob"),
        replace(good, annotator="cid", scores=(1.0,)),
        replace(good, annotator="dan", scores=(1.0, float("nan"))), replace(good, annotator="eve"),
        replace(good, annotator="fay", scores=(), fault="incomplete"),
    ]  # fmt: skip
    results = collect(TASKS, given, excluded=["eve"])
    assert results.answers == [good]
    assert results.counts == {
        "bad_score": 1, "draft": 1, "excluded_annotator": 1, "incomplete": 1, "score_count": 1, "unknown_task": 1,
        "rows": 1, "answers": 1, "unanswered": len(TASKS) - 1,
    }  # fmt: skip
    assert len(results.rejected) + len(results.answers) == len(given)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:01:00Z", 60), ("1970-01-01T00:01:00.25", 60.25), ("1970-01-01T02:01:00+02:00", 60),
        (None, 0), ("yesterday", 0), (12, 0),
    ],
)  # fmt: skip
def test_times_of_both_tools_are_read_as_utc_wherever_this_runs(text: object, seconds: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert timestamp(text) == seconds
    time.tzset()


@pytest.mark.parametrize(
    ("value", "score"),
    [(1, 1), (7, 7), (3.5, 3.5), (0, None), (8, None), (True, None), ("3", None), (None, None), (float("nan"), None)],
)
def test_a_score_is_a_number_of_the_scale(value: object, score: float | None) -> None:
    assert rating(value, 7) == score
