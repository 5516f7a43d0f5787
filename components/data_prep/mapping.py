"""What one unit of raw rows becomes, looked at on its own: a table of what is known of each row, a table of the rows.

Everything that costs time happens here, in any number of processes and shards: reading, checks, filters, tokens,
signatures, tags. What takes more than one unit to decide (templates that many prompts share, duplicates, balance,
rows of one prompt) is decided in reduce.py from the first table, and carried out in write.py on the second.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from components.core.chatml import DEFAULT_SYSTEM, ChatTokenizer
from components.core.config import DataPrepConfig, Source
from components.core.records import DATA_ROLES, ROW_TYPES, Comparison, Message
from components.data_prep import dedup, split
from components.data_prep.adapters import Document, Item, Judged, texts
from components.data_prep.card import source_names
from components.data_prep.checks import Reject, require
from components.data_prep.comparisons import group, pair_limit
from components.data_prep.filters import RowFilters
from components.data_prep.labellers import Labellers
from components.data_prep.language import language_of
from components.data_prep.mined_templates import FRAMES, frame_digests
from components.data_prep.near_duplicates import PERMUTATIONS, signatures
from components.data_prep.readers import RawRow
from components.data_prep.rows import Origin, chat_row, compared, content_id, prompt_row, to_json
from components.data_prep.safety import UNSAFE_RESPONSE, Exchange, route
from components.data_prep.sources import checked
from components.data_prep.split import number
from components.data_prep.templates import is_tool_use
from components.data_prep.units import Unit

COMPARISONS = ("pmp", "reward_model")
_SIGNATURE = pa.binary(2 * PERMUTATIONS)
FACTS = pa.schema(
    [
        ("place", pa.string()),
        ("rule", pa.string()),  # that refused it, or ""
        ("raw", pa.string()),  # the raw row, where a rule refused it
        ("part", pa.string()),
        # 8 bytes of digests, 0 for none; two of a hundred million rows are taken for one in 1 case of 4,000
        ("key", pa.uint64()),  # of the prompt, as in split.py
        ("cut_key", pa.uint64()),  # of what is left of a prompt that was cut
        ("group", pa.uint64()),  # the same for all rows that judge the same prompt
        ("content", pa.uint64()),  # the same for exact duplicates
        ("prompt", pa.uint64()),
        ("frames", pa.list_(pa.uint64(), len(FRAMES))),
        ("content_signature", _SIGNATURE),
        ("prompt_signature", _SIGNATURE),
        ("pair_rule", pa.string()),  # that refuses a judgement's pairs if it stands alone, or ""
        ("id", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("category", pa.string()),
        ("language", pa.string()),
        ("safety", pa.list_(pa.string())),
        ("tool_use", pa.bool_()),
        ("notes", pa.string()),
    ]
)
"""One row of these for every raw row."""

_JUDGEMENT = pa.schema(
    [
        ("judged", pa.string()),  # the row as it came, for prompts that more rows judge
        ("pair_notes", pa.string()),
        ("row", pa.struct(list(Comparison.SCHEMA))),
        ("true_row", pa.struct(list(Comparison.SCHEMA))),
    ]
)
_DOCUMENT = pa.schema([("text", pa.string()), ("input_ids", pa.list_(pa.int32()))])
_INDEX = pa.field("fact", pa.int32())  # the row's place within the unit


def row_schema(role: str) -> pa.Schema:
    """Of the second table: what becomes of the rows that no rule refused."""
    if role in COMPARISONS:
        return _JUDGEMENT.append(_INDEX)
    if role == "pretrain":
        return _DOCUMENT.append(_INDEX)
    schema: pa.Schema = ROW_TYPES[role].SCHEMA
    return schema.append(_INDEX)


class Mapped(NamedTuple):
    """A unit after the map."""

    number: int
    role: str
    source: int
    facts: pa.RecordBatch
    rows: pa.RecordBatch


@dataclass
class Fact:
    """A row on its way through the map; its fields are the columns of FACTS."""

    place: str
    rule: str = ""
    raw: str = ""
    part: str = ""
    key: int = 0
    cut_key: int = 0
    group: int = 0
    content: int = 0
    prompt: int = 0
    frames: tuple[int, ...] = (0,) * len(FRAMES)
    content_signature: bytes | None = None
    prompt_signature: bytes | None = None
    pair_rule: str = ""
    id: str = ""
    tags: list[str] = field(default_factory=list)
    category: str = ""
    language: str = ""
    safety: list[str] = field(default_factory=list)
    tool_use: bool = False
    notes: Counter[str] = field(default_factory=Counter)

    def refuse(self, rule: str, row: str) -> None:
        self.rule, self.raw = rule, row


class Mapper:
    """Maps units; holds what all of them need."""

    def __init__(self, config: DataPrepConfig, tokenizer: ChatTokenizer, data_root: str, labellers: Labellers) -> None:
        self.config, self.tokenizer, self.labellers = config, tokenizer, labellers
        self.filters = RowFilters(config.filters, data_root)
        self.names = {role: source_names(role, getattr(config.sources, role)) for role in DATA_ROLES}

    def map(self, unit: Unit) -> Mapped:
        source: Source = getattr(self.config.sources, unit.role)[unit.source]
        name = self.names[unit.role][unit.source]
        facts, rows = UnitWork(self, unit.role, source, Origin(name, source.licence)).run(unit.rows)
        return Mapped(unit.number, unit.role, unit.source, facts, rows)


class UnitWork:
    """One source's rows in one role."""

    def __init__(self, mapper: Mapper, role: str, source: Source, origin: Origin) -> None:
        self.mapper, self.role, self.source, self.origin = mapper, role, source, origin
        self.config, self.tokenizer = mapper.config, mapper.tokenizer

    def run(self, raws: list[RawRow]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """(facts of every raw row, the rows that no rule refused)."""
        facts = [Fact(raw.place) for raw in raws]
        kept: list[tuple[int, Item]] = []
        for index, (raw, fact) in enumerate(zip(raws, facts, strict=True)):
            try:
                kept.append((index, self._checked(raw, fact)))
            except Reject as refused:
                fact.refuse(refused.rule, raw.row if isinstance(raw.row, str) else to_json(raw.row))
        kept = self._safe(kept, facts, raws)
        rows: list[dict[str, Any]] = []
        built: list[tuple[Fact, Item]] = []
        with self.tokenizer.encoded(text for _, item in kept for text in encoded_texts(item)):
            for index, item in kept:
                fact = facts[index]
                try:
                    rows.append({**self._build(item, fact), "fact": index})
                except Reject as refused:
                    fact.refuse(refused.rule, to_json(raws[index].row))
                else:
                    built.append((fact, item))
        self._sign(built)
        self._tag(built)
        columns = [{**vars(fact), "notes": to_json(fact.notes) if fact.notes else ""} for fact in facts]
        schema = row_schema(self.role)
        return pa.RecordBatch.from_pylist(columns, schema=FACTS), pa.RecordBatch.from_pylist(rows, schema=schema)

    def _checked(self, raw: RawRow, fact: Fact) -> Item:
        """The item that may go on. Raises Reject."""
        item = checked(raw, self.source, self.role, self.config.text, fact.notes)
        filters = self.mapper.filters
        if not self.source.heldout_only:
            if filters.is_mined(item, self.role):
                fact.prompt, fact.frames = frame_digests(item.messages)
            filters.check(item, self.role)
        cleaned = filters.clean(item, fact.notes)
        key = split.key_of(cleaned)
        fact.key = number(key)
        fact.part = self._part(key, is_document=isinstance(item, Document) and not item.messages)
        fact.category, fact.tool_use = category(item), is_tool_use(item.messages)
        fact.language = language_of(asked_text(item)) if self.config.languages else ""
        return cleaned

    def _safe(self, kept: list[tuple[int, Item]], facts: list[Fact], raws: list[RawRow]) -> list[tuple[int, Item]]:
        """Label the rows; those with an unsafe response to imitate are for new annotation."""
        classifier = self.mapper.labellers.safety
        if classifier is None or self.role == "pretrain":
            return kept
        asked = [(index, exchange) for index, item in kept for exchange in exchanges(item)]
        found = classifier.label([exchange for _, exchange in asked])
        refused = set()
        for (index, _), labels in zip(asked, found, strict=True):
            if labels is None:
                facts[index].notes["without_safety_labels"] += 1
                continue
            facts[index].safety += [name for name in labels.names() if name not in facts[index].safety]
            if route(labels, self.config.safety) == "reannotate" and not self.source.heldout_only:
                facts[index].refuse(UNSAFE_RESPONSE, to_json(raws[index].row))
                refused.add(index)
        return [(index, item) for index, item in kept if index not in refused]

    def _build(self, item: Item, fact: Fact) -> dict[str, Any]:
        if isinstance(item, Document):
            fact.content = number(dedup.digest([item.text]))
            return {"text": item.text, "input_ids": self.tokenizer.encode_document(item.text)}
        if isinstance(item, Judged):
            return self._judgement(item, fact)
        is_chat = self.role == "sft"
        build, content = (chat_row, dedup.conversation_texts) if is_chat else (prompt_row, dedup.prompt_texts)
        row = build(item, self.origin, self.tokenizer, self.config)
        row.language, row.safety = fact.language, fact.safety
        fact.cut_key = self._cut(item.messages, row.messages, fact)
        fact.id, fact.content = row.id, number(dedup.digest(content(row.messages)))
        return vars(row)

    def _judgement(self, item: Judged, fact: Fact) -> dict[str, Any]:
        """Its comparison as if no other row judged the same prompt; where one does, write.py compares them together."""
        (prompt,) = group([(fact.place, item)])
        limit = pair_limit(self.config, self.role)
        found = compared(prompt, fact.part, limit, self.origin, self.tokenizer, self.config)
        fact.cut_key = self._cut(item.messages, found.messages, fact)
        fact.group = number(dedup.digest(dedup.conversation_texts(item.messages)))
        texts = [*dedup.conversation_texts(item.messages), *item.responses, to_json(item.scores)]
        fact.content, fact.pair_rule = number(dedup.digest(texts)), found.rule
        fact.id = found.row.id if found.row else content_id([item.messages, item.responses])
        for row in filter(None, (found.row, found.true_row)):
            row.language, row.safety = fact.language, fact.safety
        rows = {"row": found.row and vars(found.row), "true_row": found.true_row and vars(found.true_row)}
        return {"judged": to_json(vars(item)), "pair_notes": to_json(found.notes), **rows}

    def _part(self, key: bytes, *, is_document: bool = False) -> str:
        """Held-out prompts of other sources are for reduce.py to know."""
        return split.part_for(
            key, self.role, self.config.splits, heldout_only=self.source.heldout_only,
            is_document=is_document,
        )  # fmt: skip

    def _cut(self, whole: list[Message], kept: list[Message], fact: Fact) -> int:
        """The key of a cut conversation, which is another prompt, and that one may be held out or PPO's."""
        if len(kept) == len(whole):
            return 0
        fact.notes["conversations_cut"] += 1
        given = self.source.heldout_only
        key, part = split.part_of_cut(kept, self.role, self.config.splits, heldout_only=given)
        require(part == fact.part, "cut_into_other_part")
        return number(key)

    def _sign(self, built: list[tuple[Fact, Item]]) -> None:
        """Signatures by which near-duplicates are found, of what a row teaches and of what it asks."""
        if self.config.filters.near_duplicates is None or not built:
            return
        asked = signatures([asked_text(item) for _, item in built])
        taught = asked if self.role == "ppo" else signatures([taught_text(item) for _, item in built])
        for (fact, _), content, prompt in zip(built, taught, asked, strict=True):
            fact.content_signature, fact.prompt_signature = content.tobytes(), prompt.tobytes()

    def _tag(self, built: list[tuple[Fact, Item]]) -> None:
        """Every query of a conversation is tagged apart (InsTag)."""
        tagger = self.mapper.labellers.tagger
        if tagger is None or self.role not in self.config.tags.roles or not built:
            return
        queries = [[turn["content"] for turn in item.messages if turn["role"] == "user"] for _, item in built]
        found = iter(tagger.tag([query for asked in queries for query in asked]))
        for (fact, _), asked in zip(built, queries, strict=True):
            tags = [next(found) for _ in asked]
            fact.tags = list(dict.fromkeys(tag for some in tags for tag in some or ()))
            if any(some is None for some in tags):
                fact.notes["untagged"] += 1


def category(item: Item) -> str:
    """What the row's own meta calls its category, for the caps of sampling."""
    meta = {} if isinstance(item, Document) else item.meta
    found = meta.get("category")
    return found if isinstance(found, str) else ""


def exchanges(item: Item) -> list[Exchange]:
    """A conversation's replies, each with what stands before it; of all else the prompt. The worse of two judged
    responses may well do harm: that is what it teaches."""
    if isinstance(item, Document):
        return []
    turns = item.messages
    replies = [at for at, turn in enumerate(turns) if turn["role"] == "assistant"]
    if isinstance(item, Judged) or not replies or turns[-1]["role"] != "assistant":
        return [Exchange(turns)]
    return [Exchange(turns[:at], turns[at]["content"]) for at in replies]


def encoded_texts(item: Item) -> Iterator[str]:
    """All texts that become token ids."""
    if not isinstance(item, Document) and (not item.messages or item.messages[0]["role"] != "system"):
        yield DEFAULT_SYSTEM
    yield from texts(item)


def asked_text(item: Item) -> str:
    if isinstance(item, Document):
        return item.text
    return "\n".join(message["content"] for message in item.messages if message["role"] == "user")


def taught_text(item: Item) -> str:
    """A conversation as a whole. Of judged responses with what they answer: dialogues that share their beginning, and
    not their end, ask for different comparisons."""
    if isinstance(item, Document):
        return item.text
    if isinstance(item, Judged):
        return "\n".join([item.messages[-1]["content"], *item.responses])
    return "\n".join(message["content"] for message in item.messages)
