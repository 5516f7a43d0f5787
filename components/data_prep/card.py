"""What became of each source's rows: the counts behind card.json, the metrics and the error messages."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from components.core.config import Source
from components.core.errors import UserError
from components.data_prep.checks import EXPECTED_RULES


@dataclass
class PartCount:
    """Rows, tokens (of all responses, for comparisons) and pairs of one part."""

    rows: int = 0
    tokens: int = 0
    pairs: int = 0


@dataclass
class SourceCard:
    """One source in one role: `rules` counts refused raw rows, `notes` what was changed or left out inside rows."""

    name: str
    adapter: str
    path: str
    licence: str
    rows: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    parts: dict[str, PartCount] = field(default_factory=dict)
    first_places: dict[str, str] = field(default_factory=dict)

    def reject(self, rule: str, place: str, rows: int = 1) -> None:
        self.rules[rule] += rows
        self.first_places.setdefault(rule, place)

    def count(self, part: str, tokens: int, pairs: int = 0, rows: int = 1) -> None:
        found = self.parts.setdefault(part, PartCount())
        found.rows += rows
        found.tokens += tokens
        found.pairs += pairs

    def rejected_ratio(self) -> float:
        """Share of rows that a check refused; rows that only belong elsewhere or came twice are no fault."""
        bad = sum(count for rule, count in self.rules.items() if rule not in EXPECTED_RULES)
        return bad / self.rows if self.rows else 0.0

    def check(self, role: str, limit: float) -> None:
        """Raises UserError where more rows were refused than the settings allow."""
        ratio = self.rejected_ratio()
        if ratio > limit:
            bad = {rule: count for rule, count in self.rules.most_common() if rule not in EXPECTED_RULES}
            worst = list(bad.items())[:3]
            reasons = ", ".join(f"{rule} {count} (first at {self.first_places[rule]})" for rule, count in worst)
            raise UserError(
                f"{ratio:.1%} of {self.rows} rows rejected, more than max_rejected_ratio {limit:.1%}: {reasons}",
                where=f"{role} source {self.name}",
                fix="mend the data, the adapter or its columns, or allow more",
            )

    def to_dict(self) -> dict[str, Any]:
        parts = {name: vars(part) for name, part in self.parts.items()}
        return {**vars(self), "parts": parts, "rejected_ratio": self.rejected_ratio()}


_POLICY: dict[str, str | tuple[str, ...]] = {
    "templates": "template_", "benchmarks": "benchmark", "personal data": "personal_data", "safety": "unsafe_response",
    "splits": ("reserved_for_", "heldout_prompt", "cut_into_other_part"),
    "duplicates": ("duplicate", "near_"),
    "pairs": ("tie", "small_gap", "conflicting_scores", "identical_after_tokenisation"),
    "safety share": "over_safety_share", "sampling": "not_sampled", "mixture": ("over_react_rows", "over_share"),
}  # fmt: skip
"""Stages after reading and checking, by the beginnings of their rules."""


def stages(cards: list[SourceCard]) -> list[dict[str, Any]]:
    """Rows that go into each stage and come out, in the order in which a row passes them."""
    rules = sum((card.rules for card in cards), Counter[str]())
    lost = {stage: sum(n for rule, n in rules.items() if rule.startswith(names)) for stage, names in _POLICY.items()}
    lost = {"read and check": rules.total() - sum(lost.values()), **lost}
    rows = sum(card.rows for card in cards)
    found = []
    for stage, number in lost.items():
        found.append({"stage": stage, "in": rows, "out": rows - number})
        rows -= number
    return found


def mixture(cards: list[SourceCard], weights: list[float | None]) -> dict[str, dict[str, Any]]:
    """Each source's training rows, and its share of all."""
    rows = [card.parts["train"].rows if "train" in card.parts else 0 for card in cards]
    return {
        card.name: {"rows": own, "share": own / max(1, sum(rows)), "weight": "–" if weight is None else weight}
        for card, own, weight in zip(cards, rows, weights, strict=True)
    }


def check_not_empty(role: str, cards: list[SourceCard]) -> None:
    """Raises UserError, with the counts of every rule, where a role is left without training rows."""
    if any(card.parts.get("train") for card in cards):
        return
    rules: Counter[str] = Counter()
    for card in cards:
        rules.update(card.rules)
    held = sum(card.parts["heldout"].rows for card in cards if "heldout" in card.parts)
    counts = ", ".join(f"{rule} {count}" for rule, count in rules.most_common()) or "no rule refused any"
    total = sum(card.rows for card in cards)
    raise UserError(
        f"no training rows for {role} are left of {total} raw rows ({counts}; held out: {held})",
        where=f"data_prep.sources.{role}",
        fix="give more data, or change splits and lengths",
    )


def source_names(role: str, sources: list[Source]) -> list[str]:
    """A file name for each source. Raises UserError where two are the same."""
    where = f"data_prep.sources.{role}"
    names = [_name_of(source) for source in sources]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{count} sources are called {name!r}", where=where, fix="set their `name`")
    for name in names:
        if f"{name}-true" in names:
            raise UserError(f"{name}-true is where {name}'s true scores go", where=where, fix="rename a source")
    return names


def _name_of(source: Source) -> str:
    """The given name, or the last part of the path that has no wildcard, without its endings."""
    parts = [part for part in PurePosixPath(source.path).parts if not re.search(r"[*?\[/]", part)]
    stem = re.sub(r"\.(json|jsonl|ndjson|csv|parquet|txt)?(\.gz)?$", "", parts[-1]) if parts else ""
    return re.sub(r"[^\w.-]+", "_", source.name or stem or source.adapter).lstrip(".") or source.adapter
