"""Which of a prompt's responses annotators see, and the record of who wrote them, which they never see.

    truncated ones go (unless kept) -> equal ones -> similar ones -> at most `most`, the models in turn

Whether a response or its twin stays is decided by a hash, so that no model is favoured. A response's id is a hash of
its text, and responses are shown in the order of their ids: neither tells who wrote them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.core.seeds import seed_for
from components.data_prep.checks import normalised
from components.data_prep.near_duplicates import near_duplicates, signatures
from components.sample_responses.parts import Candidate

KEPT, TRUNCATED, DUPLICATE, NEAR_DUPLICATE, SURPLUS, ALONE = (
    "kept", "truncated", "duplicate", "near_duplicate", "surplus", "alone",
)  # fmt: skip
"""What became of a candidate. `alone`: the only one left of its prompt, which then has nothing to compare."""


@dataclass(frozen=True)
class Chosen:
    """`responses` {id, text} for annotators, none where fewer than two are left; `producers`, a row a candidate."""

    responses: list[dict[str, str]]
    producers: list[dict[str, Any]]


def choose_responses(
    candidates: Sequence[Candidate], *, seed: int, keep_truncated: bool, near_duplicate: float, most: int | None
) -> Chosen:
    """The responses to one prompt."""
    fates: dict[Candidate, str] = {}
    twin_of: dict[Candidate, Candidate] = {}
    left: list[Candidate] = []
    texts: dict[str, Candidate] = {}
    for candidate in _in_turn(candidates, seed):
        text = normalised(candidate.text)
        if candidate.truncated and not keep_truncated:
            fates[candidate] = TRUNCATED
        elif text in texts:
            fates[candidate], twin_of[candidate] = DUPLICATE, texts[text]
        else:
            texts[text] = candidate
            left.append(candidate)
    if near_duplicate < 1 and left:
        similar = near_duplicates(signatures([candidate.text for candidate in left]), threshold=near_duplicate)
        for candidate, earlier in zip(left, similar.tolist(), strict=True):
            if earlier >= 0:
                fates[candidate], twin_of[candidate] = NEAR_DUPLICATE, left[earlier]
        left = [candidate for candidate in left if candidate not in fates]
    for place, candidate in enumerate(left):
        fates[candidate] = ALONE if len(left) < 2 else KEPT if most is None or place < most else SURPLUS
    kept = [candidate for candidate in left if fates[candidate] == KEPT]
    return Chosen(
        responses=sorted(({"id": response_id(one), "text": one.text} for one in kept), key=lambda row: row["id"]),
        producers=[_producer(one, fates[one], twin_of.get(one)) for one in sorted(candidates, key=_order)],
    )


def response_id(candidate: Candidate) -> str:
    """By prompt and text alone."""
    return hashlib.sha256(json.dumps([candidate.prompt, candidate.text]).encode()).hexdigest()[:16]


def count(chosen: Sequence[Chosen]) -> dict[str, int]:
    """Responses by what became of them, how many are empty, prompts with a choice and without."""
    fates = Counter(row["fate"] for one in chosen for row in one.producers)
    empty = sum(row["empty"] for one in chosen for row in one.producers)
    with_choice = sum(bool(one.responses) for one in chosen)
    return {
        **{fate: fates[fate] for fate in (KEPT, TRUNCATED, DUPLICATE, NEAR_DUPLICATE, SURPLUS, ALONE)},
        "empty": empty, "prompts": with_choice, "prompts_without_choice": len(chosen) - with_choice,
    }  # fmt: skip


def _in_turn(candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Shuffled by hash, then dealt from each model in turn."""

    def shuffled(one: Candidate) -> int:
        return seed_for(seed, "choice", one.prompt, one.model, one.strategy, one.number)

    turns: Counter[str] = Counter()
    dealt = []
    for candidate in sorted(candidates, key=shuffled):
        dealt.append((turns[candidate.model], shuffled(candidate), candidate))
        turns[candidate.model] += 1
    return [candidate for _, _, candidate in sorted(dealt, key=lambda item: item[:2])]


def _order(one: Candidate) -> tuple[str, str, int]:
    return one.model, one.strategy, one.number


def _producer(one: Candidate, fate: str, twin: Candidate | None) -> dict[str, Any]:
    return {
        "prompt": one.prompt, "response": response_id(one), "model": one.model, "strategy": one.strategy,
        "number": one.number, "seed": one.seed, "tokens": one.tokens, "truncated": one.truncated,
        "empty": not one.text.strip(), "fate": fate, "same_as": response_id(twin) if twin else None,
    }  # fmt: skip
