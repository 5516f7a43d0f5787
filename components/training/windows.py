"""How much a model can read."""

import json
import sys
from pathlib import Path


def longest_sequence(folder: Path) -> int:
    """`max_position_embeddings` of a model folder, or no limit where its config states none."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return sys.maxsize  # loading the model says what is wrong with the folder, and better
    return found if isinstance(found, int) and found > 0 else sys.maxsize
