"""Alpha against published numbers, numbers by hand and another implementation; agreement with the majority by hand."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.annotate.agreement import LEVELS, Floats, Level, Share, alpha, majority_agreement, ratings
from components.annotate.tasks import Plan, make_tasks
from tests.unit.annotate.support import SOME_EXAMPLES, answer, prompt


def table(*rows: str) -> Floats:
    """Annotators by units, a digit each and a dot where there is none."""
    return np.array([[math.nan if cell == "." else float(cell) for cell in row.replace(" ", "")] for row in rows])


# K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), examples A and C/D.
TWO_CODERS = table("0100000010", "1110010000")
FOUR_OBSERVERS = table("123321412...", "1233224125.3", ".33323422 51.", "12332441251.")
# Wikipedia, Krippendorff's alpha: three coders, 15 units.
THREE_CODERS = table(".....34121133.3", "1.21334 3 .......", "..213 44.21133.4")


@pytest.mark.parametrize(
    ("scores", "level", "expected"),
    [
        (TWO_CODERS, "nominal", 0.095),
        (FOUR_OBSERVERS, "nominal", 0.743),
        (FOUR_OBSERVERS, "ordinal", 0.815),
        (FOUR_OBSERVERS, "interval", 0.849),
        (THREE_CODERS, "nominal", 0.691),
        (THREE_CODERS, "interval", 0.811),
    ],
)
def test_alpha_is_the_published_one(scores: Floats, level: Level, expected: float) -> None:
    assert alpha(scores, level) == pytest.approx(expected, abs=5e-4)


def test_alpha_by_hand() -> None:
    # Units 11, 12, 33, and a lone 2 that nothing can be paired with. Coincidences: 11 twice, 12 and 21, 33 twice;
    # values 1: 3, 2: 1, 3: 2, six in all.
    scores = table("113.", "1232")
    # Nominal: observed 2; expected (36 - 9 - 1 - 4) / 5.
    assert alpha(scores, "nominal") == pytest.approx(1 - 2 / (22 / 5), rel=1e-12)
    # Interval: observed 1 + 1; expected 2 (3·1·1 + 3·2·4 + 1·2·1) / 5.
    assert alpha(scores, "interval") == pytest.approx(1 - 2 / (2 * 29 / 5), rel=1e-12)
    # Ordinal, differences by ranks: 1-2: (3 + 1)/2 = 2, 2-3: (1 + 2)/2 = 1.5, 1-3: 3.5.
    assert alpha(scores, "ordinal") == pytest.approx(1 - 2 * 4 / (2 * (3 * 4 + 6 * 12.25 + 2 * 2.25) / 5), rel=1e-12)


def test_three_in_a_unit_weigh_as_much_as_three_scores() -> None:
    # Unit 112: pairs 11, 12, 12, each way, over 2: 11 once, 12 and 21 once each. Unit 22: twice 22. Values 1: 2, 2: 3.
    scores = table("12", "12", "2.")
    assert alpha(scores, "nominal") == pytest.approx(1 - 2 / (2 * 2 * 3 / 4), rel=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_full_agreement_is_one_and_what_cannot_be_told_is_nan(level: Level) -> None:
    assert alpha(table("1273", "1273"), level) == 1
    for nothing in (table("1111", "1111"), table("12..", "..34"), table("1234"), np.empty((0, 0)), np.empty((2, 0))):
        assert math.isnan(alpha(nothing, level))


SCORES = st.integers(2, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.one_of(st.just(math.nan), st.sampled_from([1.0, 2.0, 2.5, 7.0])), min_size=width, max_size=width),
        min_size=1, max_size=5,
    )
).map(np.array)  # fmt: skip


def by_pairs(scores: Floats, level: Level) -> float:
    """Alpha straight from its meaning: the mean difference of pairs within units over that of all pairs."""
    units = [[value for value in column if not math.isnan(value)] for column in scores.T]
    units = [unit for unit in units if len(unit) > 1]
    flat = sorted(value for unit in units for value in unit)

    def difference(one: float, other: float) -> float:
        low, high = min(one, other), max(one, other)
        ranks = sum(low <= value <= high for value in flat) - (flat.count(low) + flat.count(high)) / 2
        return {"nominal": float(one != other), "ordinal": ranks**2 if one != other else 0.0,
                "interval": (one - other) ** 2}[level]  # fmt: skip

    within = sum(2 * difference(*pair) / (len(unit) - 1) for unit in units for pair in combinations(unit, 2))
    among = sum(2 * difference(*pair) for pair in combinations(flat, 2)) / (len(flat) - 1) if flat else 0.0
    return 1 - within / among if among else math.nan


@SOME_EXAMPLES
@given(SCORES, st.sampled_from(LEVELS), st.randoms())
def test_alpha_is_its_definition_whoever_comes_first(scores: Floats, level: Level, random: Any) -> None:
    found = alpha(scores, level)
    assert found == pytest.approx(by_pairs(scores, level), rel=1e-9, abs=1e-9, nan_ok=True)
    rows, columns = (random.sample(range(length), length) for length in scores.shape)
    assert alpha(scores[rows][:, columns], level) == pytest.approx(found, rel=1e-9, abs=1e-9, nan_ok=True)


@SOME_EXAMPLES
@given(SCORES, st.floats(0.5, 4), st.floats(-9, 9))
def test_only_what_a_level_looks_at_counts(scores: Floats, scale: float, shift: float) -> None:
    assert alpha(scores * scale + shift, "interval") == pytest.approx(alpha(scores, "interval"), abs=1e-6, nan_ok=True)
    assert alpha(scores**3, "ordinal") == pytest.approx(alpha(scores, "ordinal"), abs=1e-9, nan_ok=True)
    assert alpha(-(scores**3), "nominal") == pytest.approx(alpha(scores, "nominal"), abs=1e-9, nan_ok=True)


@SOME_EXAMPLES
@given(SCORES, st.sampled_from(LEVELS))
def test_alpha_is_that_of_the_library(scores: Floats, level: Level) -> None:
    reason = "krippendorff, which the project may not depend on (GPL), is not installed"
    library = pytest.importorskip("krippendorff", reason=reason)
    found = alpha(scores, level)
    if not math.isnan(found):
        expected = library.alpha(reliability_data=scores, level_of_measurement=level)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


PLAN = Plan(annotators=3, overlap=3, overlap_share=1)
MADE, _ = make_tasks([prompt("a", "x", "y", "z"), prompt("b", "v", "w")], PLAN)
TASKS = {task.id: task for task in MADE}
OF = {(task.prompt.id[-1], task.slot): task for task in MADE}
ANSWERS = [
    answer(OF["a", 0], "ann", 7, 4, 1), answer(OF["a", 1], "bob", 6, 5, 5), answer(OF["a", 2], "cid", 1, 2, 2),
    answer(OF["b", 0], "ann", 3, 1), answer(OF["b", 1], "bob", 1, 3),
]  # fmt: skip


def test_ratings_are_an_array_of_annotators_by_responses() -> None:
    scores, annotators = ratings(reversed(ANSWERS), TASKS)
    assert annotators == ["ann", "bob", "cid"]
    np.testing.assert_array_equal(scores, table("74131", "65513", "122.."))


def test_agreement_with_the_majority_of_the_others_by_hand() -> None:
    # Prompt a, pairs xy, xz, yz as signs: ann +++, bob ++0, cid --0. Without ann, bob and cid cancel out on xy and xz,
    # and have no order on yz. Without bob, ann and cid cancel out. Without cid, ann and bob have ++ and ann + on yz.
    # Prompt b: ann + and bob - are each other's majority.
    assert majority_agreement(ANSWERS, TASKS) == {"ann": Share(0, 1), "bob": Share(0, 1), "cid": Share(0, 2)}


def test_who_orders_like_the_others_agrees_and_alone_nothing_is_said() -> None:
    alike = [answer(OF["a", slot], name, 3, 2, 1 + slot) for slot, name in enumerate(["ann", "bob", "cid"])]
    # Signs: ann +++, bob ++0, cid +0-. Others: ann against + + -, bob against ++0 (+ and -), cid against +++.
    assert majority_agreement(alike, TASKS) == {"ann": Share(2, 3), "bob": Share(2, 2), "cid": Share(1, 2)}
    alone = majority_agreement(alike[:1], TASKS)
    assert alone == {"ann": Share(0, 0)} and math.isnan(alone["ann"].value)
    assert Share(2, 3).value == 2 / 3
