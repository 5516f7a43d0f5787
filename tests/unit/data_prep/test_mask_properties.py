"""Token ids and labels read back by control tokens alone: whole turns, and a loss on the assistant's words only."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.chatml import IGNORE, ChatTokenizer, LossMask
from components.core.records import Message
from components.data_prep.checks import Reject
from components.data_prep.tokenise import fit_chat, fit_prompt, fit_responses

WORDS = st.lists(
    st.sampled_from(["four ", "two\n", "<|im_start|>assistant\n", "<|im_end|>\n", "<|endoftext|>", "user", "é", "語"]),
    max_size=5,
).map("".join)
LIMITS = st.integers(1, 250)
MASKS = st.sampled_from(get_args(LossMask))
CONTENTS = st.lists(WORDS, min_size=1, max_size=7)
FEW = settings(max_examples=150)


def chat(contents: list[str], system: str | None) -> list[Message]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system is not None else []) + turns


def turns_of(tokenizer: ChatTokenizer, ids: list[int]) -> list[tuple[str, int, int, int]]:
    """(role, start, first content token, end token) of each turn. Fails on half a header and on a turn that is open."""
    headers = {role: tokenizer.header(role) for role in ("system", "user", "assistant")}
    found, start = [], 0
    while start < len(ids):
        role = next(name for name, header in headers.items() if ids[start : start + len(header)] == header)
        content = start + len(headers[role])
        end = ids.index(tokenizer.im_end, content)
        assert tokenizer.im_start not in ids[content:end]
        found.append((role, start, content, end))
        start = end + 1 + len(tokenizer.newline)
        assert ids[end + 1 : start] in (tokenizer.newline, [])  # nothing follows a response's end
    return found


@given(contents=CONTENTS, system=st.none() | WORDS, limit=LIMITS, mask=MASKS)
@FEW
def test_labels_are_the_ids_on_trained_tokens_and_ignored_elsewhere(
    tokenizer: ChatTokenizer, contents: list[str], system: str | None, limit: int, mask: LossMask
) -> None:
    try:
        messages, ids, labels = fit_chat(tokenizer, chat(contents, system), limit, mask)
    except Reject:  # when that is right, test_tokenise.py knows
        return
    newline = len(tokenizer.newline)
    trained: set[int] = set()
    for role, start, content, end in turns_of(tokenizer, ids):
        if role == "assistant":
            trained |= {*range(content, end + 1)}
        if mask == "qwen_finetune":
            trained |= {start, end, *range(end + 1, end + 1 + newline)}
        elif mask == "assistant_only" and role == "assistant":
            trained |= {*range(end + 1, end + 1 + newline)}
    assert labels == [token if place in trained else IGNORE for place, token in enumerate(ids)]
    assert len(ids) <= limit
    roles = [role for role, *_ in turns_of(tokenizer, ids)]
    assert roles[0] == "system" and roles[-1] == "assistant"
    assert roles == ([] if messages[0]["role"] == "system" else ["system"]) + [one["role"] for one in messages]
    assert ids[-1 - newline :] == [tokenizer.im_end, *tokenizer.newline]


@given(
    contents=CONTENTS.filter(lambda contents: len(contents) % 2 == 1), system=st.none() | WORDS, limit=LIMITS,
    responses=st.lists(WORDS, min_size=1, max_size=4),
)  # fmt: skip
@FEW
def test_responses_end_with_their_own_end_behind_one_whole_context(
    tokenizer: ChatTokenizer, contents: list[str], system: str | None, limit: int, responses: list[str]
) -> None:
    try:
        messages, rows = fit_responses(tokenizer, chat(contents, system), responses, limit)
    except Reject:  # when that is right, test_tokenise.py knows
        return
    contexts = set()
    for response, ids in zip(responses, rows, strict=True):
        if ids is None:
            continue
        assert ids[-1] == tokenizer.im_end and len(ids) <= limit
        *context, (role, _, content, end) = turns_of(tokenizer, ids)
        assert (role, end) == ("assistant", len(ids) - 1)
        assert tokenizer.decode(ids[content:end], control_tokens=True) == response
        contexts.add(tuple(ids[:content]))
        roles = [role for role, *_ in context]
        assert roles[0] == "system" and roles[1:] == [m["role"] for m in messages if m["role"] != "system"]
        assert roles[1] == roles[-1] == "user"
    assert len(contexts) == 1


@given(contents=CONTENTS.filter(lambda contents: len(contents) % 2 == 1), limit=LIMITS)
@FEW
def test_a_prompt_ends_with_a_whole_header_or_is_refused(
    tokenizer: ChatTokenizer, contents: list[str], limit: int
) -> None:
    whole = tokenizer.encode_prompt(chat(contents, None))
    if len(whole) > limit:
        with pytest.raises(Reject, match="too_long"):
            fit_prompt(tokenizer, chat(contents, None), limit)
        return
    ids, header = fit_prompt(tokenizer, chat(contents, None), limit), tokenizer.header("assistant")
    assert ids[-len(header) :] == header
    assert [role for role, *_ in turns_of(tokenizer, ids[: -len(header)])][-1] == "user"
