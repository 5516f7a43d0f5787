"""Comparison files that no data_prep step has read: somebody else's, in any format that data_prep knows."""

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from components.core import store
from components.core.config import Source
from components.core.errors import UserError
from components.core.records import Comparison
from components.data_prep.adapters import Judged, adapt, check_source
from components.data_prep.checks import Reject
from components.data_prep.comparisons import PromptGroup, group, strict_pairs
from components.data_prep.readers import find, read
from components.evaluate.sets import ComparisonSet, Missing

_ENDINGS = (".gz", ".json", ".jsonl", ".csv", ".parquet")


def read_raw_comparisons(uri: str, source: Source) -> tuple[list[ComparisonSet], list[Missing]]:
    """One set a file, two where it holds true scores. Raises UserError, with counts by rule, where there is no pair."""
    check_source("reward_model", source)
    local = store.local_path(uri)
    files = find(str(local) if local is not None else uri)
    sets: list[ComparisonSet] = []
    missing: list[Missing] = []
    refused: Counter[str] = Counter()
    for file in files:
        name = _stem(file)
        if source.name:
            name = source.name if len(files) == 1 else f"{source.name}-{name}"
        rules: Counter[str] = Counter()
        groups = list(group(_judged(file, source, rules)))
        for ending, votes in (("", "votes"), ("-true", "true_votes")):
            rows = [
                row
                for index, one in enumerate(groups)
                if (row := _row(one, votes, f"{name}-{index}", source, rules, ending == "")).pairs
            ]
            if rows:
                sets.append(ComparisonSet(f"{name}{ending}", "comparisons", rows))
        if rules:
            missing.append(Missing(f"some rows of {name}", _counts(rules)))
        refused += rules
    if not sets:
        raise UserError(
            f"no usable pair ({_counts(refused) or 'no rows'})",
            where=uri,
            fix="check evaluate.comparison: its adapter and columns",
        )
    return sets, missing


def _judged(file: str, source: Source, rules: Counter[str]) -> Iterator[tuple[str, Judged]]:
    """Rows that can be read as a judged prompt; the others are counted by rule."""
    for number, raw in enumerate(read(file)):
        if source.max_rows is not None and number >= source.max_rows:
            return
        if raw.rule:
            rules[raw.rule] += 1
            continue
        try:
            item = adapt(source, "reward_model", raw.row)
        except Reject as reason:
            rules[str(reason)] += 1
            continue
        if isinstance(item, Judged):
            yield raw.place, item


def _row(found: PromptGroup, votes: str, name: str, source: Source, rules: Counter[str], count: bool) -> Comparison:
    """A prompt's strict pairs. Ties and contradictions are counted once, by the votes that every row has."""
    pairs = strict_pairs(getattr(found, votes))
    if count:
        rules += Counter({"tie": pairs.ties, "conflicting_scores": pairs.conflicts})
    origin: dict[str, Any] = {"id": name, "source": source.name or name, "licence": source.licence}
    return Comparison(**origin, messages=found.messages, responses=found.responses, pairs=pairs.strict, ties=pairs.ties)


def _counts(rules: Counter[str]) -> str:
    return ", ".join(f"{rule}: {count}" for rule, count in rules.most_common() if count)


def _stem(uri: str) -> str:
    name = PurePosixPath(uri).name
    while name.endswith(_ENDINGS):
        name = name[: name.rindex(".")]
    return name or "comparisons"
