"""What takes more than one row to decide: shared templates, other sources' held-out prompts, duplicates, balance.

Works on facts alone, some 700 bytes a row, in the order of the sources, so that how the rows were sharded makes no
difference. What each row will be called and whether it stays is in `Decisions`; write.py carries them out.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.core.config import DataPrepConfig, Sampling
from components.core.records import DATA_ROLES
from components.data_prep import sampling, split, tags
from components.data_prep.card import source_names
from components.data_prep.mapping import COMPARISONS, FACTS
from components.data_prep.mined_templates import FRAMES, shared_frames
from components.data_prep.mixture import at_most, in_shares
from components.data_prep.near_duplicates import PERMUTATIONS, near_duplicates
from components.data_prep.safety import kept_safety_rows
from components.data_prep.shards import Shards

STAYS = ""


@dataclass
class RoleFacts:
    """All facts of a role as columns, and what is decided of each row: `rule` refuses it, or is STAYS.

    Of rows that judge the same prompt the first one speaks for all: `first` is its place, for every row, and `size`
    counts them.
    """

    role: str
    source: NDArray[np.int16]
    heldout_only: NDArray[np.bool_]
    train: NDArray[np.bool_]
    columns: dict[str, NDArray[Any]]
    rule: NDArray[np.object_]
    tags: pa.ChunkedArray
    safety: pa.ChunkedArray
    first: NDArray[np.int64]
    size: NDArray[np.int64]
    labels: tags.Normalisation | None = None
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def stays(self) -> NDArray[np.bool_]:
        """Rows that speak for a prompt, or for themselves, and that no rule has refused."""
        return (self.rule == STAYS) & (self.first == np.arange(len(self.rule)))

    @property
    def training(self) -> NDArray[np.int64]:
        """The places of the rows that stay to be trained on."""
        return np.flatnonzero(self.stays & self.train)

    def refuse(self, rows: NDArray[Any], rule: str) -> None:
        """`rows` is a mask or the places of rows that stay."""
        self.rule[rows] = rule

    def normal_tags(self, rows: NDArray[np.int64]) -> Iterator[list[str]]:
        for raw in self.tags.take(pa.array(rows)).to_pylist():
            yield self.labels.tags(raw) if self.labels else []


class Decisions(NamedTuple):
    """What is decided of every role's rows, and the keys of prompts that are for evaluation alone."""

    roles: dict[str, RoleFacts]
    heldout_keys: NDArray[np.uint64]


def decide(shards: Shards, config: DataPrepConfig) -> Decisions:
    """Of every role, in the order of the steps that a row must pass."""
    roles = {role: _load(role, shards, config) for role in DATA_ROLES if getattr(config.sources, role)}
    for facts in roles.values():
        _refuse_mined(facts, config)
    held = [facts.columns["key"][facts.heldout_only & (facts.columns["key"] != 0)] for facts in roles.values()]
    heldout = np.unique(np.concatenate(held))
    _refuse_heldout_prompts(roles, heldout)
    for facts in roles.values():
        _refuse_duplicates(facts)
    if config.filters.near_duplicates is not None:
        _refuse_near_duplicates(roles, config.filters.near_duplicates)
    for facts in roles.values():
        _cap_safety(facts, config.safety.max_share)
        if facts.role in config.tags.roles and config.tags.tagger != "none":
            _normalise_tags(facts, config)
        chosen = config.sampling.get(facts.role)  # type: ignore[call-overload]
        if chosen is not None:
            _sample(facts, chosen)
        _mix(facts, config)
        members = facts.rule == STAYS
        facts.rule[members] = facts.rule[facts.first[members]]  # what refuses a prompt refuses all its judgements
    return Decisions(roles, heldout)


_NUMBERS = ("key", "cut_key", "group", "content", "prompt")


def _load(role: str, shards: Shards, config: DataPrepConfig) -> RoleFacts:
    sources = getattr(config.sources, role)
    units = shards.units.get(role, [])
    batches = list(shards.facts(role))
    source = np.repeat(np.array([unit.source for unit in units], np.int16), [batch.num_rows for batch in batches])

    def column(name: str) -> pa.ChunkedArray:
        return pa.chunked_array([batch.column(name) for batch in batches], type=FACTS.field(name).type)

    rule = np.array(column("rule").to_pylist(), object)
    if role in COMPARISONS:
        first, size = _groups(source, column("group").to_numpy(), rule == STAYS)
        alone = np.array(column("pair_rule").to_pylist(), object)
        rule = np.where((rule == STAYS) & (size == 1), alone, rule)
    else:
        first, size = np.arange(len(rule)), np.ones(len(rule), np.int64)
    columns: dict[str, NDArray[Any]] = {name: column(name).to_numpy() for name in _NUMBERS}
    columns["frames"] = _fixed(batches, "frames", np.uint64, len(FRAMES))
    if config.filters.near_duplicates is not None:
        for name in ("content_signature", "prompt_signature"):
            columns[name] = _fixed(batches, name, np.uint16, PERMUTATIONS)
    columns["tool_use"] = np.array(column("tool_use").to_pylist(), bool)
    columns["about_safety"] = np.array([bool(found) for found in column("safety").to_pylist()], bool)
    for name in ("id", "category", "language"):
        columns[name] = np.array(column(name).to_pylist(), object)
    return RoleFacts(
        role, source, np.array([given.heldout_only for given in sources], bool)[source],
        np.array(column("part").to_pylist(), object) == split.TRAIN, columns, rule, column("tags"),
        column("safety"), first, size,
    )  # fmt: skip


def _fixed(batches: list[pa.RecordBatch], name: str, dtype: type, width: int) -> NDArray[Any]:
    """(rows, width) of a column whose values all have the same size; where there are none they are whatever."""
    pieces: list[NDArray[Any]] = []
    for batch in batches:
        array = batch.column(name)
        values = array.values if pa.types.is_fixed_size_list(array.type) else array
        buffer = values.buffers()[1]
        pieces.append(np.frombuffer(buffer, dtype, count=batch.num_rows * width).reshape(-1, width))
    return np.concatenate(pieces) if pieces else np.empty((0, width), dtype)


def _groups(
    source: NDArray[np.int16], group: NDArray[np.uint64], alive: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(place of the first of all rows that judge a prompt, how many do), for every row."""
    first, size = np.arange(len(group)), np.ones(len(group), np.int64)
    places = np.flatnonzero(alive)
    if len(places):
        both = np.empty(len(places), [("source", np.int16), ("group", np.uint64)])
        both["source"], both["group"] = source[places], group[places]
        _, index, inverse, counts = np.unique(both, return_index=True, return_inverse=True, return_counts=True)
        first[places], size[places] = places[index[inverse]], counts[inverse]
    return first, size


def _refuse_mined(facts: RoleFacts, config: DataPrepConfig) -> None:
    limit = config.filters.mined_templates
    if limit is None:
        return
    for source in np.unique(facts.source):
        rows = np.flatnonzero((facts.source == source) & (facts.columns["prompt"] != 0))
        found = shared_frames(facts.columns["prompt"][rows], facts.columns["frames"][rows], limit)
        for kind, name in enumerate(FRAMES):
            hit = rows[found == kind]
            facts.refuse(hit[facts.rule[hit] == STAYS], f"template_mined_{name}")


def _refuse_heldout_prompts(roles: dict[str, RoleFacts], held: NDArray[np.uint64]) -> None:
    """Rows with a prompt that some source has for evaluation alone, in whatever role."""
    for facts in roles.values():
        open_to_all = facts.stays & facts.train & ~facts.heldout_only
        facts.refuse(open_to_all & np.isin(facts.columns["key"], held), "heldout_prompt")
        facts.refuse(facts.stays & open_to_all & np.isin(facts.columns["cut_key"], held), "cut_into_other_part")


def _refuse_duplicates(facts: RoleFacts) -> None:
    """Training rows are compared over all sources of the role, held-out ones within their own set; the first stays."""
    rows = np.flatnonzero(facts.stays)
    content = facts.columns["content"]
    if facts.role in COMPARISONS:  # of a prompt with several judgements, all of them
        content = content.copy()
        members = np.flatnonzero((facts.rule == STAYS) & (facts.first != np.arange(len(facts.rule))))
        np.add.at(content, facts.first[members], content[members])
    scoped = np.empty(len(rows), [("scope", np.int32), ("content", np.uint64)])
    scoped["scope"] = np.where(facts.train[rows], -1, facts.source[rows])
    scoped["content"] = content[rows]
    _, index = np.unique(scoped, return_index=True)
    again = np.ones(len(rows), bool)
    again[index] = False
    facts.refuse(rows[again], "duplicate")


def _refuse_near_duplicates(roles: dict[str, RoleFacts], threshold: float) -> None:
    """Training rows whose prompt is nearly a held-out one of any role, then those that nearly repeat an earlier one."""
    places = {role: np.flatnonzero(facts.stays) for role, facts in roles.items()}
    held = {role: rows[~roles[role].train[rows]] for role, rows in places.items()}
    references = np.concatenate([roles[role].columns["prompt_signature"][rows] for role, rows in held.items()])
    for role, facts in roles.items():
        rows = places[role][facts.train[places[role]]]
        if len(references):
            asked = np.concatenate([references, facts.columns["prompt_signature"][rows]])
            of = near_duplicates(asked, references=len(references), threshold=threshold)[len(references) :]
            facts.refuse(rows[(of >= 0) & (of < len(references))], "near_heldout_prompt")
            rows = rows[facts.rule[rows] == STAYS]
        of = near_duplicates(facts.columns["content_signature"][rows], threshold=threshold)
        facts.refuse(rows[of >= 0], "near_duplicate")
        facts.report["near_duplicates"] = {
            "threshold": threshold, "rows_compared": len(rows), "of_earlier_rows": int((of >= 0).sum()),
            "rows_of_largest_group": int(np.unique(of[of >= 0], return_counts=True)[1].max(initial=0)) + 1,
            "of_heldout_prompts": len(places[role]) - len(held[role]) - len(rows),
        }  # fmt: skip


def _cap_safety(facts: RoleFacts, max_share: float) -> None:
    rows = facts.training
    about = facts.columns["about_safety"][rows]
    kept = kept_safety_rows(facts.columns["id"][rows[about]], int((~about).sum()), max_share)
    over = [row for row in rows[about].tolist() if facts.columns["id"][row] not in kept]
    facts.refuse(np.array(over, np.int64), "over_safety_share")


def _normalise_tags(facts: RoleFacts, config: DataPrepConfig) -> None:
    given = config.tags
    settings = tags.Settings(given.min_count, given.max_distance, given.min_support, given.min_confidence)
    rows = facts.training
    raw = facts.tags.take(pa.array(rows)).to_pylist()
    facts.labels = tags.normalise(raw, tags.hashed_ngrams, settings)
    facts.report["tags"] = {"stages": facts.labels.stages, "rules": len(facts.labels.rules)}


def _sample(facts: RoleFacts, config: Sampling) -> None:
    rows = facts.training
    candidates = [
        sampling.Candidate(facts.columns["id"][row], found, facts.columns["category"][row], str(facts.source[row]),
                           facts.columns["language"][row])
        for row, found in zip(rows.tolist(), facts.normal_tags(rows), strict=True)
    ]  # fmt: skip
    caps = sampling.Caps(config.max_per_tag, config.max_per_category, config.max_per_source, config.max_per_language)
    found = sampling.sample(candidates, config.size, caps, fill=config.fill)
    left_out = np.ones(len(rows), bool)
    left_out[found.chosen] = False
    facts.refuse(rows[left_out], "not_sampled")
    facts.report["sampling"] = {
        "passes": len(found.passes), "filled": found.filled, "capped": found.capped,
        "before": vars(found.before), "after": vars(found.after),
    }  # fmt: skip


def _mix(facts: RoleFacts, config: DataPrepConfig) -> None:
    """ReAct's limit, then the sources' shares of what is left."""
    content = facts.columns["content"]
    if facts.role == "sft" and config.react_rows is not None:
        rows = np.flatnonzero(facts.stays & facts.train & facts.columns["tool_use"])
        facts.refuse(rows[~at_most(content[rows], config.react_rows)], "over_react_rows")
    sources = getattr(config.sources, facts.role)
    weights = [source.weight for source in sources]
    if any(weights):
        rows = facts.training
        names = source_names(facts.role, sources)
        facts.refuse(rows[~in_shares(content[rows], facts.source[rows], names, weights)], "over_share")


def safety_report(facts: RoleFacts) -> dict[str, int]:
    """Training rows that stay, by label."""
    rows = facts.training
    labels = facts.safety.take(pa.array(rows)).to_pylist()
    return dict(Counter(label for row in labels for label in row).most_common())


def tag_report(facts: RoleFacts, top: int = 100) -> dict[str, Any]:
    """Complexity, diversity and the most frequent tags of the training rows that stay."""
    rows = facts.training
    counts: Counter[str] = Counter()
    of_rows = []
    for found in facts.normal_tags(rows):
        counts.update(found)
        of_rows.append(found)
    known = set(facts.labels.mapping.values()) if facts.labels else set()
    sampled = facts.report.get("sampling", {})
    sides = {side: sampled[side] for side in ("before", "after") if side in sampled}
    measured = vars(sampling.variety(of_rows, known))
    return {**facts.report.get("tags", {}), "top": counts.most_common(top), **measured, **sides}
