"""The step: raw data through the map, the reduce and the write.

    output/<role>/train.parquet  heldout/<source>.parquet  heldout/<source>-true.parquet  rejected.parquet  card.json

Rows keep the order of their sources: trainers shuffle themselves, and pretraining text may come as a curriculum.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.core.chatml import ChatTokenizer
from components.core.config import DataPrepConfig, Source
from components.core.errors import UserError
from components.core.records import DATA_ROLES, Rejected, read_rows
from components.core.step import Step
from components.core.store_local import explained
from components.core.store_manifest import TEMPORARY
from components.data_prep.adapters import check_source
from components.data_prep.card import SourceCard, check_not_empty, mixture, source_names, stages
from components.data_prep.card_html import from_statistics, render_card
from components.data_prep.labellers import use_threads
from components.data_prep.reduce import Decisions, RoleFacts, decide, safety_report, tag_report
from components.data_prep.rows import to_json
from components.data_prep.shards import Shards, ShardWriter
from components.data_prep.sources import provenance
from components.data_prep.units import units
from components.data_prep.workers import map_units
from components.data_prep.write import RoleFiles, RoleWork

log = logging.getLogger(__name__)

SHARD = "shard_"


def prepare(step: Step) -> None:
    """Inputs are `base_model`, for its tokenizer, and `data_root`; every role that has sources becomes an output.

    With `config.shard` only that shard is mapped, and is the output; with inputs `shard_<n>` nothing is left to map.
    """
    config: DataPrepConfig = step.config
    roles = check_sources(config)
    with scratch(step) as folder:
        if config.shard is not None:
            number, count = map(int, config.shard.split("/"))
            step.finish({"shard": folder}, map_shard(step, config, folder, number - 1, count))
            return
        folders = [step.input(name) for name in step.spec.inputs if name.startswith(SHARD)]
        if not folders:
            map_shard(step, config, folder / "shard", 0, 1)
        shards = Shards(folders or [folder / "shard"], settings_of(step))
        decisions = decide(shards, config)
        tokenizer = ChatTokenizer.load(step.input("base_model"))
        metrics = {
            role: write_role(role, decisions, config, tokenizer, shards, folder / role, data_root_of(step))
            for role in roles
        }
        step.finish({role: folder / role for role in roles}, metrics)


def check_sources(config: DataPrepConfig) -> list[str]:
    """The roles that have sources. Raises UserError for what cannot work, before anything is read."""
    roles = [role for role in DATA_ROLES if getattr(config.sources, role)]
    if not roles:
        raise UserError("no sources", where="data_prep.sources", fix=f"give some for {', '.join(DATA_ROLES)}")
    for role in roles:
        source_names(role, getattr(config.sources, role))
        for source in getattr(config.sources, role):
            check_source(role, source)
    return roles


@contextmanager
def scratch(step: Step) -> Iterator[Path]:
    """Written beside the output and published when all of it is right; a full disk or a bad file leaves nothing."""
    folder = step.work / f"{TEMPORARY}{step.spec.step}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with explained(folder):  # pyarrow's errors name no file
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settings_of(step: Step) -> dict[str, Any]:
    """What shards of one input have in common."""
    config = step.config.model_dump(mode="json", exclude={"resources", "shard"})
    return {"config": config, "seed": step.spec.seed, "data_root": data_root_of(step)}


def data_root_of(step: Step) -> str:
    """Where the raw data lies; "" where paths are whole."""
    return step.spec.inputs.get("data_root", "")


def map_shard(step: Step, config: DataPrepConfig, folder: Path, shard: int, shards: int) -> dict[str, Any]:
    """Map every `shards`-th unit of all sources into `folder`; returns the rows of each role."""
    data_root, model = data_root_of(step), step.input("base_model")
    given = units(config.sources, data_root, step.spec.seed, shard, shards)
    processes = 1 if use_threads(config) else config.resources.threads or len(os.sched_getaffinity(0))
    with ShardWriter(folder, settings_of(step)) as writer:
        for unit in map_units(given, config, model, data_root, step.work, processes):
            writer.add(unit)
        return {role: {"rows": rows} for role, rows in writer.rows.items()}


def write_role(
    role: str,
    decisions: Decisions,
    config: DataPrepConfig,
    tokenizer: ChatTokenizer,
    shards: Shards,
    folder: Path,
    data_root: str,
) -> dict[str, Any]:
    """Write one role's files into `folder`; returns its counts."""
    with RoleFiles(folder, role) as files:
        work = RoleWork(role, decisions, config, tokenizer, files)
        work.run(shards)
    for card in work.cards:
        card.check(role, config.max_rejected_ratio)
        log.info("%s %s: %s", role, card.name, to_json(card.to_dict()))
    check_not_empty(role, work.cards)
    facts = decisions.roles[role]
    counts: dict[str, Any] = {"sources": {card.name: card.to_dict() for card in work.cards}}
    counts["parts"] = {part: found.summary() for part, found in work.statistics.items() if found.rows}
    if facts.labels is not None:
        counts["tags"] = tag_report(facts)
    if "sampling" in facts.report:
        counts["sampling"] = facts.report["sampling"]
    if safety := safety_report(facts):
        counts["safety"] = safety
    write_cards({"role": role, **counts, **sections(role, work.cards, facts, config, data_root)}, folder)
    return counts


def sections(
    role: str, cards: list[SourceCard], facts: RoleFacts, config: DataPrepConfig, data_root: str
) -> dict[str, Any]:
    """What the card says beside the counts."""
    sources: list[Source] = getattr(config.sources, role)
    found: dict[str, Any] = {
        "settings": config.model_dump(mode="json", exclude={"sources", "resources"}),
        "stages": stages(cards),
        "provenance": provenance(sources, data_root),
    }
    if "near_duplicates" in facts.report:
        found["near_duplicates"] = facts.report["near_duplicates"]
    if len(sources) > 1:
        found["mixture"] = mixture(cards, [source.weight for source in sources])
    return found


def write_cards(card: dict[str, Any], folder: Path) -> None:
    """The card for machines, for readers, and for pull requests."""
    text = json.dumps(card, indent=1, sort_keys=True)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    rejected = read_rows(folder / "rejected.parquet", Rejected)
    html, markdown = render_card({**card, **from_statistics(card["parts"])}, rejected)
    (folder / "card.html").write_text(html, encoding="utf-8")
    (folder / "card.md").write_text(markdown, encoding="utf-8")
