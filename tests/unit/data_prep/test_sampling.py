"""Complexity-first diverse sampling: the pseudocode of recipe.md §3.1, walked naively, is the measure."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data_prep.sampling import Candidate, Caps, Sample, sample, variety

FEW_TAGS = st.lists(st.sampled_from("abcdefg"), max_size=5)
CAP = st.one_of(st.none(), st.integers(0, 4))
CAPS = st.builds(Caps, tag=CAP, category=CAP, source=CAP, language=CAP)


@st.composite
def pools(draw: st.DrawFn, max_size: int = 30) -> list[Candidate]:
    rows = draw(
        st.lists(st.tuples(FEW_TAGS, st.sampled_from(["", "x", "y"]), st.sampled_from("st")), max_size=max_size)
    )
    ids = draw(st.permutations(range(len(rows))))
    return [
        Candidate(f"{key:03}", tags, category, source, language=source + category)
        for key, (tags, category, source) in zip(ids, rows, strict=True)
    ]


def pool(*rows: str, **fields: str) -> list[Candidate]:
    """Rows by their tags, a letter each; their ids are in the order given."""
    return [Candidate(f"{number:03}", tuple(tags), **fields) for number, tags in enumerate(rows)]


def naive(candidates: list[Candidate], size: int, caps: Caps, fill: bool) -> list[str]:
    """The pseudocode, word by word, with a look at the caps where it takes a row. Returns ids."""
    left = sorted(candidates, key=lambda row: (-len(set(row.tags)), row.id))
    taken: list[Candidate] = []
    refused: set[str] = set()

    def admits(row: Candidate) -> bool:
        full = [
            caps.tag is not None and sum(tag in other.tags for other in taken) >= caps.tag for tag in set(row.tags)
        ] + [
            bool(getattr(row, kind)) and limit is not None
            and sum(getattr(other, kind) == getattr(row, kind) for other in taken) >= limit
            for kind in ("category", "source", "language") for limit in [getattr(caps, kind)]
        ]  # fmt: skip
        if any(full):
            refused.add(row.id)
        return not any(full)

    while len(taken) < size and left:
        covered: set[str] = set()
        before = len(taken)
        for row in list(left):
            if set(row.tags) - covered:
                left.remove(row)
                if admits(row):
                    taken.append(row)
                    covered |= set(row.tags)
                    if len(taken) == size:
                        return [row.id for row in taken]
        if len(taken) == before:
            break
    if fill:
        for row in left:
            if len(taken) < size and admits(row):
                taken.append(row)
    return [row.id for row in taken]


def ids(candidates: list[Candidate], found: Sample) -> list[str]:
    return [candidates[row].id for row in found.chosen]


def test_the_passes_of_a_pool_worked_out_by_hand() -> None:
    rows = pool("a", "ab", "abc", "d", "cd", "", "a", "b")
    found = sample(rows, 8)
    # By complexity: abc(2) ab(1) cd(4) a(0) d(3) a(6) b(7), then the one without tags.
    assert ids(rows, found) == ["002", "004", "001", "003", "000", "007", "006"]
    assert found.passes == [2, 2, 2, 1]  # abc cd | ab d | a b | a
    assert found.filled == 0
    assert found.before.mean_tags == pytest.approx(11 / 8) and found.after.mean_tags == pytest.approx(11 / 7)
    assert found.before.rows == 8 and found.after.rows == 7 and found.after.coverage == 1


def test_a_small_sample_is_more_complex_than_its_pool_and_covers_it() -> None:
    found = sample(pool("a", "a", "b", "ab", "c", "bcd"), 2)
    assert found.chosen == [5, 3] and found.passes == [2]
    assert found.after.mean_tags == 2.5 > found.before.mean_tags
    assert found.after.coverage == 1


def test_rows_without_tags_end_the_passes_and_fill_what_is_left() -> None:
    rows = pool("", "a", "", "a")
    assert sample(rows, 4).chosen == [1, 3]
    filled = sample(rows, 3, fill=True)
    assert filled.chosen == [1, 3, 0] and filled.filled == 1
    assert sample(pool("", ""), 5).chosen == []
    assert sample([], 5, fill=True).chosen == []
    assert sample(rows, 0, fill=True).chosen == []


def test_coverage_is_a_share_of_the_tag_set_given() -> None:
    found = sample(pool("a", "b", "a"), 1, tag_set=set("abcd"))
    assert (found.before.coverage, found.after.coverage) == (0.5, 0.25)
    assert variety(["az"], set("ab")).coverage == 0.5
    assert variety([["a", "a", "b"], []], set("ab")) == variety([["b"], ["a"]], set("ab"))
    assert variety([], ()).coverage == 1 and variety([], ()).mean_tags == 0


@pytest.mark.parametrize("kind", ["tag", "category", "source", "language"])
def test_a_cap_refuses_the_next_of_its_kind_and_leaves_the_others(kind: str) -> None:
    field = {} if kind == "tag" else {kind: "x"}
    rows = [*pool("ab", "ac", "ad", **field), Candidate("900", "e"), Candidate("901", "f")]
    found = sample(rows, 5, Caps(**{kind: 2}))
    assert ids(rows, found) == ["000", "001", "900", "901"]
    assert found.capped == {kind: 1}
    assert found.after.coverage == pytest.approx(5 / 6)


def test_in_the_place_of_a_refused_row_the_same_pass_takes_the_next_one_with_its_tag() -> None:
    rows = [*pool("abc", "de", source="x"), Candidate("2", "a"), Candidate("3", "d")]
    found = sample(rows, 9, Caps(source=1))
    assert found.chosen == [0, 3, 2] and found.passes == [2, 1] and found.capped == {"source": 1}


def test_filling_leaves_refused_rows_out_and_their_reason_alone() -> None:
    found = sample(pool("a", "a", "a", ""), 9, Caps(tag=1), fill=True)
    assert found.chosen == [0, 3] and found.capped == {"tag": 2} and found.filled == 1
    rows = [*pool("ab", "c", source="x"), Candidate("9", "c")]
    assert sample(rows, 9, Caps(tag=1, source=1), fill=True).capped == {"source": 1}


def test_an_empty_category_has_no_cap() -> None:
    assert sample(pool("a", "b", "c"), 9, Caps(category=0, source=0, language=0)).chosen == [0, 1, 2]


@given(rows=pools(), size=st.integers(0, 35), caps=CAPS, fill=st.booleans())
def test_the_choice_is_that_of_the_naive_passes(rows: list[Candidate], size: int, caps: Caps, fill: bool) -> None:
    assert ids(rows, sample(rows, size, caps, fill=fill)) == naive(rows, size, caps, fill)


@given(rows=pools(), size=st.integers(0, 35), caps=CAPS, fill=st.booleans(), seed=st.randoms())
def test_the_order_of_the_input_does_not_matter(
    rows: list[Candidate], size: int, caps: Caps, fill: bool, seed: random.Random
) -> None:
    mixed = [row._replace(tags=seed.sample(row.tags, len(row.tags))) for row in seed.sample(rows, len(rows))]
    first, second = sample(rows, size, caps, fill=fill), sample(mixed, size, caps, fill=fill)
    assert ids(rows, first) == ids(mixed, second)
    assert (first.passes, first.filled, first.before, first.after) == (
        second.passes, second.filled, second.before, second.after,
    )  # fmt: skip


@given(rows=pools())
def test_the_first_pass_covers_every_tag_of_the_pool(rows: list[Candidate]) -> None:
    found = sample(rows, len(rows))
    first_pass = found.chosen[: found.passes[0]] if found.passes else []
    assert {tag for row in first_pass for tag in rows[row].tags} == {tag for row in rows for tag in row.tags}
    assert sum(found.passes) == len(found.chosen) == sum(bool(row.tags) for row in rows)


@given(rows=pools(), size=st.integers(0, 35), caps=CAPS, fill=st.booleans())
def test_no_cap_is_exceeded_and_every_row_is_chosen_once(
    rows: list[Candidate], size: int, caps: Caps, fill: bool
) -> None:
    found = sample(rows, size, caps, fill=fill)
    chosen = [rows[row] for row in found.chosen]
    assert len(set(found.chosen)) == len(chosen) <= size
    counts = {
        "tag": Counter(tag for row in chosen for tag in set(row.tags)),
        **{kind: Counter(getattr(row, kind) or None for row in chosen) for kind in ("category", "source", "language")},
    }
    for kind, found_counts in counts.items():
        limit = getattr(caps, kind)
        assert limit is None or all(number <= limit for name, number in found_counts.items() if name)


def test_a_pool_where_every_row_needs_a_pass_of_its_own_is_walked_once() -> None:
    """The naive passes would look at 5 * 10^9 rows."""
    rows = [Candidate(f"{number:06}", ("a",)) for number in range(100_000)]
    rows += [Candidate(f"{number:06}", (str(number),)) for number in range(100_000, 101_000)]
    found = sample(rows, len(rows))
    assert found.passes == [1001] + [1] * 99_999
    assert found.chosen == [0, *range(100_000, 101_000), *range(1, 100_000)]
