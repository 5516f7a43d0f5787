"""What policy keeps out of training, row by row: prompt templates, texts of benchmarks, personal data."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from components.core.config import Filters
from components.data_prep.adapters import Document, Item, map_texts, texts
from components.data_prep.checks import Reject, require
from components.data_prep.decontaminate import Benchmarks
from components.data_prep.personal_data import mask, may_have
from components.data_prep.readers import read
from components.data_prep.templates import is_tool_use, template_rule


class RowFilters:
    """The settings, with the benchmarks that they name read once for all roles."""

    def __init__(self, config: Filters, data_root: str) -> None:
        self.config = config
        rows = (raw.row for path in config.benchmarks for raw in read(path, data_root))
        self.benchmarks = Benchmarks((text for row in rows for text in _strings(row)), config.benchmark_ngram)

    def is_mined(self, item: Item, role: str) -> bool:
        """Whether the prompt's frames count towards templates that others share, which reduce.py decides."""
        mined = self.config.mined_templates is not None and role in self.config.templates
        return mined and not is_tool_use(item.messages)

    def check(self, item: Item, role: str) -> None:
        """Raises Reject for a row that must not be trained on."""
        if role in self.config.templates and not is_tool_use(item.messages) and (rule := template_rule(item.messages)):
            raise Reject(rule)
        require(not any(map(self.benchmarks.contain, texts(item))), "benchmark")

    def clean(self, item: Item, notes: Counter[str]) -> Item:
        """The item without personal data, counted in `notes`. Raises Reject where such rows are to be dropped."""
        if self.config.personal_data == "keep":
            return item
        cleaned, found = _masked(item)
        require(not found or self.config.personal_data == "mask", "personal_data")
        notes.update({f"masked_{kind}": count for kind, count in found.items()})
        return cleaned


def _masked(item: Item) -> tuple[Item, Counter[str]]:
    found: Counter[str] = Counter()
    if not any(map(may_have, texts(item))):
        return item, found

    def masked(text: str) -> str:
        text, kinds = mask(text)
        if kinds:
            found.update(kinds)
        return text

    if isinstance(item, Document):
        return replace(item, text=masked(item.text)), found  # which holds what its messages hold
    return map_texts(item, masked), found


def _strings(value: Any) -> Iterator[str]:
    """Every text of a benchmark's row, however it is nested."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
