"""ChatML, the one place where text becomes tokens.

A turn is `<|im_start|>role\\ncontent<|im_end|>\\n` (Qwen Technical Report A.1.1). Role, newline and content are encoded
apart and joined, and content is encoded with control tokens switched off, so that no text can open or close a turn
(recipe.md §1.2 rule 6).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer

from components.core.errors import UserError
from components.core.records import Message

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
DEFAULT_SYSTEM = "You are a helpful assistant."
IGNORE = -100
LossMask = Literal["assistant_only", "assistant_only_no_nl", "qwen_finetune"]

# The same rendering for `transformers`' apply_chat_template, saved with every model.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Turn:
    """One encoded turn: header = `<|im_start|>role\\n`, content without control tokens, tail = `<|im_end|>\\n`."""

    role: str
    header: list[int]
    content: list[int]
    tail: list[int]

    @property
    def ids(self) -> list[int]:
        return self.header + self.content + self.tail


class ChatTokenizer:
    """A byte-level tokenizer with the three ChatML control tokens."""

    def __init__(self, tokenizer: Tokenizer, name: str = "tokenizer") -> None:
        missing = [token for token in CONTROL_TOKENS if tokenizer.token_to_id(token) is None]
        if missing:
            what = f"no control token {', '.join(missing)}"
            raise UserError(what, where=name, fix="run the base_model step with add_control_tokens=true first")
        # Only tokens flagged special are switched off by encode_special_tokens; some checkpoints leave the flag out.
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        ids = {token: index for token, index in tokenizer.get_vocab().items() if token in CONTROL_TOKENS}
        self.end_of_text, self.im_start, self.im_end = (ids[token] for token in CONTROL_TOKENS)
        self.control_ids = frozenset(
            index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._known: dict[str, list[int]] = {}
        self.newline = self.encode_text("\n")
        self._headers: dict[str, list[int]] = {}
        self.stop_ids = (self.im_end, self.im_start, self.end_of_text)

    @classmethod
    def load(cls, folder: Path) -> "ChatTokenizer":
        """Read `tokenizer.json` of a model folder. Raises UserError where it is missing or unreadable."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{folder}: no tokenizer.json; save the model with a fast tokenizer")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception on any malformed file
            raise UserError(f"{path}: not a tokenizer file ({error})") from error
        return cls(tokenizer, name=str(folder))

    @property
    def pad(self) -> int:
        """Padding is `<|endoftext|>`, as in Qwen's scripts; never the end of a turn, so that stopping is learned."""
        return self.end_of_text

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text; never a control token, whatever the text says."""
        known = self._known.get(text)
        if known is not None:
            return list(known)
        try:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise UserError(f"text is not valid Unicode ({error})") from error
        if not self.control_ids.isdisjoint(ids):
            # A tokenizer that matches whole words (ignore_merges) can find one in its vocabulary; single characters
            # cannot.
            ids = [i for char in text for i in self.tokenizer.encode(char, add_special_tokens=False).ids]
        return list(ids)

    @contextmanager
    def encoded(self, texts: Iterable[str]) -> Iterator[None]:
        """Encode many texts at once, in half the time that one after another takes, for use within the context."""
        distinct = list(dict.fromkeys(texts))
        found = self.tokenizer.encode_batch_fast(distinct, add_special_tokens=False)
        self._known = {
            text: ids
            for text, encoding in zip(distinct, found, strict=True)
            if self.control_ids.isdisjoint(ids := encoding.ids)
        }
        try:
            yield
        finally:
            self._known = {}

    def decode(self, ids: list[int], *, control_tokens: bool = False) -> str:
        """Text of ids. With `control_tokens` they are written out, else left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=not control_tokens)

    def header(self, role: str) -> list[int]:
        """`<|im_start|>role\\n`; after a prompt, where the assistant's reply is to begin."""
        if role not in self._headers:
            self._headers[role] = [self.im_start, *self.encode_text(role), *self.newline]
        return list(self._headers[role])

    def turn(self, role: str, content: str) -> Turn:
        return Turn(role, self.header(role), self.encode_text(content), [self.im_end, *self.newline])

    def turns(self, messages: list[Message], default_system: str = DEFAULT_SYSTEM) -> list[Turn]:
        """The encoded turns; a system turn is put first where the conversation has none ('' leaves it empty)."""
        if not messages or messages[0]["role"] != "system":
            messages = [{"role": "system", "content": default_system}, *messages]
        return [self.turn(message["role"], message["content"]) for message in messages]

    def encode_prompt(self, messages: list[Message]) -> list[int]:
        """A conversation ending in a user turn, followed by the assistant header: where generation starts."""
        ids = [i for turn in self.turns(messages) for i in turn.ids]
        return ids + self.header("assistant")

    def encode_response(self, messages: list[Message], response: str) -> list[int]:
        """Prompt and finished response up to its `<|im_end|>`, where the reward is read; no newline after it."""
        return [*self.encode_prompt(messages), *self.encode_text(response), self.im_end]

    def encode_document(self, text: str) -> list[int]:
        """A pretraining document: no ChatML, closed by `<|endoftext|>`."""
        return [*self.encode_text(text), self.end_of_text]


def label_turns(turns: list[Turn], mask: LossMask) -> tuple[list[int], list[int]]:
    """Join turns to (input_ids, labels), labels unshifted and -100 where no loss is taken.

    assistant_only: every assistant turn's content, `<|im_end|>` and newline (the report's §3.1.2 "loss masks for the
    system and user inputs"). assistant_only_no_nl: without that newline. qwen_finetune: as QwenLM/Qwen's finetune.py,
    also `<|im_start|>`, `<|im_end|>` and the newline of every turn.
    """
    ids: list[int] = []
    labels: list[int] = []
    for turn in turns:
        ids += turn.ids
        header = [IGNORE] * len(turn.header)
        spoken = turn.role == "assistant"
        if mask == "qwen_finetune":
            header[0] = turn.header[0]
            content = turn.content if spoken else [IGNORE] * len(turn.content)
            tail = turn.tail
        else:
            content = turn.content if spoken else [IGNORE] * len(turn.content)
            tail = turn.tail if spoken else [IGNORE] * len(turn.tail)
            if spoken and mask == "assistant_only_no_nl":
                tail = tail[:1] + [IGNORE] * (len(tail) - 1)
        labels += header + content + tail
    return ids, labels
