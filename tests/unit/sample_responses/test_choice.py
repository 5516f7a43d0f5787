"""Which responses annotators see, and what is known of who wrote them."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.sample_responses.choice import choose_responses, count, response_id
from components.sample_responses.one_model import one_model
from components.sample_responses.parts import Candidate

SKY = "the sky is blue because the air scatters the short waves of light far more than the long ones that we call red"
WORDS = SKY.split()


def candidate(model: str, text: str, number: int = 0, **more: Any) -> Candidate:
    given = {"prompt": "p", "strategy": "wide", "seed": 7, "truncated": False, "tokens": len(text.split())}
    return Candidate(**{**given, "model": model, "number": number, "text": text, **more})


def chosen(*candidates: Candidate, **more: Any):
    return choose_responses(
        candidates, **{"seed": 0, "keep_truncated": False, "near_duplicate": 0.8, "most": None, **more}
    )


def fates(found) -> dict[tuple[str, int], str]:
    return {(row["model"], row["number"]): row["fate"] for row in found.producers}


def test_equal_responses_are_shown_once_and_both_are_on_record() -> None:
    found = chosen(candidate("a", "it is blue."), candidate("b", " it  is blue.\n"), candidate("c", "it is red."))
    assert sorted(" ".join(row["text"].split()) for row in found.responses) == ["it is blue.", "it is red."]
    by_fate = Counter(fates(found).values())
    assert by_fate == {"kept": 2, "duplicate": 1}
    (twin,) = (row for row in found.producers if row["fate"] == "duplicate")
    assert twin["same_as"] in {row["id"] for row in found.responses}


def test_similar_responses_are_shown_once_unless_only_equal_ones_go() -> None:
    """One of 23 words differs at the end: 20 of 22 runs of three words are shared, a similarity of 20 / 22."""
    other = " ".join([*WORDS[:-1], "crimson"])
    pair = (candidate("a", SKY), candidate("b", other), candidate("c", "no idea."))
    assert len(chosen(*pair).responses) == 2
    assert Counter(fates(chosen(*pair)).values())["near_duplicate"] == 1
    assert len(chosen(*pair, near_duplicate=1.0).responses) == 3
    # Which are the same words, but not the same text.
    assert len(chosen(candidate("a", "It is blue."), candidate("b", "it is blue!"), near_duplicate=1.0).responses) == 2


def test_cut_off_responses_are_left_out_unless_they_are_wanted() -> None:
    some = (candidate("a", "one"), candidate("b", "two"), candidate("c", "three and", truncated=True))
    assert fates(chosen(*some))["c", 0] == "truncated"
    assert {row["text"] for row in chosen(*some).responses} == {"one", "two"}
    assert {row["text"] for row in chosen(*some, keep_truncated=True).responses} == {"one", "two", "three and"}


def test_prompt_with_one_response_left_has_no_choice() -> None:
    found = chosen(candidate("a", "same"), candidate("b", "same"), candidate("c", "cut", truncated=True))
    assert found.responses == []
    assert Counter(fates(found).values()) == {"alone": 1, "duplicate": 1, "truncated": 1}


def test_the_models_take_turns_where_not_all_are_shown() -> None:
    many = [candidate("talker", f"answer {number} of many", number) for number in range(30)]
    few = [candidate("rare", "another view"), candidate("rare", "a third one", 1)]
    found = chosen(*many, *few, most=4, near_duplicate=1.0)
    kept = Counter(row["model"] for row in found.producers if row["fate"] == "kept")
    assert kept == {"talker": 2, "rare": 2}
    assert Counter(fates(found).values()) == {"kept": 4, "surplus": 28}


def test_a_tie_is_decided_for_each_model_about_as_often() -> None:
    kept: Counter[str] = Counter()
    for prompt in range(200):
        both = [candidate(model, "same", prompt=str(prompt)) for model in ("a", "b")]
        found = chosen(*both, candidate("c", "other", prompt=str(prompt)))
        kept.update(row["model"] for row in found.producers if row["fate"] == "kept" and row["model"] != "c")
    assert kept.total() == 200
    assert 70 <= kept["a"] <= 130


@given(st.permutations(range(6)))
def test_the_order_of_the_candidates_changes_nothing(order: list[int]) -> None:
    texts = ["one", "two", "two", SKY, " ".join([*WORDS[:-1], "crimson"]), "three"]
    some = [candidate("ab"[number % 2], text, number) for number, text in enumerate(texts)]
    assert chosen(*(some[place] for place in order), most=3) == chosen(*some, most=3)


def test_nothing_that_is_shown_tells_who_wrote_it() -> None:
    some = [candidate(model, f"answer {index}") for index, model in enumerate(("a", "b", "c"))]
    renamed = [replace(one, model=f"z{one.model}", strategy="other", seed=9) for one in reversed(some)]
    found = chosen(*some)
    assert found.responses == chosen(*renamed).responses
    assert all(row.keys() == {"id", "text"} for row in found.responses)
    assert [row["id"] for row in found.responses] == sorted(response_id(one) for one in some)


def test_counts_by_hand() -> None:
    found = [
        chosen(candidate("a", "one"), candidate("b", "one"), candidate("c", "")),
        chosen(candidate("a", "x", truncated=True), candidate("b", " ", truncated=True)),
    ]
    assert count(found) == {
        "kept": 2, "truncated": 2, "duplicate": 1, "near_duplicate": 0, "surplus": 0, "alone": 0, "empty": 2,
        "prompts": 1, "prompts_without_choice": 1,
    }  # fmt: skip


def test_one_model_gives_what_all_would_but_once_where_it_is_greedy() -> None:
    strategies = [{"name": "greedy", "temperature": 0.0, "samples": 1.0}, {"name": "wide", "samples": 2.0}]
    models = {"a": "A", "b": "B", "c": "C"}
    config, one = one_model({"strategies": strategies, "heldout": True}, models, "b")
    assert one == {"b": "B"} and config["heldout"]
    assert [strategy["samples"] for strategy in config["strategies"]] == [1.0, 6.0]
    with pytest.raises(Exception, match="no model 'd'; choose one of a, b, c"):
        one_model({"strategies": strategies}, models, "d")
