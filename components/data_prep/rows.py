"""Checked items become the rows of core/records.py."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from components.core.chatml import ChatTokenizer
from components.core.config import DataPrepConfig
from components.core.records import Chat, Comparison, Message, Prompt, Text
from components.data_prep import tokenise
from components.data_prep.adapters import Conversation
from components.data_prep.checks import Reject
from components.data_prep.comparisons import Pair, PromptGroup, compact, strict_pairs
from components.data_prep.split import HELDOUT


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

    def row(self, pairs: list[Pair], ties: int, origin: Origin, *, with_response_meta: bool) -> Comparison | None:
        """The row of those pairs that can be told apart; None where no pair is left.

        What is known of single responses, such as the demo's grades, goes into held-out rows only: it may be the truth.
        """
        kept = [pair for pair in pairs if self.differ(pair["chosen"], pair["rejected"])]
        if not kept:
            return None
        used, renumbered = compact(kept)
        meta = dict(self.group.meta)
        if with_response_meta:
            meta |= {key: [column.get(index) for index in used] for key, column in self.group.response_meta.items()}
        responses = [self.group.responses[index] for index in used]
        return Comparison(
            id=content_id([self.messages, responses, renumbered]), source=origin.source, licence=origin.licence,
            messages=self.messages, responses=responses, pairs=renumbered, ties=ties,
            input_ids=[ids for index in used if (ids := self.input_ids[index]) is not None], meta=to_json(meta),
        )  # fmt: skip

    def differ(self, first: int, second: int) -> bool:
        """Whether both fit and a model can tell them apart (a tokenizer's normaliser may make them the same)."""
        one, other = self.input_ids[first], self.input_ids[second]
        return one is not None and other is not None and one != other


@dataclass
class Compared:
    """What becomes of a prompt's judged responses. `rule` says why there is no `row`, or is ""."""

    messages: list[Message]
    row: Comparison | None = None
    true_row: Comparison | None = None
    rule: str = ""
    notes: Counter[str] = field(default_factory=Counter)


def compared(
    group: PromptGroup, part: str, limit: int | None, origin: Origin, tokenizer: ChatTokenizer, config: DataPrepConfig
) -> Compared:
    """The strict pairs of a prompt that fit, at most `limit`; for evaluation also those of its true scores."""
    heldout = part == HELDOUT
    try:
        messages, ids = tokenise.fit_responses(tokenizer, group.messages, group.responses, config.max_length)
    except Reject as refused:
        return Compared(group.messages, rule=refused.rule)
    fitted = FittedPrompt(group, messages, ids)
    pairs = strict_pairs(group.votes, config.min_gap)
    fitting = [pair for pair in pairs.strict if fitted.differ(pair["chosen"], pair["rejected"])]
    found = Compared(messages)
    found.notes["merged_rows"] = group.rows - 1
    found.notes["repeated_responses"] = group.repeated_responses
    found.notes["responses_too_long"] = ids.count(None)
    for name in ("ties", "small_gaps", "conflicts"):
        found.notes[f"pairs_{name}"] = getattr(pairs, name)
    if heldout and group.true_votes:
        found.true_row = fitted.row(strict_pairs(group.true_votes).strict, 0, origin, with_response_meta=True)
    if not pairs.strict:
        found.rule = pairs.rule
        return found
    found.notes["pairs_of_responses_too_long"] = len(pairs.strict) - len(fitting)
    chosen = fitting[:limit]
    found.notes["pairs_over_limit"] = len(fitting) - len(chosen)
    found.row = fitted.row(chosen, pairs.ties, origin, with_response_meta=heldout)
    if found.row is None:
        found.rule = "too_long" if None in ids else "identical_after_tokenisation"
    return found


def text_row(ids: list[int], origin: Origin, tokenizer: ChatTokenizer) -> Text:
    return Text(
        id=content_id(ids), source=origin.source, licence=origin.licence,
        text=tokenise.text_of(tokenizer, ids), input_ids=ids,
    )  # fmt: skip
