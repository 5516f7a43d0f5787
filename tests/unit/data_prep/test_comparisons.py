"""Pairs: all strict ones of a prompt, fractions kept, ties dropped and counted, rows of a prompt together."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from components.data_prep.adapters import Judged
from components.data_prep.comparisons import Pair, PromptGroup, compact, group, strict_pairs

ASKED = [{"role": "user", "content": "Q"}]


def judged(responses: list[str], scores: list[float], asked: str = "Q", **more: object) -> Judged:
    return Judged(messages=[{"role": "user", "content": asked}], responses=responses, scores=scores, **more)  # type: ignore[arg-type]


def grouped(*rows: Judged) -> list[PromptGroup]:
    return list(group((f"f:{number}", row) for number, row in enumerate(rows, 1)))


def as_sets(pairs: list[Pair]) -> set[tuple[int, int, float]]:
    return {(pair["chosen"], pair["rejected"], pair["gap"]) for pair in pairs}


def test_recipe_example_has_five_strict_pairs_and_one_tie() -> None:
    (prompt,) = grouped(judged(["a", "b", "c", "d"], [3, 3, 2.5, 1]))
    pairs = strict_pairs(prompt.votes)
    assert as_sets(pairs.strict) == {(0, 2, 0.5), (1, 2, 0.5), (0, 3, 2), (1, 3, 2), (2, 3, 1.5)}
    assert (pairs.ties, pairs.small_gaps, pairs.conflicts) == (1, 0, 0)


def test_gap_must_be_above_the_minimum() -> None:
    (prompt,) = grouped(judged(["a", "b", "c"], [1, 1.5, 3]))
    pairs = strict_pairs(prompt.votes, min_gap=0.5)
    assert as_sets(pairs.strict) == {(2, 0, 2), (2, 1, 1.5)}
    assert pairs.small_gaps == 1


def test_over_the_limit_the_widest_gaps_stay() -> None:
    (prompt,) = grouped(judged(["a", "b", "c"], [1, 1.5, 3]))
    pairs = strict_pairs(prompt.votes, limit=2)
    assert as_sets(pairs.strict) == {(2, 0, 2), (2, 1, 1.5)}
    assert pairs.over_limit == 1


def test_rows_of_one_prompt_become_one_group_with_distinct_responses() -> None:
    first, second = grouped(
        judged(["base", "x"], [0, 1]),
        judged(["other", "y"], [1, 0], "R"),
        judged(["base", " x  "], [0, 1]),
        judged(["base", "z"], [1, 0]),
    )
    assert (first.responses, first.rows, first.place) == (["base", "x", "z"], 3, "f:1")
    assert as_sets(strict_pairs(first.votes).strict) == {(1, 0, 1), (0, 2, 1)}
    assert second.responses == ["other", "y"]


def test_a_prompt_is_its_turns_and_its_system_prompt_whatever_the_white_space() -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    briefly = [{"role": "system", "content": "Be brief."}, *chat]
    rows = [Judged(messages=m, responses=["x", "y"], scores=[1, 0]) for m in (chat, briefly, chat[:1], chat)]
    assert [prompt.rows for prompt in grouped(*rows)] == [2, 1, 1]
    assert len(grouped(judged(["x", "y"], [1, 0], "a  b"), judged(["x", "y"], [1, 0], "a\nb"))) == 1


def test_rows_that_contradict_each_other_drop_the_pair_and_are_counted() -> None:
    (prompt,) = grouped(judged(["a", "b"], [1, 0]), judged(["a", "b"], [0, 1]))
    pairs = strict_pairs(prompt.votes)
    assert (pairs.strict, pairs.conflicts, pairs.rule) == ([], 1, "conflicting_scores")


def test_a_tie_beside_a_verdict_leaves_the_verdict() -> None:
    (prompt,) = grouped(judged(["a", "b"], [0, 0]), judged(["b", "a"], [2, 1]))
    assert as_sets(strict_pairs(prompt.votes).strict) == {(1, 0, 1)}


def test_gap_is_the_mean_of_rows_that_agree() -> None:
    (prompt,) = grouped(judged(["a", "b"], [1, 0]), judged(["a", "b"], [3, 1]))
    assert as_sets(strict_pairs(prompt.votes).strict) == {(0, 1, 1.5)}


def test_why_there_is_no_pair() -> None:
    assert strict_pairs({(0, 1): [0.0]}).rule == "tie"
    assert strict_pairs({(0, 1): [0.2]}, min_gap=0.5).rule == "small_gap"


def test_response_given_twice_counts_once_with_its_mean_score() -> None:
    (prompt,) = grouped(judged(["a", "b", "a "], [1, 1.5, 3]))
    assert (prompt.responses, prompt.repeated_responses) == (["a", "b"], 1)
    assert as_sets(strict_pairs(prompt.votes).strict) == {(0, 1, 0.5)}


def test_scores_of_different_rows_are_never_compared() -> None:
    (prompt,) = grouped(judged(["a", "b"], [1, 0]), judged(["c", "d"], [9, 8]))
    assert as_sets(strict_pairs(prompt.votes).strict) == {(0, 1, 1), (2, 3, 1)}


def test_true_scores_make_pairs_of_their_own() -> None:
    (prompt,) = grouped(judged(["a", "b"], [1, 0], true_scores=[0.2, 0.9]))
    assert as_sets(strict_pairs(prompt.votes).strict) == {(0, 1, 1)}
    assert [(p["chosen"], p["rejected"]) for p in strict_pairs(prompt.true_votes).strict] == [(1, 0)]


def test_facts_about_responses_follow_them_and_facts_about_the_prompt_stay() -> None:
    (prompt,) = grouped(
        judged(["a", "b"], [1, 0], meta={"kind": "sum", "grades": ["good", "bad"]}),
        judged(["b", "c"], [1, 0], meta={"kind": "sum", "grades": ["bad", "worse"]}),
    )
    assert prompt.meta == {"kind": "sum"}
    assert prompt.response_meta == {"grades": {0: "good", 1: "bad", 2: "worse"}}


def test_compact_leaves_out_responses_without_a_pair() -> None:
    used, pairs = compact([{"chosen": 5, "rejected": 2, "gap": 1.0}, {"chosen": 2, "rejected": 0, "gap": 1.0}])
    assert used == [0, 2, 5]
    assert as_sets(pairs) == {(2, 1, 1.0), (1, 0, 1.0)}


SCORES = st.lists(st.integers(0, 4).map(lambda n: n / 2), min_size=2, max_size=7)


@given(scores=SCORES)
def test_every_two_responses_are_a_pair_in_the_right_order_or_a_tie(scores: list[float]) -> None:
    (prompt,) = grouped(judged([str(index) for index in range(len(scores))], scores))
    pairs = strict_pairs(prompt.votes)
    assert len(pairs.strict) + pairs.ties == len(list(combinations(scores, 2)))
    for pair in pairs.strict:
        assert scores[pair["chosen"]] - scores[pair["rejected"]] == pair["gap"] > 0


@given(scores=SCORES)
def test_a_row_given_twice_changes_nothing(scores: list[float]) -> None:
    row = judged([str(index) for index in range(len(scores))], scores)
    (once,), (twice,) = grouped(row), grouped(row, row)
    assert strict_pairs(once.votes).strict == strict_pairs(twice.votes).strict
