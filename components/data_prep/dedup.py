"""What makes two contents the same: exact duplicates, after white space is made the same."""

import hashlib
from collections.abc import Iterable

from components.core.records import Message
from components.data_prep.checks import normalised


def digest(texts: Iterable[str]) -> bytes:
    """16 bytes of a content."""
    content = "\x1f".join(normalised(text) for text in texts)
    return hashlib.sha256(content.encode()).digest()[:16]


def conversation_texts(messages: list[Message]) -> list[str]:
    """What makes a conversation the same: its roles and contents."""
    return [text for message in messages for text in (message["role"], message["content"])]


def prompt_texts(messages: list[Message]) -> list[str]:
    """What makes a prompt the same: also its system turn, but not the case of its letters."""
    return [text.casefold() for text in conversation_texts(messages)]
