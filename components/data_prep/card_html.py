"""The data card of a role as a page and as Markdown, for somebody who decides whether to train on this data.

The page is one file that loads nothing. Texts are escaped; what looks harmful opens with a click and is not in the
Markdown at all. Personal data is masked, for rejected rows have not been cleaned.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.core.records import Rejected
from components.data_prep import personal_data
from components.data_prep.lexical_safety import looks_harmful
from components.data_prep.safety import UNSAFE_RESPONSE

Card = Mapping[str, Any]
_SAMPLE_CHARACTERS = 700
_LARGEST_TAG, _SMALLEST_TAG = 2.2, 0.85  # in the page's letters


@dataclass(frozen=True)
class Sample:
    """A rejected row as it is shown."""

    source: str
    place: str
    text: str
    harmful: bool


@dataclass(frozen=True)
class Rule:
    name: str
    rows: int
    share: float
    first: str
    """Where it first applied; of several sources, in the first one."""
    samples: list[Sample]


def render_card(card: Card, rejected: Iterable[Rejected], samples: int = 3) -> tuple[str, str]:
    """(HTML, Markdown). `card` is card.json's content: role, sources, settings, and of these what there is:

    stages       [{stage, in, out}], in their order
    languages    {part: {code: rows}}
    safety       {label: rows}
    lengths      {name: [[lower edge, rows], ...]}
    tags         {stages: {stage: tags}, top: [[tag, rows], ...], before: {rows, mean_tags, coverage}, after: {...}}
    length_bias, near_duplicates    figures, nested as they like
    mixture      {source: {rows, share, weight}}
    provenance   {file: sha256}

    Of `rejected` the first rows of each rule are shown; it may be a stream of any length.
    """
    view = _view(card, _samples(rejected, samples))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"thousands": thousands, "percent": percent, "figure": figure}
    html = environment.get_template("card.html.jinja").render(view)
    markdown = environment.overlay(autoescape=False)
    markdown.filters |= {"cell": cell, "fenced": fenced}
    return html, markdown.get_template("card.md.jinja").render(view)


def from_statistics(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The card's languages, lengths and length_bias out of statistics.PartStatistics.summary() of each part."""
    found: dict[str, dict[str, Any]] = {"languages": {}, "lengths": {}, "length_bias": {}}
    for part, figures in parts.items():
        classes = zip(figures["lengths"]["edges"], figures["lengths"]["histogram"], strict=True)
        found["lengths"][f"{part}, tokens"] = [list(one) for one in classes]
        for name in ("languages", "length_bias"):
            if name in figures:
                found[name][part] = figures[name]
    return {name: values for name, values in found.items() if values}


def _view(card: Card, samples: dict[str, list[Sample]]) -> dict[str, Any]:
    """What both templates show; a section that is absent is empty."""
    sources: Mapping[str, Any] = card["sources"]
    rows = sum(source["rows"] for source in sources.values())
    tags = card.get("tags", {})
    top = [(tag, count) for tag, count in tags.get("top", []) if not looks_harmful(tag)]
    return {
        "role": card["role"],
        "headline": _headline(sources, rows),
        "sources": sources,
        "parts": list(dict.fromkeys(part for source in sources.values() for part in source["parts"])),
        "rules": _rules(sources, rows, samples),
        "notes": sum((Counter(source["notes"]) for source in sources.values()), Counter()).most_common(),
        "licences": Counter({source["licence"]: 0 for source in sources.values()}) + _by_licence(sources),
        "stages": card.get("stages", []),
        "languages": {
            part: [(code or "not sure", count) for code, count in _ranked(codes)]
            for part, codes in card.get("languages", {}).items()
        },
        "safety": _ranked(card.get("safety", {})),
        "lengths": {name: _trimmed(classes) for name, classes in card.get("lengths", {}).items()},
        "tags": tags,
        "cloud": _cloud(top),
        "top_tags": top,
        "hidden_tags": len(tags.get("top", [])) - len(top),
        "figures": {
            title: flat(card[name])
            for name, title in (("length_bias", "Length bias"), ("near_duplicates", "Near-duplicates"))
            if card.get(name)
        },
        "mixture": card.get("mixture", {}),
        "provenance": card.get("provenance", {}),
        "settings": flat(card.get("settings", {})),
    }


def _headline(sources: Mapping[str, Any], rows: int) -> list[tuple[str, str, str]]:
    """(what, how much, beside it)"""
    parts: Counter[str] = Counter()
    tokens = 0
    for source in sources.values():
        for part, found in source["parts"].items():
            parts[part] += found["rows"]
            tokens += found["tokens"]
    kept = sum(parts.values())
    refused = sum(sum(source["rules"].values()) for source in sources.values())
    return [
        ("Raw rows", thousands(rows), f"of {len(sources)} source{'s' * (len(sources) != 1)}"),
        ("Training rows", thousands(parts["train"]), f"{thousands(kept - parts['train'])} in other parts"),
        ("Left out", percent(refused / rows if rows else None), f"{thousands(refused)} rows, by the rules below"),
        ("Tokens", thousands(tokens), "in all parts"),
    ]


def _rules(sources: Mapping[str, Any], rows: int, samples: dict[str, list[Sample]]) -> list[Rule]:
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for source in sources.values():
        counts.update(source["rules"])
        for rule, place in source["first_places"].items():
            first.setdefault(rule, place)
    return [
        Rule(rule, count, count / rows if rows else 0.0, first.get(rule, ""), samples.get(rule, []))
        for rule, count in counts.most_common()
    ]


def _samples(rejected: Iterable[Rejected], most: int) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for row in rejected:
        kept = found.setdefault(row.rule, [])
        if len(kept) < most:
            text = _shown(row.row)
            kept.append(Sample(row.source, row.place, text, row.rule == UNSAFE_RESPONSE or looks_harmful(text)))
    return found


def _shown(row: str) -> str:
    """The row in letters, not in JSON's escapes; without personal data; no longer than a reader wants."""
    with suppress(ValueError):
        # Lines as lines: an escape would hide the first word of one from whoever looks for harm.
        row = re.sub(r"\\[nrt]", "\n", json.dumps(json.loads(row), ensure_ascii=False, indent=1))
    row, _ = personal_data.mask(row.encode("utf-8", "replace").decode())
    return row if len(row) <= _SAMPLE_CHARACTERS else f"{row[:_SAMPLE_CHARACTERS]} …"


def _by_licence(sources: Mapping[str, Any]) -> Counter[str]:
    found: Counter[str] = Counter()
    for source in sources.values():
        found[source["licence"]] += sum(part["rows"] for part in source["parts"].values())
    return found


def _ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _trimmed(classes: list[list[int]]) -> list[tuple[int, int]]:
    """Without the empty classes at both ends."""
    full = [place for place, (_, rows) in enumerate(classes) if rows]
    return [(edge, rows) for edge, rows in classes[full[0] : full[-1] + 1]] if full else []


def _cloud(top: list[tuple[str, int]]) -> list[tuple[str, int, float]]:
    """(tag, rows, size of its letters), by name; sizes grow with the logarithm of rows."""
    if not top:
        return []
    least, most = (math.log(extreme(rows for _, rows in top)) for extreme in (min, max))
    span = (most - least) or 1.0
    sized = [(tag, rows, (math.log(rows) - least) / span) for tag, rows in top]
    return sorted((tag, rows, _SMALLEST_TAG + (_LARGEST_TAG - _SMALLEST_TAG) * size) for tag, rows, size in sized)


def flat(values: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested figures as dotted names; what is empty is left out."""
    if isinstance(values, Mapping):
        return [row for key, value in values.items() for row in flat(value, f"{path}.{key}" if path else str(key))]
    return [] if values in (None, [], "") else [(path, figure(values))]


def figure(value: Any) -> str:
    """A number as a reader wants it; anything else as JSON."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return thousands(value) if isinstance(value, int) else f"{value:,.4g}"


def thousands(value: int) -> str:
    return f"{value:,}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


def cell(text: Any) -> str:
    """A text in a Markdown table: neither markup nor the table's own bars and lines."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~])", r"\\\1", " ".join(str(text).split()))


def fenced(text: str) -> str:
    """A text as a Markdown code block, behind a fence that is longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"
