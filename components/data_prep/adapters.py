"""Raw rows of many shapes become one of three items: a conversation, a judged prompt, a document.

`Source.columns` maps an adapter's column name to the file's. Adapters only read shapes; whether the content is good is
for checks.py to say.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from components.core.config import Source, TextRepair
from components.core.errors import UserError
from components.core.records import DATA_ROLES, Message
from components.data_prep import checks
from components.data_prep.checks import Reject, require
from components.data_prep.text import is_plain, repaired

Row = dict[str, Any]

# Names that common data sets use for the roles of ChatML.
_ROLE_NAMES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns of a chat, which may or may not end in an assistant turn."""

    messages: list[Message]
    meta: Row = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A prompt with responses and a score for each; true scores where a ground truth is known."""

    messages: list[Message]
    responses: list[str]
    scores: list[float]
    true_scores: list[float] | None = None
    meta: Row = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Document:
    """Plain text; `messages` where it was made of a conversation, whose prompt then decides its part."""

    text: str
    messages: list[Message] = field(default_factory=list)


Item = Conversation | Judged | Document


class Columns:
    """A row seen through `Source.columns`. For `prompt_only` nobody asks for responses, so they may be missing."""

    def __init__(self, row: Row, names: dict[str, str], *, prompt_only: bool = False) -> None:
        self.row, self.names, self.prompt_only = row, names, prompt_only

    def get(self, column: str) -> Any:
        return self.row.get(self.names.get(column, column))

    def has(self, column: str) -> bool:
        return self.get(column) is not None

    def text(self, column: str) -> str:
        value = self.get(column)
        require(value is not None, "missing_column")
        require(isinstance(value, str), "wrong_type")
        return str(value)

    def values(self, column: str) -> list[Any]:
        """A list, or, as in CSV files, its JSON."""
        value = self.get(column)
        require(value is not None, "missing_column")
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise Reject("wrong_type") from None
        require(isinstance(value, list), "wrong_type")
        return list(value)

    def numbers(self, column: str) -> list[float]:
        return [_number(value, "bad_score") for value in self.values(column)]

    def meta(self) -> Row:
        value = self.get("meta")
        return dict(value) if isinstance(value, dict) else {}

    def system(self) -> list[Message]:
        return [_message("system", self.text("system"))] if self.has("system") and self.get("system") != "" else []


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _number(value: Any, rule: str) -> float:
    """A finite number, or the text of one; true and false are none."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    require(math.isfinite(number), rule)
    return number


def _messages(columns: Columns) -> list[Message]:
    messages = columns.system()
    for turn in columns.values("messages"):
        require(isinstance(turn, dict), "wrong_type")
        inner = Columns(turn, columns.names)
        role = inner.text("role").strip().lower()
        messages.append(_message(_ROLE_NAMES.get(role, role), inner.text("content")))
    return messages


def _chat(columns: Columns) -> Item:
    return Conversation(messages=_messages(columns), meta=columns.meta())


def _single(columns: Columns, question: str, answer: str) -> Item:
    """One question and, where there is one, its answer."""
    messages = [*columns.system(), _message("user", question)]
    if columns.has(answer):
        messages.append(_message("assistant", columns.text(answer)))
    return Conversation(messages=messages, meta=columns.meta())


def _asked(columns: Columns) -> str:
    """The instruction and its input, with nothing of a prompt template between them (recipe.md §1.1)."""
    extra = columns.text("input") if columns.has("input") else ""
    return f"{columns.text('instruction')}\n\n{extra}" if extra.strip() else columns.text("instruction")


def _instruction(columns: Columns) -> Item:
    return _single(columns, _asked(columns), "output")


def _question_answer(columns: Columns) -> Item:
    return _single(columns, columns.text("question"), "answer")


_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def _turns_of(transcript: str) -> list[Message]:
    """Turns of a "\\n\\nHuman: …\\n\\nAssistant: …" transcript."""
    before, *rest = _SPEAKER.split(transcript)
    require(bool(rest) and not before.strip(), "not_a_transcript")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [_message(roles[who], said.strip()) for who, said in zip(rest[::2], rest[1::2], strict=True)]


def _transcript(columns: Columns) -> Item:
    if columns.has("text"):
        return Conversation(messages=_turns_of(columns.text("text")), meta=columns.meta())
    chosen, rejected = _turns_of(columns.text("chosen")), _turns_of(columns.text("rejected"))
    require(chosen[-1]["role"] == rejected[-1]["role"] == "assistant", "last_turn_not_assistant")
    require(chosen[:-1] == rejected[:-1], "no_shared_context")
    responses = [chosen[-1]["content"], rejected[-1]["content"]]
    return Judged(messages=chosen[:-1], responses=responses, scores=[1.0, 0.0], meta=columns.meta())


def _comparison(columns: Columns) -> Item:
    messages = [*columns.system(), _message("user", _asked(columns))]
    if columns.prompt_only:
        return Conversation(messages=messages, meta=columns.meta())
    if columns.has("chosen"):
        responses, scores = [columns.text("chosen"), columns.text("rejected")], [1.0, 0.0]
    else:
        responses = [columns.text("output_1"), columns.text("output_2")]
        scores = _scores_of(_number(columns.get("preference"), "no_preference"))
    return Judged(messages=messages, responses=responses, scores=scores, meta=columns.meta())


def _scores_of(preference: float) -> list[float]:
    """1: the first won; 2: the second; 0 or 1.5: a tie. Between 1 and 2 lies a share of votes, and the gap with it."""
    require(preference == 0 or 1 <= preference <= 2, "bad_preference")
    return [0.0, 0.0] if preference == 0 else [2 - preference, preference - 1]


def _asked_messages(columns: Columns) -> list[Message]:
    """A conversation up to its last question, or that question alone."""
    if columns.has("messages"):
        return _messages(columns)
    return [*columns.system(), _message("user", columns.text("prompt"))]


def _scored(columns: Columns) -> Item:
    messages = _asked_messages(columns)
    if columns.prompt_only:
        return Conversation(messages=messages, meta=columns.meta())
    responses = columns.values("responses")
    require(all(isinstance(response, str) for response in responses), "wrong_type")
    true_scores = columns.numbers("true_scores") if columns.has("true_scores") else None
    scores = columns.numbers("scores")
    return Judged(messages=messages, responses=responses, scores=scores, true_scores=true_scores, meta=columns.meta())


def _vote_score(votes: float, accepted: bool) -> float:
    """Askell et al. 2021: round(log2(1 + votes)), and 1 more if accepted; -1 if there are more votes against it."""
    return -1.0 if votes < 0 else round(math.log2(1 + votes)) + float(accepted)


def _net_votes(votes: float, accepted: bool) -> float:
    """WorldPM (2025): votes for less votes against, to accept an answer is one vote."""
    return votes + accepted


def _voted(columns: Columns, score: Callable[[float, bool], float]) -> Item:
    """A post with its answers: objects with text, votes and accepted, or three lists side by side."""
    messages = _asked_messages(columns)
    if columns.prompt_only:
        return Conversation(messages=messages, meta=columns.meta())
    answers = columns.values("answers")
    if any(isinstance(answer, dict) for answer in answers):
        require(all(isinstance(answer, dict) for answer in answers), "wrong_type")
        inner = [Columns(answer, columns.names) for answer in answers]
        texts = [answer.text("text") for answer in inner]
        votes = [answer.get("votes") for answer in inner]
        accepted = [answer.get("accepted") for answer in inner]
    else:
        require(all(isinstance(answer, str) for answer in answers), "wrong_type")
        texts, votes = answers, columns.values("votes")
        accepted = columns.values("accepted") if columns.has("accepted") else [None] * len(texts)
    require(len(votes) == len(accepted) == len(texts), "score_count")
    scores = [score(_number(n, "bad_votes"), _flag(a)) for n, a in zip(votes, accepted, strict=True)]
    return Judged(messages=messages, responses=texts, scores=scores, meta=columns.meta())


def _flag(value: Any) -> bool:
    """True, false, 1, 0, or nothing, which is false."""
    require(value is None or (isinstance(value, int | float) and value in (0, 1)), "wrong_type")
    return bool(value)


def _text(columns: Columns) -> Item:
    return Document(text=columns.text("text"))


def _demo_world(columns: Columns) -> Item:
    if columns.has("text"):
        return _text(columns)
    return _scored(columns) if columns.has("responses") else _chat(columns)


class Adapter(NamedTuple):
    read: Callable[[Columns], Item]
    columns: tuple[str, ...]
    roles: tuple[str, ...]


_CHATS, _JUDGED = ("sft", "ppo", "pretrain"), ("pmp", "reward_model", "ppo", "pretrain")
_VOTED = ("prompt", "messages", "role", "content", "answers", "text", "votes", "accepted", "system", "meta")
ADAPTERS: dict[str, Adapter] = {
    "chat": Adapter(_chat, ("messages", "role", "content", "system", "meta"), _CHATS),
    "instruction": Adapter(_instruction, ("instruction", "input", "output", "system", "meta"), _CHATS),
    "question_answer": Adapter(_question_answer, ("question", "answer", "system", "meta"), _CHATS),
    "transcript": Adapter(_transcript, ("text", "chosen", "rejected", "meta"), DATA_ROLES),
    "comparison": Adapter(
        _comparison,
        ("instruction", "input", "output_1", "output_2", "preference", "chosen", "rejected", "system", "meta"),
        _JUDGED,
    ),
    "scored_responses": Adapter(
        _scored,
        ("prompt", "messages", "role", "content", "responses", "scores", "true_scores", "system", "meta"),
        _JUDGED,
    ),
    "votes": Adapter(partial(_voted, score=_vote_score), _VOTED, _JUDGED),
    "net_votes": Adapter(partial(_voted, score=_net_votes), _VOTED, _JUDGED),
    "text": Adapter(_text, ("text",), ("pretrain",)),
    "demo_world": Adapter(_demo_world, (), DATA_ROLES),
}


def check_source(role: str, source: Source) -> None:
    """Whether a source can serve a role at all. Raises UserError."""
    adapter = ADAPTERS[source.adapter]
    where = f"data_prep.sources.{role}"
    if role not in adapter.roles:
        able = ", ".join(name for name, one in ADAPTERS.items() if role in one.roles)
        raise UserError(f"adapter {source.adapter} gives no rows for {role}", where=where, fix=f"use one of {able}")
    for column in source.columns:
        if column not in adapter.columns:
            known = ", ".join(adapter.columns) or "none"
            raise UserError(f"adapter {source.adapter} has no column {column!r}", where=where, fix=f"it has {known}")


def map_texts(item: Item, function: Callable[[str], str]) -> Item:
    """The item with every text replaced by what the function makes of it."""
    messages: list[Message] = [{**turn, "content": function(turn["content"])} for turn in item.messages]
    if isinstance(item, Judged):
        return replace(item, messages=messages, responses=[function(text) for text in item.responses])
    if isinstance(item, Conversation):
        return replace(item, messages=messages)
    return replace(item, messages=messages, text=function(item.text))


def texts(item: Item) -> Iterator[str]:
    """Every text of an item; a document's holds what its messages hold."""
    if isinstance(item, Document):
        yield item.text
        return
    yield from (turn["content"] for turn in item.messages)
    if isinstance(item, Judged):
        yield from item.responses


def repair(item: Item, role: str, settings: TextRepair, done: Counter[str]) -> Item:
    """The item with its texts made whole, which is counted in `done`. Raises Reject where one cannot be, or nothing of
    it is left."""
    found: Counter[str] = Counter()
    if all(map(is_plain, texts(item))):
        return item

    def whole(text: str) -> str:
        text, changes = repaired(text, settings)
        found.update(changes)
        return text

    changed = map_texts(item, whole)
    if not found:
        return item
    done.update(found)
    _check(changed, role)
    return changed


def adapt(source: Source, role: str, row: Row) -> Item:
    """A raw row as the item that a role takes, checked. Raises Reject with the rule's name."""
    item = ADAPTERS[source.adapter].read(Columns(row, source.columns, prompt_only=role == "ppo"))
    if role == "pretrain":
        item = _plain(item)
    elif role == "ppo":
        item = _prompt_of(item)
    _check(item, role)
    return item


def _prompt_of(item: Item) -> Item:
    """The prompt of any conversation: what stands before the reply."""
    if isinstance(item, Document):
        raise Reject("not_a_conversation")
    messages = item.messages
    if isinstance(item, Conversation) and messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return Conversation(messages=messages, meta={} if isinstance(item, Judged) else item.meta)


def _plain(item: Item) -> Item:
    """Any row as plain text, without ChatML; of a judged prompt with all its responses."""
    if isinstance(item, Document):
        return item
    said = [message["content"] for message in item.messages]
    said += item.responses if isinstance(item, Judged) else []
    return Document(text="\n".join(said), messages=item.messages)


def _check(item: Item, role: str) -> None:
    if isinstance(item, Document):
        require(role == "pretrain", "not_a_conversation")
        checks.check_text(item.text)
    elif isinstance(item, Judged):
        require(role in ("pmp", "reward_model"), "not_a_conversation")
        checks.check_prompt(item.messages)
        checks.check_responses(item.responses, item.scores)
        if item.true_scores is not None:
            checks.check_scores(item.responses, item.true_scores)
    else:
        require(role in ("sft", "ppo"), "not_a_comparison")
        checks.check_conversation(item.messages) if role == "sft" else checks.check_prompt(item.messages)
