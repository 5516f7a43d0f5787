"""Pairs hold what they promise for any scores: the order of rows and responses is no judge, fractions are exact."""

from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.records import Comparison, write_rows
from components.data_prep.adapters import Judged
from components.data_prep.comparisons import Pair, PromptGroup, group, strict_pairs
from components.training.data import read_comparisons

ASKED = [{"role": "user", "content": "Q"}]
NAMES = "abcdef"
# Tenths, which binary fractions hold only nearly; the oracles below count in whole tenths.
ROW = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 12), min_size=2)
ROWS = st.lists(ROW, min_size=1, max_size=4)
MIN_GAPS = st.integers(0, 5)


def judged(row: dict[str, int], order: list[str] | None = None) -> Judged:
    names = order or list(row)
    return Judged(messages=ASKED, responses=names, scores=[row[name] / 10 for name in names])


def grouped(rows: list[Judged]) -> PromptGroup:
    (prompt,) = group((f"f:{number}", row) for number, row in enumerate(rows))
    return prompt


def named(prompt: PromptGroup, pairs: list[Pair]) -> dict[tuple[str, str], float]:
    """Pairs by their responses' text."""
    return {(prompt.responses[pair["chosen"]], prompt.responses[pair["rejected"]]): pair["gap"] for pair in pairs}


def verdicts(rows: list[dict[str, int]], min_gap: int) -> dict[tuple[str, str], list[int]]:
    """Of each two responses, in tenths, the clear differences."""
    found: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        for first, second in combinations(sorted(row), 2):
            gaps = found.setdefault((first, second), [])
            if abs(row[first] - row[second]) > min_gap:
                gaps.append(row[first] - row[second])
    return found


@given(rows=ROWS, min_gap=MIN_GAPS)
def test_pairs_are_those_that_rows_agree_on_by_more_than_the_minimum(rows: list[dict[str, int]], min_gap: int) -> None:
    prompt = grouped([judged(row) for row in rows])
    pairs = strict_pairs(prompt.votes, min_gap / 10)
    expected, conflicts, unclear = {}, 0, 0
    for (first, second), gaps in verdicts(rows, min_gap).items():
        if not gaps:
            unclear += 1
        elif min(gaps) < 0 < max(gaps):
            conflicts += 1
        else:
            best = (first, second) if gaps[0] > 0 else (second, first)
            expected[best] = sum(map(abs, gaps)) / len(gaps) / 10
    assert named(prompt, pairs.strict) == pytest.approx(expected)
    assert (pairs.conflicts, pairs.ties + pairs.small_gaps) == (conflicts, unclear)
    assert all(pair["gap"] > min_gap / 10 for pair in pairs.strict)


@given(row=ROW, min_gap=MIN_GAPS)
def test_ties_are_equal_scores_and_small_gaps_are_not(row: dict[str, int], min_gap: int) -> None:
    pairs = strict_pairs(grouped([judged(row)]).votes, min_gap / 10)
    gaps = [abs(first - second) for first, second in combinations(row.values(), 2)]
    assert (pairs.ties, pairs.small_gaps) == (gaps.count(0), sum(0 < gap <= min_gap for gap in gaps))


@given(rows=ROWS, min_gap=MIN_GAPS)
def test_reversed_scores_reverse_every_pair_and_nothing_else(rows: list[dict[str, int]], min_gap: int) -> None:
    forward = grouped([judged(row) for row in rows])
    backward = grouped([judged({name: 12 - score for name, score in row.items()}) for row in rows])
    one, other = (strict_pairs(prompt.votes, min_gap / 10) for prompt in (forward, backward))
    swapped = {(rejected, chosen): gap for (chosen, rejected), gap in named(forward, one.strict).items()}
    assert named(backward, other.strict) == swapped
    assert (one.ties, one.small_gaps, one.conflicts) == (other.ties, other.small_gaps, other.conflicts)


@given(rows=ROWS, min_gap=MIN_GAPS, data=st.data())
def test_order_of_rows_and_responses_changes_indices_alone(
    rows: list[dict[str, int]], min_gap: int, data: st.DataObject
) -> None:
    prompt = grouped([judged(row) for row in rows])
    shuffled = [judged(row, data.draw(st.permutations(list(row)))) for row in data.draw(st.permutations(rows))]
    other = grouped(shuffled)
    one, two = (strict_pairs(found.votes, min_gap / 10) for found in (prompt, other))
    assert named(prompt, one.strict) == named(other, two.strict)  # gaps to the last bit
    assert (one.ties, one.small_gaps, one.conflicts) == (two.ties, two.small_gaps, two.conflicts)
    assert sorted(prompt.responses) == sorted(other.responses)


@given(rows=ROWS, limit=st.integers(1, 8))
def test_a_cap_keeps_the_widest_and_counts_the_rest(rows: list[dict[str, int]], limit: int) -> None:
    votes = grouped([judged(row) for row in rows]).votes
    every, capped = strict_pairs(votes), strict_pairs(votes, limit=limit)
    assert capped.strict == every.strict[:limit]
    assert all(one["gap"] >= other["gap"] for one, other in pairwise(every.strict))
    assert capped.over_limit == len(every.strict) - len(capped.strict)


@given(rows=ROWS)
def test_every_response_is_there_once_and_no_pair_twice(rows: list[dict[str, int]]) -> None:
    prompt = grouped([judged(row) for row in rows])
    assert sorted(prompt.responses) == sorted({name for row in rows for name in row})
    pairs = strict_pairs(prompt.votes).strict
    assert len({frozenset((pair["chosen"], pair["rejected"])) for pair in pairs}) == len(pairs)
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)


@pytest.mark.parametrize(("high", "low"), [(0.4, 0.3), (0.3, 0.2), (0.8, 0.7), (2.3, 2.2)])
def test_a_gap_of_a_tenth_is_a_tenth(high: float, low: float) -> None:
    """In binary fractions 0.4 - 0.3 > 0.1 > 0.3 - 0.2."""
    votes = grouped([Judged(messages=ASKED, responses=["a", "b"], scores=[high, low])]).votes
    assert [pair["gap"] for pair in strict_pairs(votes).strict] == [0.1]
    assert [pair["gap"] for pair in strict_pairs(votes, 0.09).strict] == [0.1]
    assert strict_pairs(votes, 0.1).small_gaps == 1


def test_equal_means_are_a_tie() -> None:
    """(0.1 + 0.2) / 2 is not 0.15 in binary fractions."""
    row = Judged(messages=ASKED, responses=["a", "b", "a"], scores=[0.1, 0.15, 0.2])
    assert strict_pairs(grouped([row]).votes).ties == 1


def test_fractions_reach_the_trainer(tmp_path: Path) -> None:
    prompt = grouped([judged({"a": 10, "b": 9, "c": 7})])
    pairs = strict_pairs(prompt.votes).strict
    row = Comparison(
        id="i", source="s", licence="l", messages=ASKED, responses=prompt.responses, pairs=pairs,
        input_ids=[[1], [2], [3]],
    )  # fmt: skip
    write_rows(tmp_path / "rows.parquet", [row], Comparison)
    found = read_comparisons(tmp_path / "rows.parquet")
    assert found.pairs[0].tolist() == [[0, 2], [1, 2], [0, 1]]
    assert found.gaps[0].tolist() == pytest.approx([0.3, 0.2, 0.1])
