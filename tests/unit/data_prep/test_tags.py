"""The four stages that make a tag set of an open set of tags, each with cases worked out by hand."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations_with_replacement, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from components.data_prep import tags
from components.data_prep.tags import (
    Normalisation,
    Settings,
    Vectors,
    association_rules,
    cleaned,
    clusters,
    count_tags,
    count_together,
    hashed_ngrams,
    merge_alike,
    merge_associated,
    normalise,
    stems,
)

LOW = Settings(min_count=2, min_support=2, min_confidence=0.75)
RAW = ["Math", "math!", "maths", "Text Writing", "writing texts", "数学", "C++", "c", "???", "algebra"]
ROWS = st.lists(st.lists(st.sampled_from(RAW), max_size=5), max_size=25)


def apart(tags: Sequence[str]) -> Vectors:
    """An embedding in which nothing is alike."""
    return np.eye(len(tags), dtype=np.float32)


def associated(rows: list[str], settings: Settings) -> Normalisation:
    """The last stage alone, over rows of one-letter tags that map to themselves."""
    counts = count_tags(rows)
    same = Normalisation({tag: tag for tag in counts}, {})
    return merge_associated(same, count_together(rows, same, counts, settings), settings)


@pytest.mark.parametrize(
    ("tag", "clean", "stemmed"),
    [
        ("Creative_Writing!", "creative writing", "creativ write"),
        ("  data-analysis / studies ", "data analysis studies", "data analysi studi"),
        ("C++", "c++", "c++"),
        ("C# & F#, c", "c# f# c", "c# f# c"),
        ("#hashtag ++x", "hashtag x", "hashtag x"),
        ("ＡＢＣ　数学题", "abc 数学题", "abc 数学题"),
        ("Übungen", "übungen", "übungen"),
        ("-?-", "", ""),
    ],
)
def test_rules_lower_clean_and_stem(tag: str, clean: str, stemmed: str) -> None:
    assert cleaned(tag) == clean
    assert stems(clean) == stemmed


def test_a_tag_counts_once_a_row() -> None:
    assert count_tags([["a", "a", "b"], ["a"], []]) == {"a": 2, "b": 1}


def test_every_stage_by_hand() -> None:
    counts = Counter(
        {"math": 30, "Maths": 25, "MATHS": 25, "algebra": 20, "rare": 19, "Rare": 19, "??": 50, "sums": 60}
    )

    def embed(tags: Sequence[str]) -> Vectors:
        assert list(tags) == ["algebra", "maths", "sums"]
        return np.array([[1, 0], [0, 1], [0.1, 1]], np.float32)

    found = merge_alike(counts, embed)
    # maths is 25 + 25 rows against 30 of math; sums are 60 against the 80 of both.
    assert found.mapping == {**dict.fromkeys(["math", "Maths", "MATHS", "sums"], "maths"), "algebra": "algebra"}
    assert found.stages == {"raw": 8, "frequency": 6, "rules": 3, "meaning": 2}
    assert found.tags(["algebra", "sums", "rare", "Maths"]) == ["algebra", "maths"]


def test_frequency_is_judged_before_spellings_are_merged() -> None:
    assert merge_alike({"Math": 19, "math": 19}, apart).mapping == {}
    assert merge_alike({"Math": 20, "math": 19}, apart).mapping == {"Math": "math"}


def test_among_equally_frequent_tags_the_first_in_the_alphabet_names_the_group() -> None:
    alike = merge_alike({"writing": 20, "writes": 20, "ahead": 20}, lambda tags: np.ones((len(tags), 1), np.float32))
    assert set(alike.mapping.values()) == {"writes"}  # 40 rows against 20
    alone = merge_alike({"b": 20, "a": 20}, lambda tags: np.ones((len(tags), 1), np.float32))
    assert set(alone.mapping.values()) == {"a"}


@pytest.mark.parametrize(("cosine", "together"), [(0.95, True), (0.9499, False), (0.99, True)])
def test_tags_are_alike_up_to_a_cosine_distance_of_one_twentieth(cosine: float, together: bool) -> None:
    vectors = np.array([[2, 0], [cosine, (1 - cosine**2) ** 0.5], [0, 0]], np.float32)
    assert clusters(vectors, 0.05) == [0, 0 if together else 1, 2]


@pytest.mark.parametrize("size", range(20, 2001, 60))
def test_rounding_does_not_decide_at_the_limit_itself(size: int) -> None:
    """Of `size` n-grams nineteen in twenty are shared: the cosine is 0.95 but for the rounding of 32-bit sums."""
    vectors = np.zeros((2, 2 * size), np.float32)
    vectors[0, :size] = 1
    vectors[1, size // 20 : size + size // 20] = 1
    assert clusters(vectors, 0.05) == [0, 0]


def test_clusters_hang_together_by_neighbours() -> None:
    """0.05 is 18 degrees: the ends are 60 degrees apart."""
    angles = np.radians([0, 60, 15, 45, 30, 100])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert clusters(vectors, 0.05) == [0, 0, 0, 0, 0, 5]


@given(
    vectors=arrays(np.float32, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(-5, 5)),
    block_rows=st.integers(1, 13),
)
def test_clusters_are_what_a_search_from_each_point_finds(vectors: Vectors, block_rows: int) -> None:
    points = range(len(vectors))

    def near(one: int, other: int) -> bool:
        a, b = vectors[one].astype(int), vectors[other].astype(int)
        dot, lengths = int(a @ b), int(a @ a) * int(b @ b)
        return dot > 0 and lengths > 0 and 400 * dot * dot >= 361 * lengths

    expected = []
    for point in points:
        found, todo = {point}, [point]
        while todo:
            here = todo.pop()
            todo += (new := {other for other in points if near(here, other)} - found)
            found |= new
        expected.append(min(found))
    assert clusters(vectors, 0.05, block_rows) == expected


def test_the_baselines_embedding_sees_spelling_and_not_the_order_of_words() -> None:
    tags = ["text writing", "Writing texts", "object oriented", "object orientated", "数学", "绘画", "!"]
    assert clusters(hashed_ngrams(tags), 0.05) == [0, 0, 2, 2, 4, 5, 6]


def test_the_baselines_embedding_is_the_same_everywhere() -> None:
    """<a> has the runs <a, a> and <a>: fixed, since a hash that differs by process would change the tag set."""
    vector = hashed_ngrams(["a"], 16)[0]
    assert {int(place): float(vector[place]) for place in np.flatnonzero(vector)} == {5: 1, 7: -1, 9: -1}


@pytest.mark.parametrize(
    ("both", "left_alone", "merged"),
    [(40, 0, True), (39, 0, False), (99, 1, True), (98, 2, False), (693, 7, True), (692, 8, False)],
)
def test_a_rule_needs_support_and_confidence(both: int, left_alone: int, merged: bool) -> None:
    rows = ["lr"] * both + ["l"] * left_alone + ["r"] * 1000
    found = associated(rows, Settings())
    assert found.rules == ([("l", "r")] if merged else [])
    assert found.mapping == {"l": "r" if merged else "l", "r": "r"}
    assert found.stages == {"association": 1 if merged else 2}


def test_rules_are_followed_to_their_end() -> None:
    rows = ["abc"] * 40 + ["bc"] * 400 + ["c"] * 900
    found = associated(rows, Settings())
    assert found.rules == [("a", "b"), ("a", "c"), ("b", "c")]
    assert set(found.mapping.values()) == {"c"}


def test_tags_that_imply_each_other_become_the_more_frequent_one() -> None:
    assert associated(["ab"] * 100 + ["b"], Settings()).mapping == {"a": "b", "b": "b"}
    assert associated(["ab"] * 100, Settings()).mapping == {"a": "a", "b": "a"}


def test_of_several_rules_the_surest_counts_and_then_the_most_frequent_right_tag() -> None:
    surer = ["abc"] * 990 + ["ac"] * 10 + ["b"] * 3000 + ["c"] * 2000
    assert associated(surer, Settings()).mapping["a"] == "c"
    equal = ["abc"] * 1000 + ["b"] * 3000 + ["c"] * 2000
    assert associated(equal, Settings()).mapping["a"] == "b"


@given(rows=st.lists(st.text("abcd", max_size=4), max_size=30), support=st.integers(1, 4), percent=st.integers(1, 100))
def test_rules_are_those_that_counting_all_rows_finds(rows: list[str], support: int, percent: int) -> None:
    settings = Settings(min_support=support, min_confidence=percent / 100)
    expected = []
    for left, right in permutations("abcd", 2):
        with_left = sum(left in row for row in rows)
        with_both = sum(left in row and right in row for row in rows)
        if with_both >= support and 100 * with_both >= percent * with_left:
            expected.append((left, right))
    found = associated(rows, settings)
    assert found.rules == sorted(expected)
    for tag, target in found.mapping.items():
        assert found.mapping[target] == target, "a target leads nowhere else"
        assert tag == target or any(left == tag for left, _ in expected)


def test_a_group_on_the_left_makes_no_rule() -> None:
    """Only together a and b imply c: merging either would take it from rows where it stands alone."""
    rows = ["abc"] * 50 + ["a"] * 50 + ["b"] * 50 + ["c"] * 50
    assert list(association_rules(count_pairs(rows), Settings())) == []


def count_pairs(rows: list[str]) -> Counter[tuple[str, str]]:
    counts = count_tags(rows)
    return count_together(rows, Normalisation({tag: tag for tag in counts}, {}), counts)


@given(rows=st.lists(st.text("abcd", max_size=4), max_size=30), at_once=st.integers(1, 9))
def test_pairs_are_counted_alike_however_many_at_once(rows: list[str], at_once: int) -> None:
    counts = count_tags(rows)
    settings = Settings(min_support=2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tags, "_TAGS_COUNTED_AT_ONCE", at_once)
        found = count_together(rows, Normalisation({tag: tag for tag in counts}, {}), counts, settings)
    worth = [tag for tag in sorted(counts) if counts[tag] >= 2]
    assert found == {
        (one, other): number
        for one, other in combinations_with_replacement(worth, 2)
        if (number := sum(one in row and other in row for row in rows))
    }


@given(rows=ROWS, seed=st.randoms())
def test_neither_the_order_of_rows_nor_that_of_tags_matters(rows: list[list[str]], seed: random.Random) -> None:
    mixed = [seed.sample(row, len(row)) for row in seed.sample(rows, len(rows))]
    assert normalise(rows, hashed_ngrams, LOW) == normalise(mixed, hashed_ngrams, LOW)


@given(rows=ROWS, cut=st.integers(0, 25))
def test_the_counts_of_shards_add_up_to_those_of_the_whole(rows: list[list[str]], cut: int) -> None:
    shards = rows[:cut], rows[cut:]
    counts = count_tags(shards[0]) + count_tags(shards[1])
    merged = merge_alike(counts, hashed_ngrams, LOW)
    together = sum((count_together(shard, merged, counts, LOW) for shard in shards), Counter())
    assert merge_associated(merged, together, LOW) == normalise(rows, hashed_ngrams, LOW)


@given(rows=ROWS)
def test_frequent_tags_are_mapped_others_dropped_and_no_stage_adds_a_tag(rows: list[list[str]]) -> None:
    found = normalise(rows, hashed_ngrams, LOW)
    counts = count_tags(rows)
    assert set(found.mapping) == {tag for tag, number in counts.items() if number >= 2 and tag != "???"}
    left = list(found.stages.values())
    assert left == sorted(left, reverse=True)
    assert found.stages["association"] == len(set(found.mapping.values()))
    for row in rows:
        tags = found.tags(row)
        assert len(set(tags)) == len(tags) and set(tags) == {found.mapping[tag] for tag in row if tag in found.mapping}
