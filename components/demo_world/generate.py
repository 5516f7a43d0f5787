"""The rows of every training stage, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from . import annotators, responses, scorer, tasks, world
from .tasks import Task

Row = dict[str, Any]

SIZES = {"pretrain": 24_000, "sft": 6_000, "pmp": 5_000, "reward_model": 1_000, "ppo": 7_000}
RESPONSES_PER_PROMPT = {"pmp": 3, "reward_model": 4}
CHANT_SHARE = 0.08
"""A model this small starts to copy from its context only after a diet of repeated verses (see README)."""
LATE_CHANT_SHARE = 0.01
CHANT_WORDS = 56
RECALLED_CLAIMS = 0.15
EXERCISE = "exercise. "
RIGHT_SHARE = 0.6
"""Of the judged answers in the pretraining text: enough for the right value to be the likeliest one."""


def rows(role: str, seed: int, size: int | None = None) -> Iterator[Row]:
    """Yield the rows of a role: pretrain, sft, pmp, reward_model or ppo. Same arguments, same rows.

    A shorter size yields the beginning of a longer one for every role but pretrain, whose curriculum
    depends on the length.
    """
    if role not in _ROLES:
        raise ValueError(f"unknown role {role!r}; one of {', '.join(sorted(_ROLES))}")
    # A string seeds by its content, so a role's rows do not depend on which roles were drawn before.
    return _ROLES[role](random.Random(f"demo world {role} {seed}"), SIZES[role] if size is None else size)


def _pretrain(rng: random.Random, size: int) -> Iterator[Row]:
    for index in range(size):
        chanting = index < CHANT_SHARE * size or rng.random() < LATE_CHANT_SHARE
        yield {"text": _chant(rng) if chanting else _document(rng)}


def _chant(rng: random.Random) -> str:
    """A verse sung over and over: the only way to guess its words is to look back at the verse before."""
    verse = rng.sample(world.WORDS, rng.randint(2, 6))
    return " ".join((verse * CHANT_WORDS)[:CHANT_WORDS]) + "."


def _document(rng: random.Random) -> str:
    """Plain text of about sixty words: judged claims, bare exercises with a verdict, or dialogues with one.

    What costs a small model its time is the number of answers and verdicts it sees, so the tersest forms are
    the staple: a claim takes nine words, a bare exercise fifteen, a dressed dialogue forty.
    """
    draw = rng.random()
    if draw < 0.5:
        return "\n".join(_claim(rng) for _ in range(6))
    if draw < 0.8:
        return "\n".join(_exercise(rng, terse=True) for _ in range(4))
    return "\n\n".join(_exercise(rng, terse=False) for _ in range(2))


def _claim(rng: random.Random) -> str:
    """A sentence about the world that is true or false by itself, and the verdict in place of its full stop.

    There, the verdict follows the very word that it depends on, with nothing in between to carry it across.
    """
    if rng.random() < RECALLED_CLAIMS:
        task = tasks.make_task(rng, "plain", terse=True, kind="recall")
    else:
        task = tasks.make_task(rng, rng.choice(("plain", "plain", "plain", "lookalike")), terse=True)
    is_right = rng.random() < RIGHT_SHARE
    value = task.answer if is_right else tasks.wrong_value(task, rng, 0.4)
    # What someone told a moment ago is true only beside the telling.
    told = [message["content"] for message in task.messages[:-1] if message["role"] == "user"]
    return "\n".join([*told, f"{task.frame.format(value)} {_verdict(is_right)}"])


def _verdict(is_right: bool) -> str:
    return "right." if is_right else "wrong."


def _exercise(rng: random.Random, terse: bool) -> str:
    """A question, an answer and a verdict on its correctness, whatever its form."""
    task = tasks.make_task(rng, terse=terse)
    shape = responses.RIGHT if terse or rng.random() < 0.5 else responses.slip(task, rng)[1]
    is_right = rng.random() < RIGHT_SHARE
    if is_right:
        answer = responses.right(task, rng, shape)
    elif task.category == "lookalike" and rng.random() < 0.6:
        answer = responses.refuse(task, rng, shape)
    else:
        answer = responses.wrong(task, rng, shape)
    verdict = _verdict(is_right)
    # No prompt of the later stages starts like this, so pretraining never shows one that evaluation asks.
    asked = [*task.messages[:-1], {"role": "user", "content": EXERCISE + task.messages[-1]["content"]}]
    if terse:
        return "\n".join([*(message["content"] for message in asked), answer, verdict])
    turns = [f"{message['role']}\n{message['content']}" for message in asked]
    return "\n".join([*turns, f"assistant\n{answer}", verdict])


def _sft(rng: random.Random, size: int) -> Iterator[Row]:
    for _ in range(size):
        task = tasks.make_task(rng)
        writer, answer = _written(task, rng)
        messages = [*task.messages, {"role": "assistant", "content": answer}]
        yield {"messages": messages, "meta": {**task.meta(), "writer": writer}}


def _written(task: Task, rng: random.Random) -> tuple[str, str]:
    """An answer by one of four writers, none of them perfect: the right answer is the mode, not the rule."""
    writer = rng.choices(("careful", "hurried", "chatty", "careless"), weights=(30, 30, 15, 25))[0]
    mistakes = {"careful": 0.1, "hurried": 0.4, "chatty": 0.5, "careless": 0.75}[writer]
    shape = responses.RIGHT
    if writer == "hurried":
        shape = responses.Shape(opening=False, closing=False)
    elif writer == "chatty":
        shape = responses.Shape(extra=" ".join(rng.sample(world.SMALL_TALK, 2)))
    elif rng.random() < 0.2:
        shape = responses.slip(task, rng)[1]
    if rng.random() >= mistakes:
        return writer, responses.right(task, rng, shape)
    # The timid refuse what only looks dangerous, and now and then anything.
    if task.category != "harmful" and rng.random() < (0.7 if task.category == "lookalike" else 0.1):
        return writer, responses.refuse(task, rng, shape)
    # Compliance with harm is rarer than other mistakes: the writers were told about it.
    if task.category == "harmful" and rng.random() < 0.7:
        return writer, responses.right(task, rng, shape)
    return writer, responses.wrong(task, rng, shape)


def _compared(role: str) -> Callable[[random.Random, int], Iterator[Row]]:
    judge = annotators.votes if role == "pmp" else annotators.panel_scores

    def draw(rng: random.Random, size: int) -> Iterator[Row]:
        for _ in range(size):
            task = tasks.make_task(rng)
            drawn = responses.graded_set(task, RESPONSES_PER_PROMPT[role], rng)
            true_scores = [scorer.score(task.meta(), one.text).total for one in drawn]
            yield {
                "messages": list(task.messages),
                "responses": [one.text for one in drawn],
                "scores": judge(true_scores, rng),
                "true_scores": true_scores,
                "meta": {**task.meta(), "grades": [one.grade for one in drawn]},
            }

    return draw


def _ppo(rng: random.Random, size: int) -> Iterator[Row]:
    """Prompts, each wording once, so that the held-out tenth has as many distinct ones as rows."""
    seen: set[tuple[str, ...]] = set()
    while len(seen) < size:
        task = tasks.make_task(rng)
        wording = tuple(message["content"] for message in task.messages if message["role"] == "user")
        if wording not in seen:
            seen.add(wording)
            yield {"messages": list(task.messages), "meta": task.meta()}


_ROLES: dict[str, Callable[[random.Random, int], Iterator[Row]]] = {
    "pretrain": _pretrain,
    "sft": _sft,
    "pmp": _compared("pmp"),
    "reward_model": _compared("reward_model"),
    "ppo": _ppo,
}
