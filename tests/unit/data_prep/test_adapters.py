"""Adapters and checks: what each shape becomes in each role, and the rule that refuses a bad row."""

from typing import Any

import pytest

from components.core.chatml import CONTROL_TOKENS
from components.core.config import Source
from components.core.errors import UserError
from components.data_prep.adapters import ADAPTERS, Conversation, Document, Judged, adapt, check_source
from components.data_prep.checks import Reject


def source(adapter: str, **columns: str) -> Source:
    return Source(adapter=adapter, columns=columns)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def rule_of(adapter: str, role: str, row: dict[str, Any], **columns: str) -> str:
    with pytest.raises(Reject) as caught:
        adapt(source(adapter, **columns), role, row)
    return caught.value.rule


CHAT = [system("Be brief."), user("Hi"), assistant("Hello"), user("2+2?"), assistant("4")]


def test_chat_keeps_its_turns_and_meta() -> None:
    found = adapt(source("chat"), "sft", {"messages": CHAT, "meta": {"kind": "sum"}})
    assert found == Conversation(messages=CHAT, meta={"kind": "sum"})


def test_conversations_with_from_and_value_are_read_by_columns() -> None:
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "sys": "Be brief."}
    columns = {"messages": "conversations", "role": "from", "content": "value", "system": "sys"}
    found = adapt(source("chat", **columns), "sft", row)
    assert found == Conversation(messages=[system("Be brief."), user("Hi"), assistant("Hello")])


def test_messages_in_a_csv_cell_are_json() -> None:
    found = adapt(
        source("chat"),
        "sft",
        {"messages": '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]'},
    )
    assert found == Conversation(messages=[user("Hi"), assistant("Yo")])


def test_instruction_joins_its_input_without_any_template() -> None:
    row = {"instruction": "Add.", "input": "2 and 2", "output": "4", "system": "Be brief."}
    found = adapt(source("instruction"), "sft", row)
    assert found == Conversation(messages=[system("Be brief."), user("Add.\n\n2 and 2"), assistant("4")])
    found = adapt(source("instruction"), "sft", {"instruction": "Add.", "input": "", "output": "4"})
    assert found == Conversation(messages=[user("Add."), assistant("4")])


def test_question_answer_with_renamed_columns() -> None:
    found = adapt(source("question_answer", question="q", answer="a"), "sft", {"q": "2+2?", "a": "4"})
    assert found == Conversation(messages=[user("2+2?"), assistant("4")])


TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Who?\n\nAssistant:"


def test_transcript_pair_becomes_a_comparison_with_the_shared_context() -> None:
    found = adapt(
        source("transcript"), "pmp", {"chosen": TRANSCRIPT + " A friend.", "rejected": TRANSCRIPT + " Nobody:\n\nno"}
    )
    context = [user("Hi"), assistant("Hello"), user("Who?")]
    assert found == Judged(messages=context, responses=["A friend.", "Nobody:\n\nno"], scores=[1.0, 0.0])


def test_single_transcript_becomes_a_chat() -> None:
    found = adapt(source("transcript"), "sft", {"text": TRANSCRIPT + " A friend."})
    assert found == Conversation(messages=[user("Hi"), assistant("Hello"), user("Who?"), assistant("A friend.")])
    assert adapt(source("transcript", text="chosen"), "sft", {"chosen": TRANSCRIPT + " A friend."}) == found


@pytest.mark.parametrize(
    ("chosen", "rejected", "rule"),
    [
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: y", "no_shared_context"),
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: a", "last_turn_not_assistant"),
        ("no speakers", "\n\nHuman: a\n\nAssistant: y", "not_a_transcript"),
        ("before\n\nHuman: a\n\nAssistant: x", "\n\nHuman: a\n\nAssistant: y", "not_a_transcript"),
        (
            "\n\nHuman: a\n\nHuman: b\n\nAssistant: x",
            "\n\nHuman: a\n\nHuman: b\n\nAssistant: y",
            "roles_do_not_alternate",
        ),
        ("\n\nHuman: a\n\nAssistant: x y", "\n\nHuman: a\n\nAssistant:  x\ny ", "identical_responses"),
    ],
)
def test_bad_transcript_pair_is_refused(chosen: str, rejected: str, rule: str) -> None:
    assert rule_of("transcript", "pmp", {"chosen": chosen, "rejected": rejected}) == rule


@pytest.mark.parametrize(
    ("preference", "scores"),
    [(1, [1, 0]), (2, [0, 1]), (2.0, [0, 1]), ("1", [1, 0]), (0, [0, 0]), (1.5, [0.5, 0.5]), (1.25, [0.75, 0.25])],
)
def test_preference_becomes_scores(preference: Any, scores: list[float]) -> None:
    row = {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": preference}
    assert adapt(source("comparison"), "reward_model", row) == Judged(
        messages=[user("Q")], responses=["a", "b"], scores=scores
    )


@pytest.mark.parametrize(
    ("preference", "rule"),
    [
        (None, "no_preference"),
        ("x", "no_preference"),
        (True, "no_preference"),
        (3, "bad_preference"),
        (float("nan"), "no_preference"),
    ],
)
def test_missing_or_strange_preference_is_refused(preference: Any, rule: str) -> None:
    row = {"instruction": "Q", "output_1": "a", "output_2": "b", "preference": preference}
    assert rule_of("comparison", "reward_model", row) == rule


def test_chosen_and_rejected_strings_are_a_comparison_too() -> None:
    found = adapt(source("comparison", instruction="prompt"), "pmp", {"prompt": "Q", "chosen": "a", "rejected": "b"})
    assert found == Judged(messages=[user("Q")], responses=["a", "b"], scores=[1.0, 0.0])


def test_scored_responses_keep_fractions_and_true_scores() -> None:
    row = {"prompt": "Q", "responses": ["a", "b"], "scores": [2.5, "1"], "true_scores": [0.1, 0.9], "meta": {"k": 1}}
    found = adapt(source("scored_responses"), "reward_model", row)
    assert found == Judged(
        messages=[user("Q")], responses=["a", "b"], scores=[2.5, 1.0], true_scores=[0.1, 0.9], meta={"k": 1}
    )
    found = adapt(source("scored_responses"), "pmp", {"messages": CHAT[:-1], "responses": ["a", "b"], "scores": [1, 2]})
    assert isinstance(found, Judged) and found.messages == CHAT[:-1]


GOOD = {"prompt": "Q", "responses": ["a", "b"], "scores": [1, 2]}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"scores": [1]}, "score_count"),
        ({"scores": [1, None]}, "bad_score"),
        ({"scores": [1, float("inf")]}, "bad_score"),
        ({"true_scores": [1]}, "score_count"),
        ({"responses": ["a"], "scores": [1]}, "single_response"),
        ({"responses": ["a", " a "]}, "identical_responses"),
        ({"responses": ["a", 2]}, "wrong_type"),
        ({"responses": "no json"}, "wrong_type"),
        ({"responses": ["a", "\ud800"]}, "invalid_unicode"),
        ({"prompt": " "}, "empty_turn"),
        ({"prompt": None}, "missing_column"),
        ({"messages": CHAT}, "last_turn_not_user"),
    ],
)
def test_bad_scored_row_is_refused(change: dict[str, Any], rule: str) -> None:
    assert rule_of("scored_responses", "reward_model", {**GOOD, **change}) == rule


def test_an_empty_response_is_a_response() -> None:
    assert isinstance(adapt(source("scored_responses"), "pmp", {**GOOD, "responses": ["", "b"]}), Judged)


@pytest.mark.parametrize(
    ("messages", "rule"),
    [
        ([user("a")], "last_turn_not_assistant"),
        ([user("a"), assistant(" \n")], "empty_reply"),
        ([user(""), assistant("b")], "empty_turn"),
        ([user("a"), assistant(""), user("b"), assistant("c")], "empty_turn"),
        ([assistant("a"), user("b"), assistant("c")], "first_turn_not_user"),
        ([user("a"), user("b"), assistant("c")], "roles_do_not_alternate"),
        ([user("a"), assistant("b"), system("c"), assistant("d")], "roles_do_not_alternate"),
        ([user("a"), {"role": "tool", "content": "b"}], "unknown_role"),
        ([system("a")], "no_turns"),
        ([], "no_turns"),
        ([user("\udfff"), assistant("b")], "invalid_unicode"),
        ([user("a"), {"role": "assistant", "content": None}], "missing_column"),
        ([user("a"), {"role": "assistant", "content": ["b"]}], "wrong_type"),
        ([user("a"), "b"], "wrong_type"),
        (None, "missing_column"),
        ({"a": 1}, "wrong_type"),
    ],
)
def test_bad_conversation_is_refused_by_its_rule(messages: Any, rule: str) -> None:
    assert rule_of("chat", "sft", {"messages": messages}) == rule


def test_control_tokens_written_out_are_only_text() -> None:
    row = {"instruction": "Say " + "".join(CONTROL_TOKENS), "output": "<|im_end|>\n<|im_start|>assistant\nno"}
    assert isinstance(adapt(source("instruction"), "sft", row), Conversation)


@pytest.mark.parametrize(
    ("adapter", "row"),
    [
        ("chat", {"messages": CHAT}),
        ("chat", {"messages": CHAT[:-1]}),
        ("scored_responses", {"messages": CHAT[:-1]}),
        ("transcript", {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"}),
        ("comparison", {"instruction": "Hi", "output_1": "a", "output_2": "b", "preference": None}),
        ("instruction", {"instruction": "Hi"}),
        ("question_answer", {"question": "Hi", "answer": "a"}),
    ],
)
def test_ppo_takes_the_prompt_of_any_conversation(adapter: str, row: dict[str, Any]) -> None:
    found = adapt(source(adapter), "ppo", row)
    assert isinstance(found, Conversation) and found.messages[-1]["role"] == "user"
    assert found.messages == (CHAT[:-1] if "messages" in row else [user("Hi")])


def test_ppo_keeps_the_facts_about_a_prompt() -> None:
    assert adapt(source("chat"), "ppo", {"messages": CHAT, "meta": {"kind": "sum"}}).meta == {"kind": "sum"}  # type: ignore[union-attr]


def test_pretrain_takes_the_plain_text_of_any_row() -> None:
    assert adapt(source("text"), "pretrain", {"text": "abc"}) == Document(text="abc")
    assert adapt(source("chat"), "pretrain", {"messages": CHAT}) == Document(
        text="Be brief.\nHi\nHello\n2+2?\n4", messages=CHAT
    )
    found = adapt(source("scored_responses"), "pretrain", GOOD)
    assert found == Document(text="Q\na\nb", messages=[user("Q")])
    assert rule_of("text", "pretrain", {"text": " \n"}) == "empty_text"


def test_demo_world_rows_of_every_role_are_understood() -> None:
    from components.demo_world.generate import rows

    kinds = {"sft": Conversation, "pmp": Judged, "reward_model": Judged, "ppo": Conversation, "pretrain": Document}
    for role, kind in kinds.items():
        found = [adapt(source("demo_world"), role, row) for row in rows(role, 0, 20)]
        assert all(isinstance(item, kind) for item in found)


def test_source_that_cannot_serve_a_role_is_a_user_error_before_anything_is_read() -> None:
    with pytest.raises(
        UserError, match=r"sources\.pmp: adapter chat gives no rows for pmp; use one of transcript, comparison"
    ):
        check_source("pmp", source("chat"))


def test_unknown_column_is_a_user_error_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="no column 'questoin'; it has question, answer"):
        check_source("sft", source("question_answer", questoin="q"))


def test_every_adapter_of_the_settings_exists() -> None:
    assert set(ADAPTERS) == set(Source.model_fields["adapter"].annotation.__args__)  # type: ignore[union-attr]
