"""Which prompts are asked: a seeded choice of data_prep's, all of them short enough for every model."""

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path

from components.core.chatml import ChatTokenizer
from components.core.errors import UserError
from components.core.records import Prompt, read_rows
from components.core.seeds import seed_for
from components.training.windows import longest_sequence


def choose(folder: Path, *, heldout: bool, seed: int, most: int | None) -> list[Prompt]:
    """The first prompts in the order of a hash of seed and id, so that a larger choice holds every smaller one."""
    rows = _rows(folder, heldout)

    def place(prompt: Prompt) -> int:
        return seed_for(seed, "prompt", prompt.id)

    found = sorted(rows, key=place) if most is None else heapq.nsmallest(most, rows, key=place)
    if not found:
        raise UserError("no prompts", where=str(folder), fix="give data_prep more rows for ppo")
    return found


def _rows(folder: Path, heldout: bool) -> Iterator[Prompt]:
    seen: set[str] = set()
    for path in [folder / "train.parquet", *(sorted((folder / "heldout").glob("*.parquet")) if heldout else [])]:
        for row in read_rows(path, Prompt):
            if row.id not in seen:
                seen.add(row.id)
                row.input_ids = []  # of data_prep's tokenizer; every model has its own
                yield row


def fitting(prompts: Sequence[Prompt], models: Sequence[Path], new_tokens: int) -> list[Prompt]:
    """The prompts that leave every model room for `new_tokens` more, so that all models answer the same ones."""
    kept = list(prompts)
    for folder in models:
        tokenizer, longest = ChatTokenizer.load(folder), longest_sequence(folder)
        kept = [prompt for prompt in kept if len(tokenizer.encode_prompt(prompt.messages)) + new_tokens <= longest]
    if not kept:
        what = f"none of {len(prompts)} prompts leaves room for max_new_tokens = {new_tokens}"
        raise UserError(what, where="sample_responses.strategies", fix="lower max_new_tokens")
    return kept
