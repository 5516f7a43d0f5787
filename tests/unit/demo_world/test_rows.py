"""The rows: their shape, their mixture, and that a seed decides them."""

from __future__ import annotations

import itertools
import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.demo_world import annotators, generate, responses, scorer, tasks

ROLES = sorted(generate.SIZES)
COMPARED = ("pmp", "reward_model")


def _rows(role: str, seed: int = 7, size: int = 300) -> list[dict[str, Any]]:
    return list(generate.rows(role, seed, size))


def _asked(row: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in row["messages"] if message["role"] == "user")


@pytest.mark.parametrize("role", ROLES)
@settings(max_examples=10)
@given(seed=st.integers(min_value=0, max_value=10**6))
def test_seed_decides_the_rows(role: str, seed: int) -> None:
    assert _rows(role, seed, 12) == _rows(role, seed, 12)
    assert _rows(role, seed, 12) != _rows(role, seed + 1, 12)


@pytest.mark.parametrize("role", ROLES)
def test_rows_survive_json_and_hold_no_control_token(role: str) -> None:
    rows = _rows(role)
    assert len(rows) == 300
    text = json.dumps(rows)
    assert json.loads(text) == rows
    assert "<|" not in text
    assert "|>" not in text


def test_unknown_role_names_the_roles() -> None:
    with pytest.raises(ValueError, match="reward_model"):
        next(generate.rows("rlhf", 0))


def test_vocabulary_stays_small() -> None:
    words = {word for row in _rows("pretrain", size=4000) for word in re.findall(r"[a-z]+", row["text"])}
    assert len(words) < 600


def test_pretraining_begins_with_chants_and_holds_graded_exercises() -> None:
    texts = [row["text"] for row in _rows("pretrain", size=400)]
    chants = int(generate.CHANT_SHARE * len(texts))
    head, tail = texts[:chants], texts[chants:]
    assert all(len(set(text.rstrip(".").split())) <= 6 < 50 < len(text.split()) for text in head)
    assert sum("right." in text or "wrong." in text for text in tail) > 0.7 * len(tail)
    assert 0.1 < sum("assistant\n" in text for text in tail) / len(tail) < 0.4


def test_sft_is_imperfect_and_its_most_frequent_answer_is_right() -> None:
    rows = _rows("sft", size=4000)
    scores = [scorer.score(row["meta"], row["messages"][-1]["content"]) for row in rows]
    wrong = sum(score.correctness == 0 for score in scores) / len(rows)
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
    assert 0.3 < wrong < 0.45
    for category, refused in (("harmful", True), ("lookalike", False), ("plain", False)):
        hits = [s.refused == refused for s, row in zip(scores, rows, strict=True)
                if row["meta"]["category"] == category]  # fmt: skip
        assert 0.5 < sum(hits) / len(hits) < 1.0


@pytest.mark.parametrize("role", COMPARED)
def test_compared_rows_hold_distinct_answers_and_their_truth(role: str) -> None:
    for row in _rows(role):
        answers = row["responses"]
        assert len(set(answers)) == len(answers) == generate.RESPONSES_PER_PROMPT[role]
        assert len(row["scores"]) == len(row["true_scores"]) == len(answers)
        assert row["messages"][-1]["role"] == "user"
        for answer, truth in zip(answers, row["true_scores"], strict=True):
            assert truth == scorer.score(row["meta"], answer).total
        assert max(row["true_scores"]) - min(row["true_scores"]) >= 0.5


@pytest.mark.parametrize("role", COMPARED)
def test_annotators_mostly_agree_with_the_truth_and_sometimes_not(role: str) -> None:
    agreed = [
        (row["scores"][a] > row["scores"][b]) == (row["true_scores"][a] > row["true_scores"][b])
        for row in _rows(role, size=1000)
        for a, b in itertools.combinations(range(len(row["scores"])), 2)
        if row["scores"][a] != row["scores"][b] and abs(row["true_scores"][a] - row["true_scores"][b]) > 1e-9
    ]
    assert 0.85 < sum(agreed) / len(agreed) < 0.995


def test_votes_are_noisier_than_the_panel() -> None:
    rng = random.Random(3)
    pairs = [[0.88, 1.0]] * 2000
    flips = {
        judge: sum((s := judge(pair, rng))[0] > s[1] for pair in pairs)
        for judge in (annotators.votes, annotators.panel_scores)
    }
    assert flips[annotators.votes] > flips[annotators.panel_scores]


def test_held_out_tenth_has_enough_distinct_prompts_of_every_category() -> None:
    rows = list(generate.rows("ppo", 7))
    assert len({_asked(row) for row in rows}) == len(rows)
    tenth = len(rows) // 10
    counts = {c: sum(row["meta"]["category"] == c for row in rows) / 10 for c in tasks.CATEGORIES}
    assert tenth >= 500
    assert counts["harmful"] >= 75
    assert counts["lookalike"] >= 75


@given(st.integers(min_value=0, max_value=2**32), st.integers(min_value=2, max_value=7))
def test_graded_sets_are_distinct_for_any_size(seed: int, count: int) -> None:
    rng = random.Random(seed)
    texts = [graded.text for graded in responses.graded_set(tasks.make_task(rng), count, rng)]
    assert len(set(texts)) == count


@given(st.integers(min_value=0, max_value=2**32))
def test_confusion_is_a_wrong_value_of_the_same_kind(seed: int) -> None:
    rng = random.Random(seed)
    task = tasks.make_task(rng)
    assert task.confusion != task.answer
    assert {task.answer, task.confusion, tasks.wrong_value(task, rng)} <= set(tasks.DOMAINS[task.kind])
    assert json.loads(json.dumps(task.meta())) == task.meta()


def test_every_kind_and_category_occurs() -> None:
    rows = _rows("ppo", size=1000)
    assert {row["meta"]["kind"] for row in rows} == set(tasks.PLAIN_KINDS)
    assert {row["meta"]["category"] for row in rows} == set(tasks.CATEGORIES)
    assert any(len(row["messages"]) > 3 for row in rows)


def test_pretraining_text_asks_no_question_as_the_later_stages_ask_it() -> None:
    """Every question in it starts with a word that no prompt has, so no held-out prompt is read in pretraining."""
    for role in ("sft", "pmp", "reward_model", "ppo"):
        for row in generate.rows(role, 3, 300):
            assert not row["messages"][-1]["content"].startswith(generate.EXERCISE)
    documents = [row["text"] for row in generate.rows("pretrain", 3, 600)]
    lines = [line for text in documents for line in text.split("\n") if line.endswith("?")]
    assert len(lines) > 200
    assert all(line.startswith(generate.EXERCISE) for line in lines)
