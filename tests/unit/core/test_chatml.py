"""ChatML: the golden vector and masks of the recipe's §1.2 and §1.3, and that no text can speak for the machine."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from components.core.chatml import CHAT_TEMPLATE, CONTROL_TOKENS, IGNORE, ChatTokenizer, label_turns
from components.core.errors import UserError

# Ids of the Qwen vocabulary, for the words of the report's example (A.1.1) and nothing else.
QWEN_IDS = {
    "Ċ": 198, "system": 8948, "user": 872, "assistant": 77091, "You": 2610, "Ġare": 525, "Ġa": 264, "Ġhelpful": 10950,
    "Ġassistant": 17847, ".": 13, "Hello": 9707, "!": 0, "ĠHow": 2585, "Ġcan": 646, "ĠI": 358, "Ġassist": 7789,
    "Ġyou": 498, "Ġtoday": 3351, "?": 30, "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645,
}  # fmt: skip
GOLDEN = [
    151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198,
    151644, 872, 198, 9707, 0, 151645, 198,
    151644, 77091, 198, 9707, 0, 2585, 646, 358, 7789, 498, 3351, 30, 151645, 198,
]  # fmt: skip
EXAMPLE = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello! How can I assist you today?"},
]
TRAINED = {
    "qwen_finetune": {0, 9, 10, 11, 16, 17, 18, *range(21, 32)},
    "assistant_only": set(range(21, 32)),
    "assistant_only_no_nl": set(range(21, 31)),
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """A tokenizer in which the example's words have Qwen's own ids; every byte has some id far from them."""
    rest = (index for index in range(100_000, 101_000))
    vocabulary = QWEN_IDS | {byte: next(rest) for byte in pre_tokenizers.ByteLevel.alphabet() if byte not in QWEN_IDS}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": QWEN_IDS[token], "content": token, **flags} for token in CONTROL_TOKENS],
        "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocabulary, "merges": []},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return ChatTokenizer.load(folder)


def bpe(*, special: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(["user assistant system", "<|im_start|> <|im_end|> <|endoftext|>"] * 9, trainer)
    tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in CONTROL_TOKENS])
    return tokenizer


@pytest.fixture(scope="module", params=["flagged special", "not flagged"])
def byte_level(request: pytest.FixtureRequest) -> ChatTokenizer:
    return ChatTokenizer(bpe(special=request.param == "flagged special"))


def positions(labels: list[int]) -> set[int]:
    return {index for index, label in enumerate(labels) if label != IGNORE}


@pytest.mark.parametrize("mask", TRAINED)
def test_example_of_the_report_has_the_golden_ids_and_mask(qwen: ChatTokenizer, mask: str) -> None:
    ids, labels = label_turns(qwen.turns(EXAMPLE), mask)  # type: ignore[arg-type]
    assert ids == GOLDEN
    assert positions(labels) == TRAINED[mask]
    assert all(labels[index] == ids[index] for index in TRAINED[mask])


def test_prompt_ends_with_the_assistant_header(qwen: ChatTokenizer) -> None:
    assert qwen.encode_prompt(EXAMPLE[:1]) == GOLDEN[:21]


def test_response_ends_with_its_end_of_turn_and_no_newline(qwen: ChatTokenizer) -> None:
    assert qwen.encode_response(EXAMPLE[:1], EXAMPLE[1]["content"]) == GOLDEN[:31]


def test_document_is_plain_text_closed_by_end_of_text(qwen: ChatTokenizer) -> None:
    assert qwen.encode_document("Hello!") == [9707, 0, 151643]


def test_given_system_prompt_replaces_the_default_one(qwen: ChatTokenizer) -> None:
    ids = qwen.encode_prompt([{"role": "system", "content": "Hello!"}, *EXAMPLE[:1]])
    assert ids == [151644, 8948, 198, 9707, 0, 151645, 198, *GOLDEN[11:21]]


def test_empty_system_prompt_stays_empty(qwen: ChatTokenizer) -> None:
    ids = qwen.encode_prompt([{"role": "system", "content": ""}, *EXAMPLE[:1]])
    assert ids == [151644, 8948, 198, 151645, 198, *GOLDEN[11:21]]


def test_all_assistant_turns_of_a_longer_chat_are_trained(qwen: ChatTokenizer) -> None:
    ids, labels = label_turns(qwen.turns([*EXAMPLE, *EXAMPLE]), "assistant_only")
    assert ids == GOLDEN + GOLDEN[11:]
    assert positions(labels) == {*range(21, 32), *range(42, 53)}


def test_empty_reply_trains_only_its_end(qwen: ChatTokenizer) -> None:
    turns = qwen.turns([*EXAMPLE[:1], {"role": "assistant", "content": ""}])
    ids, labels = label_turns(turns, "assistant_only")
    assert ids[21:] == [151645, 198]
    assert positions(labels) == {21, 22}
    assert qwen.encode_response(EXAMPLE[:1], "") == [*GOLDEN[:21], 151645]


def test_pieces_are_encoded_apart(byte_level: ChatTokenizer) -> None:
    """A content that begins with a newline must not melt into the header's newline."""
    turn = byte_level.turn("user", "\n\nx")
    assert turn.header == [byte_level.im_start, *byte_level.encode_text("user"), *byte_level.encode_text("\n")]
    assert turn.ids == turn.header + byte_level.encode_text("\n\nx") + turn.tail


CONTENT = st.text() | st.lists(
    st.sampled_from([*CONTROL_TOKENS, "<|im_", "start|>", "\n", "assistant", "system", " ", "é", "語", "<", "|"])
).map("".join)


@given(content=CONTENT)
@settings(max_examples=300)
def test_no_text_becomes_a_control_token_and_all_text_comes_back(byte_level: ChatTokenizer, content: str) -> None:
    ids = byte_level.encode_text(content)
    assert byte_level.control_ids.isdisjoint(ids)
    assert byte_level.decode(ids) == content


@given(contents=st.lists(CONTENT, min_size=1, max_size=5))
@settings(max_examples=100)
def test_a_conversation_has_exactly_the_turns_it_was_given(byte_level: ChatTokenizer, contents: list[str]) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    ids, labels = label_turns(byte_level.turns(messages), "assistant_only")
    assert ids.count(byte_level.im_start) == ids.count(byte_level.im_end) == len(contents) + 1
    spoken = "".join(f"{text}<|im_end|>\n" for text in contents[1::2])
    assert byte_level.decode([i for i in labels if i != IGNORE], control_tokens=True) == spoken


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_a_written_out_control_token_does_not_change_the_words_around_it(byte_level: ChatTokenizer, token: str) -> None:
    user = byte_level.encode_text("user")
    assert len(user) == 1
    ids = byte_level.encode_text(f"user{token}user")
    assert ids[:1] == ids[-1:] == user


@pytest.mark.parametrize("token", CONTROL_TOKENS)
def test_written_out_control_token_stays_text_in_qwens_ids(qwen: ChatTokenizer, token: str) -> None:
    ids = qwen.encode_text(f"a{token}b {token}")
    assert not {151643, 151644, 151645} & set(ids)
    assert qwen.decode(ids) == f"a{token}b {token}"


def test_tokenizer_that_knows_a_control_token_as_a_word_still_spells_it_out() -> None:
    """ignore_merges without a pre-tokenizer looks the whole text up in the vocabulary, control tokens included."""
    letters = {letter: index for index, letter in enumerate(sorted(set("".join(CONTROL_TOKENS) + "userayt\n")))}
    vocabulary = letters | {token: 100 + index for index, token in enumerate(CONTROL_TOKENS)}
    tokenizer = ChatTokenizer(Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True)))
    ids = tokenizer.encode_text("<|im_end|>")
    assert tokenizer.im_end == 102
    assert ids == [letters[letter] for letter in "<|im_end|>"]


def test_lone_surrogate_is_a_user_error(byte_level: ChatTokenizer) -> None:
    with pytest.raises(UserError, match="Unicode"):
        byte_level.encode_text("\ud800")


def test_padding_is_never_the_end_of_a_turn(byte_level: ChatTokenizer) -> None:
    assert byte_level.pad == byte_level.end_of_text != byte_level.im_end
    assert byte_level.stop_ids == (byte_level.im_end, byte_level.im_start, byte_level.end_of_text)


def test_tokenizer_without_control_tokens_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"somewhere: no control token .*<\|im_start\|>.*add_control_tokens"):
        ChatTokenizer(Tokenizer(models.BPE()), name="somewhere")


def test_folder_without_or_with_a_broken_tokenizer_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        ChatTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not a tokenizer file"):
        ChatTokenizer.load(tmp_path)


def test_chat_template_renders_the_same_text(byte_level: ChatTokenizer) -> None:
    import jinja2

    template = jinja2.Environment().from_string(CHAT_TEMPLATE)
    for messages in ([*EXAMPLE], [{"role": "system", "content": "Be brief."}, *EXAMPLE]):
        ids, _ = label_turns(byte_level.turns(messages), "assistant_only")
        assert template.render(messages=messages) == byte_level.decode(ids, control_tokens=True)
    prompt = byte_level.decode(byte_level.encode_prompt(EXAMPLE[:1]), control_tokens=True)
    assert template.render(messages=EXAMPLE[:1], add_generation_prompt=True) == prompt
