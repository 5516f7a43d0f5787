"""Templates that no rule knows: the same words around many different prompts of a source.

Of every prompt the first words, the last words and the beginnings of all lines are digested; those whose frame is
shared by more than `limit` different prompts of a source are refused. The report excludes "data formatted in prompt
templates" (§3.1.1); mining them, and the lengths here, are defaults of ours.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from components.core.records import Message
from components.data_prep.checks import normalised

EDGE_WORDS = 8  # first or last words that count as a frame; people share shorter ones by chance
LINES = 3  # of which a skeleton has at least so many
FRAMES = ("prefix", "suffix", "skeleton")


def frame_digests(messages: list[Message]) -> tuple[int, tuple[int, ...]]:
    """8 bytes of the first thing that is asked, and of each of its FRAMES, 0 where it has none."""
    text = _prompt(messages)
    found = dict(_frames(text))
    return _digest("prompt", text), tuple(_digest(kind, found[kind]) if kind in found else 0 for kind in FRAMES)


def shared_frames(prompts: NDArray[np.uint64], frames: NDArray[np.uint64], limit: int) -> NDArray[np.int8]:
    """(rows,): which of FRAMES, the first one, is shared by more than `limit` different prompts; -1 for none.

    `prompts` are (rows,), `frames` (rows, FRAMES) digests. The same prompt again, with another answer, is no template.
    """
    by_frame = np.empty(frames.size, [("frame", np.uint64), ("prompt", np.uint64)])
    by_frame["frame"], by_frame["prompt"] = frames.ravel(), np.repeat(prompts, frames.shape[1])
    distinct = np.unique(by_frame[by_frame["frame"] != 0])
    found, counts = np.unique(distinct["frame"], return_counts=True)
    shared = np.isin(frames, found[counts > limit])
    return np.where(shared.any(axis=1), shared.argmax(axis=1), -1).astype(np.int8)


def _prompt(messages: list[Message]) -> str:
    """Later turns depend on the first one."""
    return next((message["content"] for message in messages if message["role"] == "user"), "")


def _frames(text: str) -> Iterator[tuple[str, str]]:
    words = normalised(text).casefold().split()
    if len(words) > EDGE_WORDS:
        yield "prefix", " ".join(words[:EDGE_WORDS])
        yield "suffix", " ".join(words[-EDGE_WORDS:])
    beginnings = [" ".join(line.casefold().split()[:2]) for line in text.splitlines() if line.strip()]
    if len(beginnings) >= LINES:
        yield "skeleton", "\n".join(beginnings)


def _digest(kind: str, text: str) -> int:
    content = f"{kind}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
