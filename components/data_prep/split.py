"""Which part a prompt belongs to: training, PPO alone, or held out.

A prompt's part is a hash of its user turns and nothing else, with a fixed salt instead of the run's seed: the same
prompt falls in the same part in every role, source, file order and run. So no prompt that one step trains on tests
another one, and a model trained yesterday can be scored on today's held-out prompts.
"""

import hashlib
from collections.abc import Collection, Iterable

from components.core.config import Splits
from components.core.records import Message
from components.data_prep.adapters import Document, Item
from components.data_prep.checks import Reject, normalised
from components.data_prep.personal_data import mask

_SALT = b"kubealign split 1\0"
TRAIN, PPO, HELDOUT = "train", "ppo", "heldout"


def key_of_messages(messages: list[Message]) -> bytes:
    """16 bytes for the user turns, whatever their case and white space and whatever stands between them.

    Personal data counts as masked, so that a prompt has the same part with it and without.
    """
    return _key(message["content"] for message in messages if message["role"] == "user")


def key_of(item: Item) -> bytes:
    """The prompt's key; a plain document is its own prompt."""
    if isinstance(item, Document) and not item.messages:
        return _key([item.text])
    return key_of_messages(item.messages)


def _key(texts: Iterable[str]) -> bytes:
    # White space first: a telephone number may be broken by a line's end.
    return _digest("\x1f".join(mask(normalised(text))[0].casefold() for text in texts))


def part_of_cut(kept: list[Message], role: str, splits: Splits, *, heldout_only: bool) -> tuple[bytes, str]:
    """Key and part of what is left of a conversation that was cut, which is another prompt; "" where it is no part of
    this role's."""
    key = key_of_messages(kept)
    try:
        return key, part_for(key, role, splits, heldout_only=heldout_only)
    except Reject:
        return key, ""


def number(digest: bytes) -> int:
    """8 bytes of a digest, for columns of numbers."""
    return int.from_bytes(digest[:8], "big")


def _digest(text: str) -> bytes:
    # A row that is to be refused for half a surrogate pair may be hashed before it is.
    return hashlib.sha256(_SALT + text.encode("utf-8", "surrogatepass")).digest()[:16]


def bucket(key: bytes, splits: Splits) -> str:
    """The part that the key's hash falls in. Raising `heldout` keeps every prompt held out that was so before."""
    share = int.from_bytes(key[:8], "big") / 2**64
    if share < splits.heldout:
        return HELDOUT
    return PPO if share >= 1 - splits.ppo else TRAIN


def part_for(
    key: bytes,
    role: str,
    splits: Splits,
    *,
    heldout_only: bool,
    heldout_keys: Collection[bytes] = frozenset(),
    is_document: bool = False,
) -> str:
    """TRAIN or HELDOUT for a row of a role. Raises Reject where the prompt belongs to somebody else.

    `heldout_keys` are the prompts of all sources that are for evaluation alone, in whatever role: rows with such a
    prompt are kept out of training everywhere, because moving them to the held-out part would change that source's set.
    """
    found = bucket(key, splits)
    if heldout_only or found == HELDOUT:
        return HELDOUT
    if key in heldout_keys:
        raise Reject("heldout_prompt")
    if is_document:
        return TRAIN
    if role == "ppo" and splits.ppo > 0:
        if found != PPO:
            raise Reject("reserved_for_training")
    elif found == PPO:
        raise Reject("reserved_for_ppo")
    return TRAIN
