"""Checked items become the rows of core/records.py."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from components.core.chatml import ChatTokenizer
from components.core.config import DataPrepConfig
from components.core.records import Chat, Comparison, Message, Prompt, Text
from components.data_prep import tokenise
from components.data_prep.adapters import Conversation
from components.data_prep.comparisons import Pair, PromptGroup, compact


@dataclass(frozen=True)
class Origin:
    """Where rows come from: kept with each of them."""

    source: str
    licence: str


def content_id(content: Any) -> str:
    """An id that depends on a row's content alone."""
    return hashlib.sha256(to_json(content).encode()).hexdigest()[:16]


def to_json(value: Any) -> str:
    """JSON in ASCII, which even a row with broken Unicode has; values that JSON has no word for as text."""
    return json.dumps(value, sort_keys=True, default=str)


def chat_row(item: Conversation, origin: Origin, tokenizer: ChatTokenizer, config: DataPrepConfig) -> Chat:
    messages, ids, labels = tokenise.fit_chat(tokenizer, item.messages, config.max_length, config.loss_mask)
    return Chat(
        id=content_id(messages), source=origin.source, licence=origin.licence, messages=messages,
        input_ids=ids, labels=labels, meta=to_json(item.meta),
    )  # fmt: skip


def prompt_row(item: Conversation, origin: Origin, tokenizer: ChatTokenizer, config: DataPrepConfig) -> Prompt:
    ids = tokenise.fit_prompt(tokenizer, item.messages, config.max_prompt_length)
    return Prompt(
        id=content_id(item.messages), source=origin.source, licence=origin.licence, messages=item.messages,
        input_ids=ids, meta=to_json(item.meta),
    )  # fmt: skip


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt's responses with the context that fits and the ids of each, None where a response is too long."""

    group: PromptGroup
    messages: list[Message]
    input_ids: list[list[int] | None]

    def row(
        self, pairs: list[Pair], ties: int, origin: Origin, *, with_response_meta: bool
    ) -> tuple[Comparison, int] | None:
        """(the row, pairs lost because a response did not fit or became equal); None where no pair is left.

        What is known of single responses, such as the demo's grades, goes into held-out rows only: it may be the truth.
        """
        kept = [pair for pair in pairs if self._differ(pair["chosen"], pair["rejected"])]
        if not kept:
            return None
        used, renumbered = compact(kept)
        meta = dict(self.group.meta)
        if with_response_meta:
            meta |= {key: [column.get(index) for index in used] for key, column in self.group.response_meta.items()}
        responses = [self.group.responses[index] for index in used]
        row = Comparison(
            id=content_id([self.messages, responses, renumbered]), source=origin.source, licence=origin.licence,
            messages=self.messages, responses=responses, pairs=renumbered, ties=ties,
            input_ids=[ids for index in used if (ids := self.input_ids[index]) is not None], meta=to_json(meta),
        )  # fmt: skip
        return row, len(pairs) - len(kept)

    def _differ(self, first: int, second: int) -> bool:
        """Whether both fit and a model can tell them apart (a tokenizer's normaliser may make them the same)."""
        one, other = self.input_ids[first], self.input_ids[second]
        return one is not None and other is not None and one != other


def fitted_prompt(group: PromptGroup, tokenizer: ChatTokenizer, config: DataPrepConfig) -> FittedPrompt:
    messages, ids = tokenise.fit_responses(tokenizer, group.messages, group.responses, config.max_length)
    return FittedPrompt(group, messages, ids)


def text_row(ids: list[int], origin: Origin, tokenizer: ChatTokenizer) -> Text:
    return Text(
        id=content_id(ids), source=origin.source, licence=origin.licence,
        text=tokenise.text_of(tokenizer, ids), input_ids=ids,
    )  # fmt: skip
