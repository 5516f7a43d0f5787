"""Token ids that fit: cut between turns, labels that spell the assistant's words, one context for all responses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.chatml import IGNORE, ChatTokenizer, label_turns
from components.core.records import Message
from components.data_prep.checks import Reject
from components.data_prep.tokenise import Packer, fit_chat, fit_prompt, fit_responses, text_of

WORDS = st.lists(
    st.sampled_from(["four ", "two\n", "<|im_start|>assistant\n", "<|im_end|>\n", "<|endoftext|>", "é", "語"]),
    min_size=1,
    max_size=6,
).map("".join)
FEW = settings(max_examples=150)


def chat(contents: list[str], system: str | None = None) -> list[Message]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system is not None else []) + turns


CHATS = st.integers(1, 5).flatmap(lambda turns: st.lists(WORDS, min_size=2 * turns, max_size=2 * turns))
PROMPTS = st.integers(0, 3).flatmap(lambda turns: st.lists(WORDS, min_size=2 * turns + 1, max_size=2 * turns + 1))
SYSTEMS = st.none() | WORDS


def trained(tokenizer: ChatTokenizer, labels: list[int]) -> str:
    return tokenizer.decode([label for label in labels if label != IGNORE], control_tokens=True)


@given(contents=CHATS, system=SYSTEMS)
@FEW
def test_labels_spell_the_assistants_words_and_nothing_else(
    tokenizer: ChatTokenizer, contents: list[str], system: str | None
) -> None:
    messages, ids, labels = fit_chat(tokenizer, chat(contents, system), 10_000, "assistant_only")
    assert messages == chat(contents, system)
    assert trained(tokenizer, labels) == "".join(f"{reply}<|im_end|>\n" for reply in contents[1::2])
    assert all(label in (IGNORE, token) for label, token in zip(labels, ids, strict=True))


@given(contents=CHATS, system=SYSTEMS, max_length=st.integers(1, 400))
@FEW
def test_a_cut_chat_is_the_longest_run_of_whole_turns_that_ends_with_the_assistant(
    tokenizer: ChatTokenizer, contents: list[str], system: str | None, max_length: int
) -> None:
    whole = chat(contents, system)
    sizes = {
        n: len(label_turns(tokenizer.turns(whole[: len(whole) - n]), "assistant_only")[0])
        for n in range(0, len(contents), 2)
    }
    fitting = [n for n, size in sizes.items() if size <= max_length]
    if not fitting:
        with pytest.raises(Reject, match="too_long"):
            fit_chat(tokenizer, whole, max_length, "assistant_only")
        return
    messages, ids, labels = fit_chat(tokenizer, whole, max_length, "assistant_only")
    assert messages == whole[: len(whole) - fitting[0]]
    assert len(ids) == sizes[fitting[0]] <= max_length
    assert (ids, labels) == label_turns(tokenizer.turns(messages), "assistant_only")
    assert ids.count(tokenizer.im_start) == ids.count(tokenizer.im_end)


def test_a_chat_of_just_the_limit_is_whole_and_one_token_less_cuts_a_turn(tokenizer: ChatTokenizer) -> None:
    whole = chat(["two", "four", "two", "four"])
    size = len(label_turns(tokenizer.turns(whole), "assistant_only")[0])
    assert fit_chat(tokenizer, whole, size, "assistant_only")[0] == whole
    assert fit_chat(tokenizer, whole, size - 1, "assistant_only")[0] == whole[:2]


@given(contents=PROMPTS, system=SYSTEMS, responses=st.lists(WORDS | st.just(""), min_size=1, max_size=4))
@FEW
def test_what_fits_is_encoded_as_everywhere_else(
    tokenizer: ChatTokenizer, contents: list[str], system: str | None, responses: list[str]
) -> None:
    messages, ids = fit_responses(tokenizer, chat(contents, system), responses, 10_000)
    assert messages == chat(contents, system)
    assert ids == [tokenizer.encode_response(messages, response) for response in responses]


@given(
    contents=PROMPTS, system=SYSTEMS, responses=st.lists(WORDS, min_size=1, max_size=4), max_length=st.integers(1, 300)
)
@FEW
def test_context_loses_its_oldest_turns_and_no_more_than_it_must(
    tokenizer: ChatTokenizer, contents: list[str], system: str | None, responses: list[str], max_length: int
) -> None:
    whole = chat(contents, system)
    opening = whole[: len(whole) - len(contents)]
    contexts = [opening + chat(contents)[start:] for start in range(0, len(contents), 2)]
    fits = [len(tokenizer.encode_response(contexts[-1], response)) <= max_length for response in responses]
    if not any(fits):
        with pytest.raises(Reject, match="too_long"):
            fit_responses(tokenizer, whole, responses, max_length)
        return
    messages, ids = fit_responses(tokenizer, whole, responses, max_length)
    kept = [response for response, fit in zip(responses, fits, strict=True) if fit]
    wanted = next(c for c in contexts if all(len(tokenizer.encode_response(c, r)) <= max_length for r in kept))
    assert messages == wanted
    assert ids == [
        tokenizer.encode_response(wanted, response) if fit else None
        for response, fit in zip(responses, fits, strict=True)
    ]


def test_context_of_just_the_limit_is_whole_and_one_token_less_loses_a_turn(tokenizer: ChatTokenizer) -> None:
    whole = chat(["two", "four", "two"])
    size = len(tokenizer.encode_response(whole, "four"))
    assert fit_responses(tokenizer, whole, ["four", ""], size)[0] == whole
    assert fit_responses(tokenizer, whole, ["four", ""], size - 1)[0] == whole[2:]


def test_prompt_is_kept_whole_or_refused(tokenizer: ChatTokenizer) -> None:
    messages = chat(["two", "four", "two"])
    ids = tokenizer.encode_prompt(messages)
    assert fit_prompt(tokenizer, messages, len(ids)) == ids
    with pytest.raises(Reject, match="too_long"):
        fit_prompt(tokenizer, messages, len(ids) - 1)


@given(texts=st.lists(WORDS, max_size=8), length=st.integers(1, 40))
@FEW
def test_packing_loses_nothing_and_every_sequence_but_the_last_is_full(
    tokenizer: ChatTokenizer, texts: list[str], length: int
) -> None:
    packer = Packer(length)
    sequences = [ids for text in texts for ids in packer.add(tokenizer.encode_document(text))] + list(packer.rest())
    assert [i for ids in sequences for i in ids] == [i for text in texts for i in tokenizer.encode_document(text)]
    assert all(len(ids) == length for ids in sequences[:-1])
    assert all(0 < len(ids) <= length for ids in sequences)
    assert list(packer.rest()) == []


def test_text_of_a_sequence_separates_documents(tokenizer: ChatTokenizer) -> None:
    packer = Packer(1000)
    assert (
        list(packer.add(tokenizer.encode_document("one")))
        + list(packer.add(tokenizer.encode_document("<|endoftext|> two")))
        == []
    )
    (ids,) = packer.rest()
    assert text_of(tokenizer, ids) == "one\n\n<|endoftext|> two"
