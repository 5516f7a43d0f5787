"""Decisions carried out: each role's files, written in the order of the sources from what the map has stored."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.core.chatml import ChatTokenizer
from components.core.config import DataPrepConfig, Source
from components.core.records import ROW_TYPES, Comparison, Message, Rejected, RowWriter
from components.data_prep import split
from components.data_prep.adapters import Judged
from components.data_prep.card import SourceCard, source_names
from components.data_prep.comparisons import PromptGroup, group, pair_limit
from components.data_prep.mapping import COMPARISONS
from components.data_prep.reduce import STAYS, Decisions
from components.data_prep.rows import Origin, compared, text_row, to_json
from components.data_prep.shards import Shards, StoredUnit
from components.data_prep.split import number
from components.data_prep.statistics import PartStatistics
from components.data_prep.tokenise import Packer


class RoleFiles:
    """The Parquet files of one role, open side by side."""

    def __init__(self, folder: Path, role: str) -> None:
        self.folder, self.row_type = folder, ROW_TYPES[role]
        self.rejected = RowWriter(folder / "rejected.parquet", Rejected)
        self._parts = {split.TRAIN: RowWriter(folder / "train.parquet", self.row_type)}

    def part(self, part: str, name: str) -> RowWriter:
        """The file of a source's rows in a part."""
        key = part if part == split.TRAIN else name
        if key not in self._parts:
            self._parts[key] = RowWriter(self.folder / "heldout" / f"{name}.parquet", self.row_type)
        return self._parts[key]

    def __enter__(self) -> "RoleFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in (self.rejected, *self._parts.values()):
            writer.close()


class RoleWork:
    """One role on its way into its files. `cards` are of its sources, in their order."""

    def __init__(
        self, role: str, decisions: Decisions, config: DataPrepConfig, tokenizer: ChatTokenizer, files: RoleFiles
    ) -> None:
        self.role, self.config, self.tokenizer, self.files = role, config, tokenizer, files
        self.facts, self.heldout_keys = decisions.roles[role], decisions.heldout_keys
        self.names = source_names(role, getattr(config.sources, role))
        self.sources: list[Source] = getattr(config.sources, self.role)
        self.cards = [
            SourceCard(name, source.adapter, source.path, source.licence)
            for name, source in zip(self.names, self.sources, strict=True)
        ]
        self.statistics = {part: PartStatistics() for part in (split.TRAIN, split.HELDOUT)}

    def run(self, shards: Shards) -> None:
        carry_out = _carries_out(self.role)(self)
        start, source = 0, 0
        for unit in shards.units.get(self.role, []):
            if unit.source != source:
                carry_out.end_of_source(source)
                source = unit.source
            facts = shards.read(unit, "facts")
            places = np.arange(start, start + facts.num_rows)
            self._unit(unit, facts, places, carry_out, shards)
            start += facts.num_rows
        carry_out.end_of_source(source)

    def _unit(
        self, unit: StoredUnit, facts: pa.RecordBatch, places: NDArray[np.int64], carry_out: "_Rows", shards: Shards
    ) -> None:
        card = self.cards[unit.source]
        card.rows += facts.num_rows
        for notes in facts.column("notes").to_pylist():
            if notes:
                card.notes.update(json.loads(notes))
        rows = shards.read(unit, "rows")
        at = dict(zip(rows.column("fact").to_pylist(), range(rows.num_rows), strict=True))
        refused = np.flatnonzero(self.facts.rule[places] != STAYS)
        if len(refused):
            chosen = facts.take(pa.array(refused))
            raws, where = chosen.column("raw").to_pylist(), chosen.column("place").to_pylist()
            for fact, raw, place in zip(refused.tolist(), raws, where, strict=True):
                text = raw if fact not in at else carry_out.as_json(rows, at[fact])
                self.reject(unit.source, self.facts.rule[places[fact]], place, text)
        rules = self.facts.rule[places[rows.column("fact").to_numpy()]]
        # Of a judgement without a strict pair, what became of its pairs is counted, and true scores may have one.
        pairless = np.array(facts.column("pair_rule").take(rows.column("fact")).to_pylist(), object)
        kept = np.flatnonzero((rules == STAYS) | (rules == pairless))
        carry_out.add(unit.source, rows.take(pa.array(kept)), places, facts)

    def reject(self, source: int, rule: str, place: str, row: str, rows: int = 1) -> None:
        self.cards[source].reject(rule, place, rows)
        name = self.names[source]
        self.files.rejected.write(Rejected(role=self.role, source=name, place=place, rule=rule, row=row))

    def labelled(self, batch: pa.RecordBatch, facts: NDArray[np.int64]) -> pa.RecordBatch:
        """The rows with their normal tags."""
        if self.facts.labels is None:
            return batch
        schema = batch.schema
        tags = pa.array(list(self.facts.normal_tags(facts)), schema.field("tags").type)
        columns = [tags if name == "tags" else batch.column(name) for name in schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def by_part(self, facts: NDArray[np.int64]) -> Iterator[tuple[str, pa.Array]]:
        """(part, which of the rows belong to it)."""
        train = self.facts.train[facts]
        for part, mask in ((split.TRAIN, train), (split.HELDOUT, ~train)):
            if mask.any():
                yield part, pa.array(mask)


class _Rows:
    """Conversations and prompts: they are what they will be."""

    def __init__(self, work: RoleWork) -> None:
        self.work = work

    def as_json(self, rows: pa.RecordBatch, at: int) -> str:
        return to_json({"messages": rows.column("messages")[at].as_py()})

    def add(self, source: int, rows: pa.RecordBatch, places: NDArray[np.int64], facts: pa.RecordBatch) -> None:
        work = self.work
        numbers = places[rows.column("fact").to_numpy()]
        batch = rows.select(ROW_TYPES[work.role].SCHEMA.names)
        for part, mask in work.by_part(numbers):
            chosen = work.labelled(batch.filter(mask), numbers[mask.to_numpy(zero_copy_only=False)])
            work.files.part(part, work.names[source]).write_batch(chosen)
            work.statistics[part].add(chosen, work.tokenizer)
            tokens = pc.sum(pc.list_value_length(chosen.column("input_ids"))).as_py()
            work.cards[source].count(part, tokens, rows=chosen.num_rows)

    def end_of_source(self, source: int) -> None:
        pass


class _Documents(_Rows):
    """Documents are packed into sequences, those of each source apart."""

    def __init__(self, work: RoleWork) -> None:
        super().__init__(work)
        self._new_packers()

    def _new_packers(self) -> None:
        work = self.work
        parts = (split.TRAIN, split.HELDOUT)
        self._packers = {part: Packer(work.config.document_length) for part in parts}

    def as_json(self, rows: pa.RecordBatch, at: int) -> str:
        return to_json({"text": rows.column("text")[at].as_py()})

    def add(self, source: int, rows: pa.RecordBatch, places: NDArray[np.int64], facts: pa.RecordBatch) -> None:
        train = self.work.facts.train[places[rows.column("fact").to_numpy()]].tolist()
        for ids, is_train in zip(rows.column("input_ids").to_pylist(), train, strict=True):
            part = split.TRAIN if is_train else split.HELDOUT
            self.work.cards[source].notes[f"documents_{part}"] += 1
            self._write(source, part, self._packers[part].add(ids))

    def end_of_source(self, source: int) -> None:
        for part, packer in self._packers.items():
            self._write(source, part, packer.rest())
        self._new_packers()

    def _write(self, source: int, part: str, sequences: Iterator[list[int]]) -> None:
        work = self.work
        origin = Origin(work.names[source], work.sources[source].licence)
        for ids in sequences:
            work.files.part(part, origin.source).write(text_row(ids, origin, work.tokenizer))
            work.cards[source].count(part, len(ids))


class _Judgements(_Rows):
    """Judgements of the same prompt become one comparison, written where the last of them stands."""

    def __init__(self, work: RoleWork) -> None:
        super().__init__(work)
        self._open: dict[int, PromptGroup] = {}
        self._to_come: Counter[int] = Counter()

    def as_json(self, rows: pa.RecordBatch, at: int) -> str:
        judged = json.loads(rows.column("judged")[at].as_py())
        return to_json({name: judged[name] for name in ("messages", "responses", "scores")})

    def add(self, source: int, rows: pa.RecordBatch, places: NDArray[np.int64], facts: pa.RecordBatch) -> None:
        numbers = places[rows.column("fact").to_numpy()]
        first, size = self.work.facts.first[numbers], self.work.facts.size[numbers]
        # Single judgements go as they are; a prompt with several interrupts them, in the order of the rows.
        single = (size == 1).tolist()
        start = 0
        for row in [*[row for row, alone in enumerate(single) if not alone], len(single)]:
            self._write_singles(source, rows.slice(start, row - start), numbers[start:row])
            if row < len(single):
                where = facts.column("place")[rows.column("fact")[row].as_py()].as_py()
                self._gather(source, int(first[row]), rows.column("judged")[row].as_py(), where)
            start = row + 1

    def _write_singles(self, source: int, rows: pa.RecordBatch, numbers: NDArray[np.int64]) -> None:
        if not rows.num_rows:
            return
        work, card = self.work, self.work.cards[source]
        for notes in rows.column("pair_notes").to_pylist():
            card.notes.update(json.loads(notes))
        for name, column in ((work.names[source], "row"), (f"{work.names[source]}-true", "true_row")):
            valid = rows.column(column).is_valid()
            batch = pa.RecordBatch.from_struct_array(rows.column(column).filter(valid))
            kept = numbers[valid.to_numpy(zero_copy_only=False)]
            for part, mask in work.by_part(kept):
                chosen = work.labelled(batch.filter(mask), kept[mask.to_numpy(zero_copy_only=False)])
                self._write(source, part, name, chosen)

    def _write(self, source: int, part: str, name: str, batch: pa.RecordBatch) -> None:
        self.work.files.part(part, name).write_batch(batch)
        is_main = name == self.work.names[source]
        lengths = pc.list_value_length(pc.list_flatten(batch.column("input_ids")))
        pairs = pc.sum(pc.list_value_length(batch.column("pairs"))).as_py()
        if is_main:
            self.work.statistics[part].add(batch, self.work.tokenizer)
        part = part if is_main else "heldout-true"
        self.work.cards[source].count(part, pc.sum(lengths).as_py(), pairs, rows=batch.num_rows)

    def _gather(self, source: int, first: int, judged: str, place: str) -> None:
        facts = self.work.facts
        item = Judged(**json.loads(judged))
        if first not in self._open:
            (self._open[first],) = group([(place, item)])
            # A row that a rule refused later than the others were counted is none of them.
            self._to_come[first] = int(facts.size[first])
        else:
            self._open[first].add(item)
        self._to_come[first] -= 1
        if not self._to_come[first]:
            self._close(source, first)

    def _close(self, source: int, first: int) -> None:
        work, prompt = self.work, self._open.pop(first)
        part = split.TRAIN if work.facts.train[first] else split.HELDOUT
        origin = Origin(work.names[source], work.sources[source].licence)
        found = compared(prompt, part, pair_limit(work.config, work.role), origin, work.tokenizer, work.config)
        cut = self._is_cut_into_other_part(source, part, prompt, found.messages)
        rule = "cut_into_other_part" if cut else found.rule
        if rule:
            kept = {"messages": prompt.messages, "responses": prompt.responses}
            gaps = {f"{one}-{other}": values for (one, other), values in prompt.votes.items()}
            work.reject(source, rule, prompt.place, to_json({**kept, "gaps": gaps}), prompt.rows)
        if cut:
            return
        work.cards[source].notes.update(found.notes)
        for name, row in ((origin.source, found.row), (f"{origin.source}-true", found.true_row)):
            if row is not None:
                row.language = work.facts.columns["language"][first]
                row.safety = work.facts.safety[first].as_py()
                batch = pa.RecordBatch.from_pylist([vars(row)], schema=Comparison.SCHEMA)
                self._write(source, part, name, work.labelled(batch, np.array([first])))

    def _is_cut_into_other_part(self, source: int, part: str, prompt: PromptGroup, kept: list[Message]) -> bool:
        """As in mapping.py, of what all its judgements leave of a prompt."""
        if len(kept) == len(prompt.messages):
            return False
        work = self.work
        work.cards[source].notes["conversations_cut"] += 1
        given = work.sources[source].heldout_only
        key, found = split.part_of_cut(kept, work.role, work.config.splits, heldout_only=given)
        return found != part or (part == split.TRAIN and number(key) in work.heldout_keys)


def _carries_out(role: str) -> type[_Rows]:
    if role in COMPARISONS:
        return _Judgements
    return _Documents if role == "pretrain" else _Rows
