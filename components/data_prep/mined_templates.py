"""Templates that no rule knows: the same words around many different prompts of a source.

A first pass counts how many different prompts share their first words, their last words, or the beginnings of all
their lines; a second one refuses those whose frame is shared by more than `limit` of them. The report excludes "data
formatted in prompt templates" (§3.1.1); mining them, and the lengths here, are defaults of ours.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator

from components.core.records import Message
from components.data_prep.checks import normalised

EDGE_WORDS = 8  # first or last words that count as a frame; people share shorter ones by chance
LINES = 3  # of which a skeleton has at least so many
MOST_FRAMES = 4_000_000  # about 0.5 GB; beyond it, frames that were met once are forgotten


class MinedTemplates:
    """`add` every prompt of a source, then ask for the `rule` that one breaks."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._counts: Counter[bytes] = Counter()
        self._seen: set[bytes] = set()

    def add(self, messages: list[Message]) -> None:
        text = _prompt(messages)
        if (prompt := _digest("prompt", text)) in self._seen:
            return  # the same prompt again, with another answer, is no template
        self._seen.add(prompt)
        self._counts.update({_digest(kind, frame) for kind, frame in _frames(text)})
        if len(self._counts) > MOST_FRAMES:
            self._counts = Counter({frame: count for frame, count in self._counts.items() if count > 1})

    def rule(self, messages: list[Message]) -> str | None:
        for kind, frame in _frames(_prompt(messages)):
            if self._counts[_digest(kind, frame)] > self.limit:
                return f"template_mined_{kind}"
        return None


def _prompt(messages: list[Message]) -> str:
    """The first thing that is asked: later turns depend on it."""
    return next((message["content"] for message in messages if message["role"] == "user"), "")


def _frames(text: str) -> Iterator[tuple[str, str]]:
    words = normalised(text).casefold().split()
    if len(words) > EDGE_WORDS:
        yield "prefix", " ".join(words[:EDGE_WORDS])
        yield "suffix", " ".join(words[-EDGE_WORDS:])
    beginnings = [" ".join(line.casefold().split()[:2]) for line in text.splitlines() if line.strip()]
    if len(beginnings) >= LINES:
        yield "skeleton", "\n".join(beginnings)


def _digest(kind: str, text: str) -> bytes:
    return hashlib.blake2b(f"{kind}\0{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
