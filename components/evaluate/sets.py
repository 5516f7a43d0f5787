"""Held-out comparisons by set, and the reasons why a part of the report is missing."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from components.core.records import Comparison, Message


class Missing(NamedTuple):
    """A part of the report that is left out, and why."""

    part: str
    why: str


class Pair(NamedTuple):
    """Two responses to one prompt, of which the first is known to be better."""

    prompt: str
    messages: list[Message]
    chosen: str
    rejected: str


@dataclass
class ComparisonSet:
    """Held-out comparisons of one source. `role` says whose data it is, or `comparisons` for files given by hand."""

    name: str
    role: str
    rows: list[Comparison]

    @cached_property
    def pairs(self) -> list[Pair]:
        return [
            Pair(prompt_key(row.messages), row.messages, row.responses[pair["chosen"]], row.responses[pair["rejected"]])
            for row in self.rows
            for pair in row.pairs
        ]

    @cached_property
    def clusters(self) -> list[str]:
        """The prompt of each pair: what an interval resamples."""
        return [pair.prompt for pair in self.pairs]

    @property
    def prompt_count(self) -> int:
        return len(set(self.clusters))


def prompt_key(messages: list[Message]) -> str:
    """One string for one prompt, whatever row it stands in."""
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)
