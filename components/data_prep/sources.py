"""A source's rows, read, adapted and checked. base_model reads its raw text through here, too."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from components.core import store
from components.core.config import Source, Sources, Splits, TextRepair
from components.core.records import DATA_ROLES
from components.core.store_manifest import hash_file
from components.data_prep import split
from components.data_prep.adapters import Document, Item, Judged, adapt, check_source, repair
from components.data_prep.checks import Reject, require
from components.data_prep.readers import RawRow, find, read


def raw_rows(source: Source, role: str, data_root: str, seed: int) -> Iterator[RawRow]:
    """At most `max_rows` raw rows. The demo world writes its own, from the run's seed."""
    if source.adapter == "demo_world":
        from components.demo_world.generate import rows  # only a run that asks for it needs it

        for number, row in enumerate(rows(role, seed, source.max_rows), 1):
            yield RawRow(f"demo_world:{number}", row)
    else:
        yield from islice(read(source.path, data_root), source.max_rows)


def checked(raw: RawRow, source: Source, role: str, repairs: TextRepair, notes: Counter[str]) -> Item:
    """The item that a raw row is for a role, its texts made whole. Raises Reject."""
    require(not raw.rule, raw.rule)
    return repair(adapt(source, role, raw.row), role, repairs, notes)


def items(source: Source, role: str, data_root: str, seed: int) -> Iterator[Item]:
    """What passes all checks; data_prep itself tells of the rest."""
    check_source(role, source)
    for raw in raw_rows(source, role, data_root, seed):
        try:
            item = checked(raw, source, role, TextRepair(), Counter())
        except Reject:
            continue
        yield item


def heldout_keys(sources: Sources, data_root: str, seed: int) -> frozenset[bytes]:
    """Keys of all prompts that some source keeps for evaluation alone."""
    found: set[bytes] = set()
    for role in DATA_ROLES:
        for source in getattr(sources, role):
            if source.heldout_only:
                found.update(split.key_of(item) for item in items(source, role, data_root, seed))
    return frozenset(found)


def plain_texts(sources: Sources, data_root: str, seed: int, splits: Splits | None = None) -> Iterator[tuple[str, str]]:
    """(role, text) of every training row as plain text, for making a tokenizer and a small base model.

    Held-out prompts are left out; PPO's are not, because a base model may well have read them.
    """
    splits = splits or Splits()
    held = heldout_keys(sources, data_root, seed)
    for role in DATA_ROLES:
        for source in getattr(sources, role):
            for item in items(source, role, data_root, seed):
                key = split.key_of(item)
                if not source.heldout_only and key not in held and split.bucket(key, splits) != split.HELDOUT:
                    yield role, _as_text(item)


def _as_text(item: Item) -> str:
    if isinstance(item, Document):
        return item.text
    said = [message["content"] for message in item.messages]
    return "\n".join(said + (item.responses if isinstance(item, Judged) else []))


def provenance(sources: Sequence[Source], data_root: str) -> dict[str, str]:
    """SHA-256 of every raw file by its name under the data root; of one in S3, which is not read again, its ETag."""
    found = {}
    base = store.local_path(data_root) if data_root else None
    for uri in (uri for source in sources if source.path for uri in find(source.path, data_root)):
        path = store.local_path(uri)
        if path is None:
            opened, key = store.for_uri(uri)
            found[uri.removeprefix(f"{data_root.rstrip('/')}/")] = f"ETag {next(iter(opened.list(key))).etag}"
        else:
            name = path.relative_to(base).as_posix() if base and path.is_relative_to(base) else path.name
            found[name] = hash_file(path).sha256
    return found
