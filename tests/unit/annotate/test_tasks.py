"""Who is asked what: shares, order, ids, and what never leaves."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.annotate import argilla, label_studio
from components.annotate.tasks import Plan, Sampled, batches, displayable, make_tasks, one_each, sampled
from components.core.errors import UserError
from tests.unit.annotate.support import SECRET, SOME_EXAMPLES, plans, prompt, prompts

MANY = [prompt(str(number), "one", "two", "three") for number in range(2000)]


@SOME_EXAMPLES
@given(prompts(), plans())
def test_no_model_strategy_or_id_reaches_the_annotator(some: list[Sampled], plan: Plan) -> None:
    tasks, rejected = make_tasks([*some, prompt("gold", "right", "wrong", gold=[1, 0])], plan)
    assert tasks and not rejected
    for tool in (label_studio, argilla):
        files = tool.files(tasks, plan)
        assert all(task.prompt.messages[-1]["content"] in "".join(files.values()) for task in tasks)
        assert SECRET not in "".join([*files, *files.values()]) and "gold" not in "".join(files)


@SOME_EXAMPLES
@given(prompts(), plans(), st.randoms())
def test_an_export_depends_on_prompts_and_plan_alone(some: list[Sampled], plan: Plan, random: Any) -> None:
    shuffled = random.sample(some, len(some))
    for tool in (label_studio, argilla):
        first, again = (tool.files(make_tasks(given, plan)[0], plan) for given in (some, shuffled))
        assert list(first.items()) == list(again.items())


@SOME_EXAMPLES
@given(prompts(), prompts(max_size=3), plans())
def test_more_prompts_leave_the_old_tasks_alone(some: list[Sampled], others: list[Sampled], plan: Plan) -> None:
    more = [replace(other, id=f"more {other.id}") for other in others]
    old, both = make_tasks(some, plan)[0], make_tasks([*some, *more], plan)[0]
    assert [task for task in both if task.prompt in some] == old


@SOME_EXAMPLES
@given(prompts(), plans())
def test_a_prompt_has_one_annotator_or_the_overlap_and_nobody_twice(some: list[Sampled], plan: Plan) -> None:
    slots: dict[str, list[int]] = {}
    for task in make_tasks(some, plan)[0]:
        slots.setdefault(task.prompt.id, []).append(task.slot)
    assert len(slots) == len(some)
    for taken in slots.values():
        assert len(taken) in (1, plan.overlap) and len(set(taken)) == len(taken) and max(taken) < plan.annotators


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_share_of_prompts_is_given_to_several_and_work_is_shared(share: float) -> None:
    tasks, _ = make_tasks(MANY, Plan(annotators=4, overlap=3, overlap_share=share))
    of = Counter(task.prompt.id for task in tasks)
    assert abs(Counter(of.values())[3] - 2000 * share) <= 3 * math.sqrt(2000 * share * (1 - share))
    load = Counter(task.slot for task in tasks)
    assert all(abs(load[slot] - len(tasks) / 4) < 80 for slot in range(4))


def test_every_order_is_as_frequent_and_slots_and_seeds_have_their_own() -> None:
    orders = {
        seed: {(task.prompt.id, task.slot): task.order for task in make_tasks(MANY, plan)[0]}
        for seed in (0, 1) for plan in [Plan(annotators=2, overlap=2, overlap_share=1, seed=seed)]
    }  # fmt: skip
    found = Counter(orders[0].values())
    assert len(found) == 6 and all(abs(number - 4000 / 6) < 100 for number in found.values())
    # Two independent orders of three are the same one time in six.
    slots = sum(orders[0][one.id, 0] == orders[0][one.id, 1] for one in MANY)
    seeds = sum(order == orders[1][place] for place, order in orders[0].items())
    assert 270 < slots < 400 and 560 < seeds < 780


def test_scores_go_back_to_the_responses_they_were_given_to() -> None:
    (task, *_), _ = make_tasks([prompt("a", "w", "x", "y", "z")], Plan())
    task = replace(task, order=(2, 0, 3, 1))
    assert task.shown() == ["y", "w", "z", "x"]
    assert task.unshuffled([7, 5, 3, 1]) == [5, 1, 7, 3]


def test_an_id_is_of_what_is_shown_and_of_nothing_else() -> None:
    plan = Plan(annotators=1, overlap=1)
    base = prompt("a", "one", "two")
    (task,), _ = make_tasks([base], plan)

    def same(changed: Sampled, plan: Plan = plan) -> bool:
        return make_tasks([changed], plan)[0][0].id == task.id

    assert same(prompt("a", "one", "two", model="another"))
    assert not same(prompt("a", "one", "two."))
    assert not same(replace(base, messages=({"role": "user", "content": "question"},)))
    reordered = [seed for seed in range(9) if make_tasks([base], replace(plan, seed=seed))[0][0].order != task.order]
    assert reordered and not any(same(base, replace(plan, seed=seed)) for seed in reordered)


def test_gold_prompts_are_everybodys_and_lie_among_the_others() -> None:
    golden = [prompt(f"g{number}", "right", "wrong", "either", gold=[1, 0, 0.5]) for number in range(20)]
    tasks, _ = make_tasks([*MANY[:200], *golden], Plan(annotators=3, overlap_share=0))
    for slot in range(3):
        places = [task.prompt.gold is not None for task in tasks if task.slot == slot]
        assert sum(places) == 20
        assert 4 < sum(places[: len(places) // 2]) < 16


def test_what_cannot_be_compared_or_told_apart_is_rejected_with_its_rule() -> None:
    twice = replace(prompt("b", "x", "y"), responses=prompt("b", "x").responses * 2)
    some = [
        prompt("a", "x", "y"), prompt("a", "x", "z"), twice, prompt("c", "x"), prompt("d"),
        prompt("e", "x", "y", gold=[1]),
    ]  # fmt: skip
    tasks, rejected = make_tasks(some, Plan(overlap_share=0))
    assert [task.prompt for task in tasks] == [some[0]]
    assert [(row.place, row.rule) for row in rejected] == [
        (f"{SECRET} a", "duplicate_prompt_id"), (f"{SECRET} b", "duplicate_response_id"),
        (f"{SECRET} c", "single_response"), (f"{SECRET} d", "single_response"), (f"{SECRET} e", "score_count"),
    ]  # fmt: skip


def test_a_project_holds_one_slot_and_one_number_of_responses() -> None:
    plan = Plan(annotators=2, overlap=2, overlap_share=1)
    tasks, _ = make_tasks([prompt("a", "x", "y"), prompt("b", "x", "y", "z")], plan)
    found = batches(tasks)
    assert list(found) == [f"annotator-{slot}-responses-{number}" for slot in (1, 2) for number in (2, 3)]
    assert all(len(batch) == 1 for batch in found.values())


@SOME_EXAMPLES
@given(prompts(), plans())
def test_a_judge_sees_every_prompt_once(some: list[Sampled], plan: Plan) -> None:
    tasks, _ = make_tasks(some, plan)
    chosen = one_each(tasks)
    assert sorted(task.prompt.id for task in chosen) == sorted(one.id for one in some)
    assert all(task in tasks for task in chosen)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\r\nc", "a\tb\r\nc"), ("a\x00b\x1bc\x7f", "a\ufffdb\ufffdc\ufffd"), ("\ud83d half", "\ufffd half"),
        ("😀", "😀"), ("", "(empty)"), (" \n", "(empty)"), ("\ufffe\uffff", "\ufffd\ufffd"),
    ],
)  # fmt: skip
def test_text_is_shown_as_it_is_but_for_what_no_tool_can_hold(text: str, shown: str) -> None:
    assert displayable(text) == shown


def test_a_row_of_sampled_responses_is_read() -> None:
    row = {
        "id": "p", "messages": [{"role": "user", "content": "q"}], "gold": [1, 0],
        "responses": [{"id": "a", "text": "x", "model": "m", "strategy": "greedy"}, {"id": "b", "text": "y"}],
    }  # fmt: skip
    found = sampled(row)
    assert (found.id, found.messages, found.gold) == ("p", ({"role": "user", "content": "q"},), (1.0, 0.0))
    assert [vars(response) for response in found.responses] == [
        {"id": "a", "text": "x", "model": "m", "strategy": "greedy"},
        {"id": "b", "text": "y", "model": "", "strategy": ""},
    ]


@pytest.mark.parametrize(
    "change", [{"id": None}, {"messages": "q"}, {"responses": [{"id": "a"}]}, {"responses": None}, {"gold": ["?", 1]}]
)
def test_another_row_is_refused(change: dict[str, Any]) -> None:
    row = {"id": "p", "messages": [], "responses": [], **change}
    if row["id"] is None:
        del row["id"]
    with pytest.raises(UserError, match="not a row of sampled responses"):
        sampled(row)


@pytest.mark.parametrize(
    "wrong", [{"overlap": 0}, {"overlap": 4}, {"overlap_share": 1.1}, {"highest": 1}, {"highest": 11}]
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Plan(**wrong)
