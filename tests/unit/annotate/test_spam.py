"""Each check of an annotator, a step on either side of its threshold."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from components.annotate.results import Answer
from components.annotate.spam import Report, Thresholds, binomial_p, check
from components.annotate.tasks import Plan, Task, make_tasks
from tests.unit.annotate.support import answer, prompt

PLAN = Plan(annotators=1, overlap=1)
MADE, _ = make_tasks([prompt(str(number), "one two", "three four") for number in range(40)], PLAN)
GOLD, _ = make_tasks([prompt(f"g{number}", "right", "wrong", "worst", gold=[1, 0, -1]) for number in range(10)], PLAN)
TASKS = {task.id: task for task in [*MADE, *GOLD]}


def report(some: list[Task], scores: Callable[[int, Task], list[float]], seconds: float | None = None) -> Report:
    """Of an annotator who gives these scores, in the order of the responses, to the n-th task."""
    answers = [replace(answer(task, "ann", *scores(number, task)), seconds=seconds) for number, task in enumerate(some)]
    return check(answers, TASKS)["ann"]


def honest(number: int, task: Task) -> list[float]:
    """First and second response win in turn, wherever they are shown."""
    return [3.0, 5.0] if number % 2 else [5.0, 3.0]


def test_an_honest_annotator_has_no_flags() -> None:
    found = report(MADE, honest, seconds=4.0)
    assert found.flags == [] and found.tasks == 40 and found.equal.value == 0
    assert math.isnan(found.gold.value)


def test_who_cannot_have_read_is_too_fast() -> None:
    # "be brief", "question 0", "one two", "three four": eight words.
    assert report(MADE, honest, seconds=0.5).words_per_second == 16
    assert report(MADE, honest, seconds=0.5).flags == ["too_fast"]
    assert report(MADE, honest, seconds=0.75).flags == []
    assert report(MADE, honest, seconds=0.0).flags == ["too_fast"]
    assert report(MADE[:4], honest, seconds=0.5).flags == []
    unknown = report(MADE, honest)
    assert unknown.flags == [] and math.isnan(unknown.words_per_second)


def test_a_chinese_character_is_a_word() -> None:
    (task,), _ = make_tasks([prompt("数", "数学 ok", "です。")], PLAN)
    # be, brief, question, 数; 数, 学, ok; で, す, 。
    found = check([replace(answer(task, "ann", 1, 2), seconds=1.0)], {task.id: task})["ann"]
    assert found.words_per_second == 10


def test_equal_scores_nearly_everywhere_are_a_sign() -> None:
    def ties(until: int) -> Callable[[int, Task], list[float]]:
        return lambda number, task: [4.0, 4.0] if number < until else honest(number, task)

    assert report(MADE, ties(33)).flags == ["constant"] and report(MADE, ties(33)).equal.hits == 33
    assert report(MADE, ties(32)).flags == []
    assert report(MADE[:4], ties(4)).flags == []


def test_known_answers_are_to_be_found() -> None:
    def right_until(until: int) -> Callable[[int, Task], list[float]]:
        return lambda number, task: [7.0, 4.0, 1.0] if number < until else [1.0, 4.0, 7.0]

    assert report(GOLD, right_until(7)).gold.value == 0.7 and "gold" not in report(GOLD, right_until(7)).flags
    assert "gold" in report(GOLD, right_until(6)).flags
    assert report(GOLD[:1], right_until(0)).gold.number == 3 and report(GOLD[:1], right_until(0)).flags == []
    ties = report(GOLD[:2], lambda number, task: [4.0, 4.0, 1.0])
    assert (ties.gold.hits, ties.gold.number) == (4, 6)


def test_who_scores_places_instead_of_texts_is_found() -> None:
    def by_place(until: int) -> Callable[[int, Task], list[float]]:
        """The first shown is best in the first tasks, the last shown in the others."""
        return lambda number, task: task.unshuffled([7.0, 1.0] if number < until else [1.0, 7.0])

    assert report(MADE, by_place(40)).flags == report(MADE, by_place(0)).flags == ["position"]
    assert report(MADE, by_place(40)).first_place.value == 1
    # Of 40 fair throws, 31 or more or 9 or fewer fall with 0.0007, 30 or 10 with 0.0022.
    assert report(MADE, by_place(31)).flags == ["position"] and report(MADE, by_place(30)).flags == []


@pytest.mark.parametrize(
    ("hits", "number", "p"),
    [(0, 0, 1), (1, 1, 1), (0, 5, 2 / 32), (5, 5, 2 / 32), (1, 6, 14 / 64), (3, 6, 1), (9, 10, 22 / 1024)],
)
def test_the_binomial_test_is_exact(hits: int, number: int, p: float) -> None:
    assert binomial_p(hits, number) == p


def test_the_binomial_test_holds_for_many_tasks() -> None:
    # A deviation of 3 in ten thousand throws: 0.0027 in a normal distribution.
    assert binomial_p(4850, 10_000) == pytest.approx(0.0027, rel=0.06)


def test_each_annotator_is_looked_at_alone_and_thresholds_can_be_set() -> None:
    answers: list[Answer] = []
    for number, task in enumerate(MADE):
        answers += [answer(task, "bob", *honest(number, task)), answer(task, "ann", 4, 4)]
    assert {name: found.flags for name, found in check(answers, TASKS).items()} == {"ann": ["constant"], "bob": []}
    assert list(check(answers, TASKS)) == ["ann", "bob"]
    assert check(answers, TASKS, Thresholds(equal_share=1.0))["ann"].flags == []
