"""Prompt templates by rule and by what prompts share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.data_prep.mined_templates import EDGE_WORDS, FRAMES, frame_digests, shared_frames
from components.data_prep.templates import RULES, is_tool_use, template_rule


def asks(text: str, reply: str = "Yes.") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("template_alpaca", "### Instruction:\nAdd 2 and 2.\n\n### Response:"),
        ("template_alpaca", "Below is an instruction that describes a task. Add 2 and 2."),
        ("template_human_assistant", "Human: hello\nAssistant: hi\nHuman: bye\nAssistant:"),
        ("template_human_assistant", "USER: hello\nASSISTANT:"),
        ("template_few_shot", "Q: 1+1?\nA: 2\n\nQ: 2+2?\nA:"),
        ("template_few_shot", "Review: good film\nSentiment: positive\nReview: bad film\nSentiment:"),
        ("template_few_shot", "问题：一加一？\n答案：二\n问题：二加二？\n答案："),
        ("template_fields", "Premise: It rains.\nHypothesis: It is wet.\nLabel:"),
        ("template_multiple_choice", "Which is a fruit?\nA) pear\nB) dog\nC) sky"),
        ("template_multiple_choice", "Which is a fruit? (a) pear (b) dog (c) sky"),
        ("template_multiple_choice", "Is it true?\nOPTIONS:\n- yes\n- no"),
        ("template_cloze", "The capital of France is ____ and it is large."),
        ("template_cloze", "Fill in: the [MASK] barks."),
    ],
)
def test_template_is_named(rule: str, text: str) -> None:
    assert template_rule(asks(text)) == rule
    assert rule in RULES


@pytest.mark.parametrize(
    "text",
    [
        "What is the difference between a human: and an assistant?",
        "Here is my question: why is the sky blue?",
        "Question: why is the sky blue?",
        "Write a play in which the user: speaks twice.",
        "My list:\n1. eggs\n2. milk\n3. bread\nWhat is missing?",
        "Planks of type A. Bolts of type C. How many?",
        "B) was wrong and A) was right",
        "Sign here: ________\n(name)",
        "snake_case and __init__ and a__b",
        "## Input\nWhat does this heading mean?",
        "Compare (a) cost and (b) speed.",
    ],
)
def test_prose_is_left_alone(text: str) -> None:
    assert template_rule(asks(text)) is None


def test_reply_may_hold_options_but_no_trainers_format() -> None:
    assert template_rule(asks("Make a quiz.", "Which?\nA) x\nB) y\nC) z\nThe capital is ____ .")) is None
    assert template_rule(asks("Add.", "4\n### Instruction:\nSubtract.")) == "template_alpaca"


def test_tool_use_is_known_by_its_three_lines() -> None:
    called = "Thought: I must look.\nAction: search\nAction Input: sky"
    assert is_tool_use(asks("Question: the sky?\nAnswer:", called))
    assert not is_tool_use(asks("Question: the sky?", called.replace("Action Input", "Input")))


def mined(texts: list[str], limit: int) -> list[str | None]:
    """Which kind of frame each shares with more than `limit` others."""
    digests = [frame_digests(asks(text)) for text in texts]
    prompts = np.array([prompt for prompt, _ in digests], np.uint64)
    frames = np.array([found for _, found in digests], np.uint64).reshape(-1, len(FRAMES))
    return [FRAMES[kind] if kind >= 0 else None for kind in shared_frames(prompts, frames, limit)]


WORDS = " ".join(f"w{number}" for number in range(EDGE_WORDS))


def test_frame_of_more_prompts_than_the_limit_is_a_template() -> None:
    before, after = [f"{WORDS} then {n}" for n in range(4)], [f"{n} and {WORDS}" for n in range(3)]
    lines = [f"Name: a{n}\nAge: b{n}\nTown: c{n}" for n in range(4)]
    assert mined([*before, *after, *lines], 3) == ["prefix"] * 4 + [None] * 7, "three are not more than three"
    assert mined([*before, before[0].upper() + "!"], 4) == ["prefix"] * 5
    assert mined(after, 2) == ["suffix"] * 3
    skeletons = [f"The name: a{n}\nThe age: b{n}\nThe town: c{n}" for n in range(4)]
    assert mined([*skeletons, "the name: x\nthe age: y\n\nthe town: z"], 4) == ["skeleton"] * 5
    assert mined([], 3) == []


def test_one_prompt_many_times_is_no_template() -> None:
    assert mined([f"{WORDS} then what?"] * 100, 3) == [None] * 100


@given(st.lists(st.text("ab \n", max_size=40), max_size=12), st.integers(1, 4), st.randoms())
def test_order_of_rows_does_not_matter(texts: list[str], limit: int, random) -> None:
    shuffled = random.sample(texts, len(texts))
    found = dict(zip(texts, mined(texts, limit), strict=True))
    assert dict(zip(shuffled, mined(shuffled, limit), strict=True)) == found
