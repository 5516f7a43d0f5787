"""Exact duplicates, after white space is made the same. The first row wins."""

import hashlib
from collections.abc import Iterable

from components.core.records import Message
from components.data_prep.checks import normalised


class Seen:
    """Remembers 16 bytes of each content; one for each role."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def is_new(self, scope: str, texts: Iterable[str]) -> bool:
        """Whether this content is met for the first time in its scope (training, or one source's held-out set)."""
        content = "\x1f".join([scope, *(normalised(text) for text in texts)])
        digest = hashlib.sha256(content.encode()).digest()[:16]
        if digest in self._digests:
            return False
        self._digests.add(digest)
        return True


def conversation_texts(messages: list[Message]) -> list[str]:
    """What makes a conversation the same: its roles and contents."""
    return [text for message in messages for text in (message["role"], message["content"])]


def prompt_texts(messages: list[Message]) -> list[str]:
    """What makes a prompt the same: also its system turn, but not the case of its letters."""
    return [text.casefold() for text in conversation_texts(messages)]
