"""What a row has to do with safety, who says so, and what becomes of it (§3.1.1; recipe.md §6).

The report annotates violence, bias and pornography and wants malicious prompts refused or answered safely. Labels and
policy beyond that are ours: an unsafe response goes to new annotation, everything else stays. Refusals and safe answers
teach both ways of saying no; harmless questions about grave things keep a model from refusing too much.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from components.core.config import Safety
from components.core.records import Message

CONCERNS = ("violence", "bias", "pornography")
Intent = Literal["malicious", "benign_sensitive", "none"]
ResponseType = Literal["refusal", "safe_answer", "unsafe", "none"]
UNSAFE_RESPONSE = "unsafe_response"  # the rule of rows that wait for new annotation


@dataclass(frozen=True)
class SafetyLabels:
    """`concerns` in CONCERNS' order. Malice may have none: theft is neither violence nor bias nor pornography.

    `response` is "none" without a response, or with one that safety has nothing to say about.
    """

    concerns: tuple[str, ...] = ()
    intent: Intent = "none"
    response: ResponseType = "none"

    @property
    def is_about_safety(self) -> bool:
        return bool(self.concerns) or self.intent != "none" or self.response == "unsafe"

    def names(self) -> list[str]:
        """As a row keeps them: what is not "none"."""
        return [*self.concerns, *(name for name in (self.intent, self.response) if name != "none")]


@dataclass(frozen=True)
class Exchange:
    """A prompt with one of its responses, or with none."""

    messages: list[Message]
    response: str | None = None

    @property
    def prompt(self) -> str:
        """What the user says: an earlier turn can be what makes the last one malicious."""
        return "\n".join(message["content"] for message in self.messages if message["role"] == "user")


class SafetyClassifier(Protocol):
    """An exchange's labels depend on nothing but that exchange."""

    def label(self, exchanges: Sequence[Exchange]) -> list[SafetyLabels | None]:
        """The labels of each; None where there are none to be had."""


def route(labels: SafetyLabels | None, settings: Safety) -> Literal["keep", "reannotate"]:
    """What becomes of a row. One without labels stays: it is counted where it was left without."""
    unsafe = labels is not None and labels.response == "unsafe"
    return "reannotate" if unsafe and settings.unsafe_responses == "reannotate" else "keep"


def kept_safety_rows(ids: Iterable[str], others: int, max_share: float) -> frozenset[str]:
    """Of the rows about safety, those that stay so that they are at most `max_share` of all rows that stay.

    `others` counts the remaining rows. The choice is by a hash of the id: no order and no shard changes it, and a
    larger share keeps what a smaller one kept.
    """
    ranked = sorted(set(ids), key=lambda row_id: hashlib.sha256(f"safety {row_id}".encode()).digest())
    if max_share >= 1:
        return frozenset(ranked)
    most = int(max_share * others / (1 - max_share) + 1e-9)  # which rounding must not take a row from
    return frozenset(ranked[:most])
