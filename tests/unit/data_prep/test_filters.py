"""Personal data, benchmarks, and both with the templates in a whole run of the step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.core.records import Chat, Comparison, Rejected, Text, read_rows
from components.data_prep import personal_data
from components.data_prep.decontaminate import Benchmarks, words
from components.data_prep.personal_data import luhn, mask
from components.data_prep.split import key_of_messages

RunStep = Callable[..., Any]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to a.b+c@mail.example.org.", "write to [EMAIL]."),
        ("call +49 170 1234567 or (415) 555-2671 or 415.555.2671", "call [PHONE] or [PHONE] or [PHONE]"),
        ("我的电话是 138 1234 5678。", "我的电话是 [PHONE]。"),
        ("card 4111 1111 1111 1111, or 378282246310005", "card [CARD], or [CARD]"),
        ("AKIAIOSFODNN7EXAMPLE and sk-abcdefghijklmnopqrstuv", "[KEY] and [KEY]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nx", "[KEY]\nx"),
    ],
)
def test_personal_data_are_masked(text: str, masked: str) -> None:
    assert mask(text)[0] == masked
    assert mask(masked) == (masked, {})


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112 fails its check digit",
        "3.14159265358979, 1,234,567.89, 2024-01-02 12:30:45, 10.0.0.1, 123456789012",
        "user@localhost, @handle, a@b, ask-me-anything-about-it-please",
        "f(x+12345678), 100-200-300, ISBN 978-3-16-148410-0",
    ],
)
def test_numbers_and_names_are_left_alone(text: str) -> None:
    assert mask(text) == (text, {})


_PIECES = ["4111", "1111", "138", "1234", "5678", "+49", "(415)", "555", "2671", " ", "-", ".", ") ", "a@b.org", "x",
           "sk-abcdefghijklmnopqrstuv", "ghp_" + 36 * "a", "AKIAIOSFODNN7EXAMPLE", "\n"]  # fmt: skip


@given(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
def test_the_quick_look_never_misses_what_is_personal(text: str) -> None:
    quick = list(personal_data.find(text))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(personal_data, "_MAY_HAVE", dict.fromkeys(personal_data._KINDS, bool))
        assert [(kind, match.span()) for kind, match in quick] == [
            (kind, match.span()) for kind, match in personal_data.find(text)
        ]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=18))
def test_one_wrong_digit_fails_the_check(digits: list[int]) -> None:
    check = next(last for last in range(10) if luhn([*digits, last]))
    assert not luhn([*digits, (check + 1) % 10])
    assert not luhn([*digits[:-1], (digits[-1] + 1) % 10, check])


def test_benchmark_is_found_whatever_its_case_and_punctuation() -> None:
    known = Benchmarks(["One two, three; four FIVE six.", "天空是蓝色的吗", "too short"], 5)
    assert known.contain("he said: two three four -- five (six) and left")
    assert not known.contain("two three four and five six")
    assert known.contain("我问：天空是蓝色。")
    assert not known.contain("天空是红色的")
    assert not known.contain("too short")
    assert not Benchmarks([], 5).contain("one two three four five six")
    assert words("snake_case 你好 été") == ["snake", "case", "你", "好", "été"]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4))
def test_sharing_n_words_is_what_a_plain_search_says(first: list[str], second: list[str], n: int) -> None:
    runs = [first[i : i + n] for i in range(len(first) - n + 1)]
    shared = any(second[i : i + n] in runs for i in range(len(second) - n + 1))
    assert Benchmarks([" ".join(first)], n).contain(" ".join(second)) == shared


BENCHMARK = "a train leaves at noon and a second one an hour later; when do they meet?"
ROWS = [
    {"question": "What is two and two?", "answer": "Four; ask joe@example.com."},
    {"question": "Q: 1+1?\nA: 2\nQ: 2+2?\nA:", "answer": "4"},
    {"question": f"Please: {BENCHMARK}", "answer": "At three."},
    *({"question": f"In this town, as in all others, there live {n} people?", "answer": str(n)} for n in range(3)),
    {"question": "Question: sky?\nAnswer:", "answer": "Thought: look.\nAction: search\nAction Input: sky"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "benchmark.jsonl").write_text(json.dumps({"task": {"text": [BENCHMARK]}}) + "\n")
    return tmp_path


def config(role: str = "sft", **filters: Any) -> dict[str, Any]:
    sources = {role: [{"path": "rows.jsonl", "adapter": "question_answer"}]}
    given = {"benchmarks": ["benchmark.jsonl"], "mined_templates": 2, **filters}
    return {"sources": sources, "splits": {"heldout": 0}, "max_rejected_ratio": 0.0, "filters": given}


def test_each_row_that_policy_keeps_out_is_kept_with_its_rule(run_step: RunStep, folder: Path) -> None:
    run = run_step(config())
    assert run.code == 0, run.error
    rules = [row.rule for row in read_rows(run.output / "sft" / "rejected.parquet", Rejected)]
    assert rules == ["template_few_shot", "benchmark", *["template_mined_prefix"] * 3]
    kept = list(read_rows(run.output / "sft" / "train.parquet", Chat))
    assert [row.messages[-1]["content"] for row in kept] == ["Four; ask [EMAIL].", ROWS[-1]["answer"]]
    assert run.card("sft")["sources"]["rows"]["notes"]["masked_email"] == 1


def test_filters_can_be_turned_off(run_step: RunStep, folder: Path) -> None:
    run = run_step(config(templates=[], benchmarks=[], personal_data="keep"))
    assert len(list(read_rows(run.output / "sft" / "train.parquet", Chat))) == len(ROWS)
    dropped = run_step(config(templates=[], benchmarks=[], personal_data="drop"), name="dropped")
    assert dropped.card("sft")["sources"]["rows"]["rules"] == {"personal_data": 1}


def test_documents_are_cleaned_and_compared_with_benchmarks_too(run_step: RunStep, folder: Path) -> None:
    run = run_step(config("pretrain"))
    card = run.card("pretrain")["sources"]["rows"]
    assert card["rules"] == {"benchmark": 1} and card["notes"]["masked_email"] == 1
    text = "".join(row.text for row in read_rows(run.output / "pretrain" / "train.parquet", Text))
    assert "[EMAIL]" in text and "joe@" not in text


def test_responses_are_cleaned(run_step: RunStep, tmp_path: Path) -> None:
    row = {"instruction": "Whom?", "output_1": "a@example.com", "output_2": "Nobody.", "preference": 2}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    settings = config("reward_model", benchmarks=[])
    settings["sources"]["reward_model"][0]["adapter"] = "comparison"
    run = run_step(settings)
    (kept,) = read_rows(run.output / "reward_model" / "train.parquet", Comparison)
    assert sorted(kept.responses) == ["Nobody.", "[EMAIL]"]


def test_benchmark_in_a_response_is_found(run_step: RunStep, folder: Path) -> None:
    rows = [
        {"instruction": f"{n}?", "output_1": said, "output_2": "No.", "preference": 2}
        for n, said in enumerate((BENCHMARK, "x"))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config("reward_model")
    settings["sources"]["reward_model"][0]["adapter"] = "comparison"
    assert run_step(settings).card("reward_model")["sources"]["rows"]["rules"] == {"benchmark": 1}


def test_source_for_evaluation_alone_is_not_filtered(run_step: RunStep, folder: Path) -> None:
    (folder / "own.jsonl").write_text(json.dumps({"question": "Why?", "answer": "So."}) + "\n")
    settings = config()
    settings["sources"]["sft"][0]["heldout_only"] = True
    settings["sources"]["sft"].append({"path": "own.jsonl", "adapter": "question_answer"})
    run = run_step(settings)
    assert len(list(read_rows(run.output / "sft" / "heldout" / "rows.parquet", Chat))) == len(ROWS)


def test_prompt_has_the_same_part_with_its_personal_data_and_without() -> None:
    keys = {key_of_messages([{"role": "user", "content": f"Mail {to}"}]) for to in ("a@example.com", "[EMAIL]")}
    assert len(keys) == 1
    numbers = ("+1 555 123 4567", "+1\n555 123  4567", "[PHONE]")
    assert len({key_of_messages([{"role": "user", "content": f"Call {to}"}]) for to in numbers}) == 1
