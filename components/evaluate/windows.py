"""How much a model can read, and where it runs."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def longest_sequence(folder: Path) -> int:
    """`max_position_embeddings` of a model folder, or no limit where its config states none."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return sys.maxsize  # loading the model says what is wrong with the folder, and better
    return found if isinstance(found, int) and found > 0 else sys.maxsize


def best_device() -> "torch.device":
    """A GPU where there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
