"""What PMP and the reward model think: of comparisons whose answer is known, and of the policies' own answers."""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.core.chatml import ChatTokenizer
from components.core.errors import UserError
from components.core.records import Message
from components.evaluate.sets import ComparisonSet, Missing, prompt_key
from components.evaluate.statistics import Resampling, accuracy, calibration, outcomes, paired_difference
from components.evaluate.windows import best_device
from components.training.windows import longest_sequence

log = logging.getLogger(__name__)

Conversation = tuple[list[Message], str]


class Judge:
    """A reward model with its own tokenizer: text in, score out. Nothing is scored twice."""

    def __init__(self, name: str, folder: Path, batch_tokens: int) -> None:
        from components.reward_model.model import RewardModel

        self.name = name
        self.tokenizer = ChatTokenizer.load(folder)
        self.model = RewardModel.load(folder, best_device())
        self.longest = longest_sequence(folder)
        self.batch_tokens = batch_tokens
        self._known: dict[tuple[str, str], float] = {}

    def score(self, conversations: list[Conversation]) -> list[float | None]:
        """One score a conversation; None where it is longer than the model can read."""
        keys = [(prompt_key(messages), response) for messages, response in conversations]
        sequences: dict[tuple[str, str], list[int]] = {}
        for key, (messages, response) in zip(keys, conversations, strict=True):
            if key not in self._known and key not in sequences:
                ids = self.tokenizer.encode_response(messages, response)
                if len(ids) <= self.longest:
                    sequences[key] = ids
        if sequences:
            scores = self.model.score(list(sequences.values()), self.batch_tokens)
            if broken := sum(not math.isfinite(score) for score in scores):
                # A NaN is no tie, and would pass for one.
                raise UserError(
                    f"{self.name}: {broken} of {len(scores)} scores are not finite; its training went wrong"
                )
            self._known.update(zip(sequences, scores, strict=True))
        return [self._known.get(key) for key in keys]


@dataclass
class Judgement:
    """A judge's score differences, chosen minus rejected, pair by pair; None where a pair was too long."""

    name: str
    differences: dict[str, list[float | None]] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)


def judge_sets(judge: Judge, sets: list[ComparisonSet]) -> Judgement:
    """Score every pair of every set."""
    judgement = Judgement(judge.name)
    for data in sets:
        chosen = judge.score([(pair.messages, pair.chosen) for pair in data.pairs])
        rejected = judge.score([(pair.messages, pair.rejected) for pair in data.pairs])
        differences = [None if a is None or b is None else a - b for a, b in zip(chosen, rejected, strict=True)]
        judgement.differences[data.name] = differences
        log.info("%s: %d pairs of %s scored", judge.name, len(differences), data.name)
        if too_long := differences.count(None):
            why = f"{too_long} of {len(differences)} pairs are longer than the model's {judge.longest} tokens"
            judgement.missing.append(Missing(f"{judge.name} on {data.name}", why))
    return judgement


def judge_figures(judgement: Judgement, sets: list[ComparisonSet], bins: int, resampling: Resampling) -> dict[str, Any]:
    """`accuracy` and `calibration` by set; a set of which no pair could be scored is left out."""
    figures: dict[str, dict[str, Any]] = {"accuracy": {}, "calibration": {}}
    for data in sets:
        scored = [
            (difference, prompt)
            for difference, prompt in zip(judgement.differences[data.name], data.clusters, strict=True)
            if difference is not None
        ]
        if scored:
            differences, prompts = [item[0] for item in scored], [item[1] for item in scored]
            figures["accuracy"][data.name] = accuracy(differences, prompts, resampling, judgement.name, data.name)
            figures["calibration"][data.name] = calibration(differences, bins)
    return figures


def gain(ours: Judgement, theirs: Judgement, sets: list[ComparisonSet], resampling: Resampling) -> dict[str, Any]:
    """By set, how much more often `ours` is right than `theirs` on the pairs that both could read."""
    found = {}
    for data in sets:
        both = [
            (a, b, prompt)
            for a, b, prompt in zip(
                ours.differences[data.name], theirs.differences[data.name], data.clusters, strict=True
            )
            if a is not None and b is not None
        ]
        if both:
            right, other = outcomes([item[0] for item in both]), outcomes([item[1] for item in both])
            prompts = [item[2] for item in both]
            difference = paired_difference(right.tolist(), other.tolist(), prompts, resampling, "gain", data.name)
            found[data.name] = {**difference._asdict(), "n": len(both)}
    return found
