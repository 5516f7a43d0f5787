"""Sampled responses become annotation tasks: blind, shuffled, and some of them for several annotators.

A tool is told a task's id and texts, never a model, a sampling strategy or a response's id. Which text is whose is
known from the same rows and the same plan: tasks are made again for the import, and their ids then are the same.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from components.core.errors import UserError
from components.core.records import Message, Rejected
from components.core.seeds import seed_for

GUIDELINE = (
    "Read the conversation, then every response. Score how good each response is as the next turn: does it do what "
    "was asked, is what it says true, does it do no harm? Judge what is said, not how long it is. "
    "Responses that are equally good get the same score."
)


@dataclass(frozen=True, kw_only=True)
class Response:
    """One sampled response. `id`, `model` and `strategy` never leave this process."""

    id: str
    text: str
    model: str = ""
    strategy: str = ""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A prompt with its responses. `gold` are their known scores, on any scale, where it is a check of attention."""

    id: str
    messages: tuple[Message, ...]
    responses: tuple[Response, ...]
    gold: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who scores what. All defaults are ours but `highest`: InstructGPT's 1-7 (Ouyang et al. 2203.02155, table 3)."""

    annotators: int = 3
    """Slots to fill with annotators. A slot is exported on its own, so that nobody sees a prompt twice."""
    overlap: int = 3
    """Annotators of a prompt that is scored several times."""
    overlap_share: float = 0.2
    """Share of prompts that are; each of the others has one annotator."""
    highest: int = 7
    """Scores are the whole numbers from 1 to this. More than 10 no question of Argilla can hold."""
    guideline: str = GUIDELINE
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.overlap <= self.annotators:
            raise UserError(f"overlap {self.overlap} is not between 1 and the {self.annotators} annotators")
        if not 0 <= self.overlap_share <= 1:
            raise UserError(f"overlap_share {self.overlap_share} is not between 0 and 1")
        if not 2 <= self.highest <= 10:
            raise UserError(f"highest score {self.highest} is not between 2 and 10")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A prompt as one slot's annotator sees it. `order[place]` is the index of the response shown at that place."""

    id: str
    slot: int
    prompt: Sampled
    order: tuple[int, ...]

    def shown(self) -> list[str]:
        return [self.prompt.responses[index].text for index in self.order]

    def unshuffled(self, scores: Sequence[float]) -> list[float]:
        """Scores of the places, as scores of the prompt's responses."""
        of = dict(zip(self.order, scores, strict=True))
        return [of[index] for index in range(len(self.order))]


def sampled(row: dict[str, Any]) -> Sampled:
    """A row of sample_responses: id, messages, responses of id, text, model and strategy, and gold where known."""
    try:
        names = ("id", "text", "model", "strategy")
        responses = tuple(
            Response(**{name: str(response[name]) for name in names if name in response})
            for response in row["responses"]
        )
        messages = tuple({"role": str(turn["role"]), "content": str(turn["content"])} for turn in row["messages"])
        gold = None if row.get("gold") is None else tuple(float(score) for score in row["gold"])
        return Sampled(id=str(row["id"]), messages=messages, responses=responses, gold=gold)
    except (KeyError, TypeError, ValueError) as error:
        what = f"not a row of sampled responses ({type(error).__name__}: {error})"
        raise UserError(what, fix="give id, messages and responses, each with id and text") from None


def make_tasks(prompts: Iterable[Sampled], plan: Plan) -> tuple[list[Task], list[Rejected]]:
    """(tasks by slot and id, prompts that make none). Gold prompts go to every slot.

    What a prompt's tasks are depends on that prompt and the plan alone, so more prompts leave the old tasks as they
    were. By their ids, which are hashes, gold tasks lie among the others.
    """
    tasks: list[Task] = []
    rejected: list[Rejected] = []
    seen: set[str] = set()
    for prompt in prompts:
        if rule := _fault(prompt, seen):
            row = json.dumps({"id": prompt.id, "responses": [response.id for response in prompt.responses]})
            rejected.append(Rejected(role="annotate", source="sampled", place=prompt.id, rule=rule, row=row))
            continue
        seen.add(prompt.id)
        tasks += [_task(prompt, slot, plan.seed) for slot in _slots(prompt, plan)]
    return sorted(tasks, key=lambda task: (task.slot, task.id)), rejected


def batches(tasks: Iterable[Task]) -> dict[str, list[Task]]:
    """Tasks that one project of a tool can hold, by name: of one slot and with as many responses each."""
    found: dict[str, list[Task]] = {}
    for task in sorted(tasks, key=lambda task: (task.slot, len(task.order), task.id)):
        found.setdefault(f"annotator-{task.slot + 1}-responses-{len(task.order)}", []).append(task)
    return found


def one_each(tasks: Iterable[Task]) -> list[Task]:
    """The first task of every prompt: all that an annotator of every prompt, such as an AI judge, has to see."""
    found: dict[str, Task] = {}
    for task in tasks:
        found.setdefault(task.prompt.id, task)
    return list(found.values())


# C0 controls but tab, line feed and carriage return: PostgreSQL's JSON refuses U+0000, XML all of them. Half surrogate
# pairs no UTF-8 file can hold.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def displayable(text: str) -> str:
    """Text that every tool can store and show. The import takes the original, never this, from the task."""
    return _NOT_TEXT.sub("\ufffd", text) if text.strip() else "(empty)"


def displayed(task: Task, show: Callable[[str], str] = displayable) -> tuple[list[Message], dict[str, str]]:
    """(the conversation, the responses by the names of their fields), every text as `show` gives it to a tool."""
    turns = [{"role": turn["role"], "content": show(turn["content"])} for turn in task.prompt.messages]
    return turns, {f"response_{place}": show(text) for place, text in enumerate(task.shown(), start=1)}


def score_names(task: Task) -> list[str]:
    """The questions of a task, by place."""
    return [f"score_{place}" for place in range(1, len(task.order) + 1)]


def _fault(prompt: Sampled, seen: set[str]) -> str:
    ids = {response.id for response in prompt.responses}
    if prompt.id in seen:
        return "duplicate_prompt_id"
    if len(ids) < len(prompt.responses):
        return "duplicate_response_id"
    if prompt.gold is not None and len(prompt.gold) != len(prompt.responses):
        return "score_count"
    return "single_response" if len(ids) < 2 else ""


def _slots(prompt: Sampled, plan: Plan) -> list[int]:
    everybody = list(range(plan.annotators))
    if prompt.gold is not None:
        return everybody
    several = seed_for(plan.seed, "overlap", prompt.id) < plan.overlap_share * 2**63
    everybody.sort(key=lambda slot: seed_for(plan.seed, "slot", prompt.id, slot))
    return everybody[: plan.overlap if several else 1]


def _task(prompt: Sampled, slot: int, seed: int) -> Task:
    """The id is a hash of all that is shown and where, so that scores never meet another order or another text."""

    def rank(index: int) -> int:
        return seed_for(seed, "order", prompt.id, slot, prompt.responses[index].id)

    order = tuple(sorted(range(len(prompt.responses)), key=rank))
    shown = [(prompt.responses[index].id, prompt.responses[index].text) for index in order]
    content = json.dumps([prompt.id, slot, prompt.messages, shown])
    return Task(id=hashlib.sha256(content.encode()).hexdigest()[:16], slot=slot, prompt=prompt, order=order)
