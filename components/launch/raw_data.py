"""Identify raw files by content, so that a step runs again when its data changed and not when a folder moved."""

import hashlib
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from components.core import store
from components.core.store_manifest import hash_file

_WILD = "*?["


def digest(paths: list[str], root: str = "") -> str:
    """Digest of all files behind `paths`: files, folders or globs under `root`, or whole URIs.

    A path behind which there is nothing counts as that; the step that reads it says what is missing.
    """
    found = {path: sorted(_files(_whole(path, root))) for path in paths}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def source_paths(config: dict[str, Any]) -> list[str]:
    """The paths of all raw sources of a step's section, by role."""
    sources: dict[str, list[dict[str, Any]]] = config.get("sources", {})
    return sorted({source["path"] for role in sources.values() for source in role if source.get("path")})


def _whole(path: str, root: str) -> str:
    if "://" in path or path.startswith(("/", "~")) or not root:
        return path
    return store.join(root, *[part for part in path.split("/") if part not in ("", ".")])


def _files(uri: str) -> Iterator[tuple[str, int, str]]:
    """(name, size, SHA-256 or the store's tag) of the files behind a file, folder or glob."""
    opened, key = store.for_uri(uri)
    parts = key.split("/")
    fixed = next((place for place, part in enumerate(parts) if any(sign in part for sign in _WILD)), len(parts) - 1)
    folder = "/".join(parts[:fixed])
    for entry in opened.list(folder):
        if entry.key == key or entry.key.startswith(f"{key}/") or fnmatch(entry.key, key):
            path = store.local_path(opened.uri(entry.key))
            yield entry.key.removeprefix(f"{folder}/"), entry.size, hash_file(Path(path)).sha256 if path else entry.etag
