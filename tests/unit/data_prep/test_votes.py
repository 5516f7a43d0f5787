"""Votes on a post's answers become scores: Askell et al.'s and WorldPM's; and how many pairs a prompt may have."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.config import DataPrepConfig, Source
from components.data_prep.adapters import Conversation, Document, Judged, adapt
from components.data_prep.checks import Reject
from components.data_prep.comparisons import group, pair_limit, strict_pairs

VOTES = [(0, False), (1, False), (2, False), (3, True), (10, False), (100, True), (-1, False), (-7, True), (0, True)]


def scores_of(adapter: str, votes: list[tuple[Any, Any]]) -> list[float]:
    answers = [{"text": str(i), "votes": n, "accepted": accepted} for i, (n, accepted) in enumerate(votes)]
    found = adapt(Source(adapter=adapter), "pmp", {"prompt": "Why?", "answers": answers})
    assert isinstance(found, Judged)
    assert found.responses == [str(i) for i in range(len(votes))]
    return found.scores


def rule_of(row: dict[str, Any]) -> str:
    with pytest.raises(Reject) as caught:
        adapt(Source(adapter="votes"), "pmp", row)
    return caught.value.rule


def test_scores_of_askell_et_al_by_hand() -> None:
    # log2 of 1, 2, 3, 4, 11, 101: 0, 1, 1.58, 2, 3.46, 6.66
    assert scores_of("votes", VOTES) == [0, 1, 2, 3, 3, 8, -1, -1, 1]


def test_net_votes_count_acceptance_as_one_vote() -> None:
    assert scores_of("net_votes", VOTES) == [0, 1, 2, 4, 10, 101, -1, -6, 1]


@given(votes=st.lists(st.integers(-5, 10**6), min_size=2, max_size=6, unique=True), accepted=st.booleans())
def test_more_votes_never_score_less(votes: list[int], accepted: bool) -> None:
    for adapter in ("votes", "net_votes"):
        scores = scores_of(adapter, [(n, accepted) for n in sorted(votes)])
        assert scores == sorted(scores)
        assert all(isinstance(score, float) for score in scores)


def test_lists_side_by_side_and_csv_cells_are_read_as_objects_are() -> None:
    objects = [{"text": "a", "votes": 3, "accepted": True}, {"text": "b", "votes": 7}]
    expected = Judged(messages=[{"role": "user", "content": "Why?"}], responses=["a", "b"], scores=[3, 3])
    rows = [
        {"prompt": "Why?", "answers": objects},
        {"prompt": "Why?", "answers": ["a", "b"], "votes": [3, 7], "accepted": [True, None]},
        {"prompt": "Why?", "answers": '["a", "b"]', "votes": '["3", 7.0]', "accepted": "[1, 0]"},
        {"prompt": "Why?", "answers": json.dumps(objects)},
    ]
    assert [adapt(Source(adapter="votes"), "pmp", row) for row in rows] == [expected] * 4


def test_columns_and_conversations() -> None:
    columns = {"prompt": "question", "text": "body", "votes": "score", "accepted": "selected"}
    answers = [{"body": "a", "score": 0, "selected": True}, {"body": "b", "score": 0, "selected": False}]
    found = adapt(Source(adapter="votes", columns=columns), "reward_model", {"question": "Q", "answers": answers})
    assert found == Judged(messages=[{"role": "user", "content": "Q"}], responses=["a", "b"], scores=[1, 0])
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "Q"}]
    row = {"messages": asked, "answers": ["a", "b"], "votes": [1, 2]}
    assert adapt(Source(adapter="votes"), "pmp", row).messages == asked


ROW = {"prompt": "Q", "answers": ["a", "b"], "votes": [1, 2]}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"prompt": None}, "missing_column"),
        ({"answers": None}, "missing_column"),
        ({"votes": None}, "missing_column"),
        ({"votes": [1]}, "score_count"),
        ({"votes": [1, None]}, "bad_votes"),
        ({"votes": [1, True]}, "bad_votes"),
        ({"votes": [1, "many"]}, "bad_votes"),
        ({"votes": [1, math.inf]}, "bad_votes"),
        ({"accepted": [True]}, "score_count"),
        ({"accepted": [True, "yes"]}, "wrong_type"),
        ({"accepted": [True, 2]}, "wrong_type"),
        ({"accepted": [True, [0]]}, "wrong_type"),
        ({"answers": ["a", 1]}, "wrong_type"),
        ({"answers": ["a", {"text": "b", "votes": 1}]}, "wrong_type"),
        ({"answers": [{"text": "a"}, {"text": "b", "votes": 1}]}, "bad_votes"),
        ({"answers": [{"votes": 1}, {"text": "b", "votes": 1}]}, "missing_column"),
        ({"answers": ["a"], "votes": [1]}, "single_response"),
        ({"answers": [], "votes": []}, "single_response"),
        ({"answers": ["a", " a "]}, "identical_responses"),
    ],
)
def test_bad_post_is_refused_by_its_rule(change: dict[str, Any], rule: str) -> None:
    assert rule_of({**ROW, **change}) == rule


def test_a_question_without_usable_answers_is_a_prompt_and_a_post_is_a_text() -> None:
    asked = [{"role": "user", "content": "Q"}]
    assert adapt(Source(adapter="votes"), "ppo", {"prompt": "Q"}) == Conversation(messages=asked)
    assert adapt(Source(adapter="votes"), "pretrain", ROW) == Document(text="Q\na\nb", messages=asked)


def test_one_pair_of_a_post_the_widest_and_by_default_for_pmp_alone() -> None:
    config = DataPrepConfig()
    assert (pair_limit(config, "pmp"), pair_limit(config, "reward_model")) == (1, None)
    config = DataPrepConfig(pmp_pairs_per_prompt=None, max_pairs_per_prompt=4)
    assert (pair_limit(config, "pmp"), pair_limit(config, "reward_model")) == (None, 4)
    item = adapt(Source(adapter="votes"), "pmp", {"prompt": "Q", "answers": list("abcd"), "votes": [0, 5, 5, 1]})
    (prompt,) = group([("f:1", item)])  # type: ignore[list-item]
    pairs = strict_pairs(prompt.votes, limit=1)
    assert pairs.strict == [{"chosen": 1, "rejected": 0, "gap": 3}]  # log2(6) is 2.58
    assert (pairs.ties, pairs.over_limit) == (1, 4)
