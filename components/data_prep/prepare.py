"""The step: every role's sources through read, adapt, check, fit, split, dedup and write, source by source in order.

    output/<role>/train.parquet  heldout/<source>.parquet  heldout/<source>-true.parquet  rejected.parquet  card.json

Rows keep the order of their sources: trainers shuffle themselves, and pretraining text may come as a curriculum.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.chatml import ChatTokenizer
from components.core.config import DataPrepConfig, Source
from components.core.errors import UserError
from components.core.records import DATA_ROLES, ROW_TYPES, Message, Rejected, Row, RowWriter
from components.core.step import Step
from components.core.store_local import explained
from components.core.store_manifest import TEMPORARY
from components.data_prep import dedup, split
from components.data_prep.adapters import Conversation, Document, Item, Judged, check_source
from components.data_prep.card import SourceCard, check_not_empty, source_names
from components.data_prep.checks import Reject, require
from components.data_prep.comparisons import PromptGroup, group, strict_pairs
from components.data_prep.filters import RowFilters
from components.data_prep.readers import RawRow
from components.data_prep.rows import FittedPrompt, Origin, chat_row, fitted_prompt, prompt_row, text_row, to_json
from components.data_prep.sources import heldout_keys, items
from components.data_prep.tokenise import Packer

log = logging.getLogger(__name__)


def prepare(step: Step) -> None:
    """Inputs are `base_model`, for its tokenizer, and `data_root`; every role that has sources becomes an output."""
    config: DataPrepConfig = step.config
    roles = [role for role in DATA_ROLES if getattr(config.sources, role)]
    if not roles:
        raise UserError("no sources", where="data_prep.sources", fix=f"give some for {', '.join(DATA_ROLES)}")
    for role in roles:
        source_names(role, getattr(config.sources, role))
        for source in getattr(config.sources, role):
            check_source(role, source)
    data_root = step.spec.inputs.get("data_root", "")
    tokenizer = ChatTokenizer.load(step.input("base_model"))
    held = heldout_keys(config.sources, data_root, step.spec.seed)
    world = World(config, tokenizer, data_root, step.spec.seed, held, RowFilters(config.filters, data_root))
    # Written beside the output and published when all of it is right; a full disk or a bad file leaves nothing behind.
    scratch = step.work / f"{TEMPORARY}data_prep"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with explained(scratch):  # pyarrow's errors name no file
            metrics = {role: prepare_role(role, world, scratch / role) for role in roles}
        step.finish({role: scratch / role for role in roles}, metrics)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class World:
    """What all roles share."""

    config: DataPrepConfig
    tokenizer: ChatTokenizer
    data_root: str
    seed: int
    heldout_keys: frozenset[bytes]
    filters: RowFilters


def prepare_role(role: str, world: World, folder: Path) -> dict[str, Any]:
    """Write one role's files into `folder`; returns its counts."""
    sources: list[Source] = getattr(world.config.sources, role)
    cards = []
    with RoleFiles(folder, role) as files:
        seen = dedup.Seen()
        for source, name in zip(sources, source_names(role, sources), strict=True):
            work = SourceWork(role, source, name, world, files, seen)
            work.run()
            work.card.check(role, world.config.max_rejected_ratio)
            cards.append(work.card)
            log.info("%s %s: %s", role, name, to_json(work.card.to_dict()))
    check_not_empty(role, cards)
    counts = {"sources": {card.name: card.to_dict() for card in cards}}
    settings = world.config.model_dump(mode="json", exclude={"sources", "resources"})
    card_text = json.dumps({"role": role, "settings": settings, **counts}, indent=1, sort_keys=True)
    (folder / "card.json").write_text(card_text + "\n", encoding="utf-8")
    return counts


class RoleFiles:
    """The Parquet files of one role, open side by side."""

    def __init__(self, folder: Path, role: str) -> None:
        self.folder, self.row_type = folder, ROW_TYPES[role]
        self.train = RowWriter(folder / "train.parquet", self.row_type)
        self.rejected = RowWriter(folder / "rejected.parquet", Rejected)
        self.heldout: dict[str, RowWriter] = {}

    def write(self, part: str, name: str, row: Row) -> None:
        if part == split.TRAIN:
            self.train.write(row)
            return
        if name not in self.heldout:
            self.heldout[name] = RowWriter(self.folder / "heldout" / f"{name}.parquet", self.row_type)
        self.heldout[name].write(row)

    def __enter__(self) -> "RoleFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in (self.train, self.rejected, *self.heldout.values()):
            writer.close()


class SourceWork:
    """One source on its way into one role's files."""

    def __init__(self, role: str, source: Source, name: str, world: World, files: RoleFiles, seen: dedup.Seen) -> None:
        self.role, self.source, self.name, self.world, self.files, self.seen = role, source, name, world, files, seen
        self.card = SourceCard(name, source.adapter, source.path, source.licence)
        self.origin = Origin(name, source.licence)

    def run(self) -> None:
        if self.role == "pretrain":
            self._documents()
        elif self.role in ("pmp", "reward_model"):
            self._comparisons()
        else:
            self._conversations()

    def _items(self) -> Iterator[tuple[RawRow, Any]]:
        """Checked items with their raw rows, every raw row counted."""

        def refused(raw: RawRow, rule: str) -> None:
            self.card.rows += 1
            self._reject(raw.place, rule, raw.row if isinstance(raw.row, str) else to_json(raw.row))

        given = (self.source, self.role, self.world.data_root, self.world.seed)
        mined = None
        if not self.source.heldout_only:
            mined = self.world.filters.mine((item for _, item in items(*given)), self.role)
        for raw, item in items(*given, refused):
            self.card.rows += 1
            try:
                if not self.source.heldout_only:
                    self.world.filters.check(item, self.role, mined)
                cleaned = self.world.filters.clean(item, self.card.notes)
            except Reject as broken:
                self._reject(raw.place, broken.rule, to_json(raw.row))
                continue
            yield raw, cleaned

    def _reject(self, place: str, rule: str, row: str, rows: int = 1) -> None:
        self.card.reject(rule, place, rows)
        self.files.rejected.write(Rejected(role=self.role, source=self.name, place=place, rule=rule, row=row))

    def _conversations(self) -> None:
        for raw, item in self._items():
            try:
                self._conversation(item)
            except Reject as refused:
                self._reject(raw.place, refused.rule, to_json(raw.row))

    def _conversation(self, item: Conversation) -> None:
        part = self._part(item)
        is_chat = self.role == "sft"
        build, content = (chat_row, dedup.conversation_texts) if is_chat else (prompt_row, dedup.prompt_texts)
        row = build(item, self.origin, self.world.tokenizer, self.world.config)
        self._check_cut(part, item.messages, row.messages)
        require(self.seen.is_new(self._scope(part), content(row.messages)), "duplicate")
        self.files.write(part, self.name, row)
        self.card.count(part, len(row.input_ids))

    def _comparisons(self) -> None:
        for prompt in group((raw.place, item) for raw, item in self._items()):
            try:
                self._comparison(prompt)
            except Reject as refused:
                kept = {"messages": prompt.messages, "responses": prompt.responses}
                gaps = {f"{first}-{second}": values for (first, second), values in prompt.votes.items()}
                self._reject(prompt.place, refused.rule, to_json({**kept, "gaps": gaps}), prompt.rows)

    def _comparison(self, prompt: PromptGroup) -> None:
        config, notes = self.world.config, self.card.notes
        part = self._part(Judged(messages=prompt.messages, responses=[], scores=[]))
        fitted = fitted_prompt(prompt, self.world.tokenizer, config)
        self._check_cut(part, prompt.messages, fitted.messages)
        if part == split.HELDOUT and prompt.true_votes:
            self._write_pairs(fitted, part, f"{self.name}-true", strict_pairs(prompt.true_votes).strict, 0)
        pairs = strict_pairs(prompt.votes, config.min_gap, config.max_pairs_per_prompt)
        notes["merged_rows"] += prompt.rows - 1
        notes["repeated_responses"] += prompt.repeated_responses
        notes["responses_too_long"] += fitted.input_ids.count(None)
        for name in ("ties", "small_gaps", "conflicts", "over_limit"):
            notes[f"pairs_{name}"] += getattr(pairs, name)
        require(bool(pairs.strict), pairs.rule)
        self._write_pairs(fitted, part, self.name, pairs.strict, pairs.ties)

    def _write_pairs(self, fitted: FittedPrompt, part: str, name: str, pairs: list[dict[str, Any]], ties: int) -> None:
        built = fitted.row(pairs, ties, self.origin, with_response_meta=part == split.HELDOUT)
        is_main = name == self.name
        if built is None:
            require(not is_main, "too_long" if None in fitted.input_ids else "identical_after_tokenisation")
            return
        row, lost = built
        content = [*dedup.conversation_texts(row.messages), *row.responses, to_json(row.pairs)]
        is_new = self.seen.is_new(self._scope(part, name), content)
        require(is_new or not is_main, "duplicate")
        self.files.write(part, name, row)
        self.card.count(part if is_main else "heldout-true", sum(map(len, row.input_ids)), len(row.pairs))
        self.card.notes["pairs_of_responses_too_long"] += lost if is_main else 0

    def _documents(self) -> None:
        length = self.world.config.document_length
        packers = {part: Packer(self.world.tokenizer, length) for part in (split.TRAIN, split.HELDOUT)}
        for raw, item in self._items():
            try:
                part = self._part(item)
                require(self.seen.is_new(self._scope(part), [item.text]), "duplicate")
            except Reject as refused:
                self._reject(raw.place, refused.rule, to_json(raw.row))
                continue
            self.card.notes[f"documents_{part}"] += 1
            self._write_texts(part, packers[part].add(item.text))
        for part, packer in packers.items():
            self._write_texts(part, packer.rest())

    def _write_texts(self, part: str, sequences: Iterator[list[int]]) -> None:
        for ids in sequences:
            self.files.write(part, self.name, text_row(ids, self.origin, self.world.tokenizer))
            self.card.count(part, len(ids))

    def _part(self, item: Item) -> str:
        is_document = isinstance(item, Document) and not item.messages
        return split.part_for(
            split.key_of(item), self.role, self.world.config.splits, heldout_only=self.source.heldout_only,
            heldout_keys=self.world.heldout_keys, is_document=is_document,
        )  # fmt: skip

    def _check_cut(self, part: str, whole: list[Message], kept: list[Message]) -> None:
        """A cut conversation is another prompt, and that one may be held out or PPO's."""
        if len(kept) == len(whole):
            return
        self.card.notes["conversations_cut"] += 1
        try:
            cut_part = self._part(Conversation(messages=kept))
        except Reject:
            cut_part = ""
        require(cut_part == part, "cut_into_other_part")

    def _scope(self, part: str, name: str = "") -> str:
        """Training rows are compared over all sources of the role, held-out ones within their own set."""
        return part if part == split.TRAIN else f"{part} {name or self.name}"
