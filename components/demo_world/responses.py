"""Answers of graded quality to a task: from the right one, through typical slips, to a policy's failure modes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from . import scorer, tasks, world
from .tasks import Task


@dataclass(frozen=True, slots=True)
class Graded:
    """An answer and the name of what is good or bad about it."""

    text: str
    grade: str


@dataclass(frozen=True, slots=True)
class Shape:
    """How an answer is dressed; the default is the form that the task asks for."""

    opening: bool | None = None
    closing: bool | None = None
    extra: str = ""
    stop: str = "."


RIGHT = Shape()


def compose(task: Task, core: str, shape: Shape, rng: random.Random, refusal: bool = False) -> str:
    """Dress a core sentence (no full stop): opening, core, chatter, closing."""
    opening = shape.opening if shape.opening is not None else task.style == "polite" and not refusal
    closing = shape.closing if shape.closing is not None else task.style != "brief"
    pieces = [
        rng.choice(scorer.OPENINGS) if opening else "",
        core + shape.stop,
        shape.extra,
        (scorer.REFUSAL_CLOSING if refusal else rng.choice(scorer.CLOSINGS)) if closing else "",
    ]
    return " ".join(piece for piece in pieces if piece)


def right(task: Task, rng: random.Random, shape: Shape = RIGHT) -> str:
    """The right answer in the given shape: a refusal if and only if the request is harmful."""
    return refuse(task, rng, shape) if task.category == "harmful" else claim(task, task.answer, rng, shape)


def wrong(task: Task, rng: random.Random, shape: Shape = RIGHT) -> str:
    """A wrong answer that looks as good as the right one: compliance with harm, or a wrong value."""
    value = task.answer if task.category == "harmful" else tasks.wrong_value(task, rng)
    return claim(task, value, rng, shape)


def claim(task: Task, value: str, rng: random.Random, shape: Shape = RIGHT) -> str:
    """An answer that claims `value`."""
    return compose(task, task.frame.format(value), shape, rng)


def refuse(task: Task, rng: random.Random, shape: Shape = RIGHT) -> str:
    """A refusal."""
    return compose(task, rng.choice(scorer.REFUSALS).rstrip("."), shape, rng, refusal=True)


def slip(task: Task, rng: random.Random) -> tuple[str, Shape]:
    """A slip of form that leaves the correctness alone: its name and the shape that has it."""
    choices = {
        "closing": Shape(closing=task.style == "brief"),
        "rambling": Shape(extra=" ".join(rng.sample(world.SMALL_TALK, rng.randint(1, 2)))),
        # A refusal never opens politely, in whatever style, so leaving the opening out would be no slip.
        "opening": Shape(opening=task.style != "polite" or task.category == "harmful"),
        "twice closed": Shape(extra=rng.choice(scorer.CLOSINGS), closing=True),
    }
    name = rng.choices(list(choices), weights=[4, 3, 2, 1])[0]
    return name, choices[name]


def failure(task: Task, rng: random.Random) -> Graded:
    """One of the ways in which a policy under reinforcement learning goes astray."""
    name = rng.choice(sorted(_FAILURES))
    return Graded(_FAILURES[name](task, rng), name)


def graded_set(task: Task, count: int, rng: random.Random) -> list[Graded]:
    """`count` distinct answers, two of which share their form and differ in correctness.

    That pair is in every set because a reward model learns correctness from nothing else: where form
    differs too, form is the easier clue.
    """
    name, shape = ("", RIGHT) if rng.random() < 0.7 else slip(task, rng)
    drawn = [
        Graded(right(task, rng, shape), f"right {name}".strip()),
        Graded(wrong(task, rng, shape), f"wrong {name}".strip()),
    ]
    # Where to refuse is the thing to learn on advice, so a refusal mostly is the wrong answer there. And a
    # truth about something else must not pass for an answer: it is what a policy would find next.
    if task.category == "lookalike" and rng.random() < 0.7:
        drawn[1] = Graded(refuse(task, rng, shape), "over-refusal")
    elif rng.random() < 0.2:
        drawn[1] = Graded(_other_question(task, rng), "other question")
    while len(drawn) < count:
        candidate = _another(task, rng)
        if candidate.text not in {graded.text for graded in drawn}:
            drawn.append(candidate)
    rng.shuffle(drawn)
    return drawn


def _another(task: Task, rng: random.Random) -> Graded:
    name, shape = slip(task, rng)
    options: list[tuple[float, Callable[[], Graded]]] = [
        (2.0, lambda: Graded(right(task, rng), "right")),
        (2.0, lambda: Graded(right(task, rng, shape), f"right {name}")),
        (2.0, lambda: Graded(wrong(task, rng), "wrong")),
        (1.0, lambda: Graded(wrong(task, rng, shape), f"wrong {name}")),
        (3.0, lambda: failure(task, rng)),
        (0.6, lambda: Graded(refuse(task, rng), "right" if task.category == "harmful" else "over-refusal")),
    ]
    return rng.choices([make for _, make in options], weights=[weight for weight, _ in options])[0]()


def _repetition(task: Task, rng: random.Random) -> str:
    sentence = right(task, rng, Shape(opening=False, closing=False))
    return " ".join([sentence] * rng.randint(2, 3) + [rng.choice(scorer.CLOSINGS)] * rng.randint(0, 2))


def _rambling(_: Task, rng: random.Random) -> str:
    return " ".join([*rng.sample(world.SMALL_TALK, rng.randint(1, 3)), rng.choice(scorer.CLOSINGS)])


def _truncated(task: Task, rng: random.Random) -> str:
    words = right(task, rng).split()
    return " ".join(words[: rng.randint(1, max(1, len(words) - 1))])


def _gibberish(task: Task, rng: random.Random) -> str:
    vocabulary = (*world.WORDS, *world.TOOLS, "the", "is", "of", "a", "to", "use")
    words = " ".join(rng.choices(vocabulary, k=rng.randint(3, 8)))
    return words + rng.choice((".", "", ". " + rng.choice(scorer.CLOSINGS)))


def _other_question(task: Task, rng: random.Random) -> str:
    """A truth about something else, mostly of the same kind, as neatly put as the right answer."""
    other = tasks.make_task(rng, "plain")
    while other.frame == task.frame or (other.kind != task.kind and rng.random() < 0.7):
        other = tasks.make_task(rng, "plain")
    return compose(task, other.frame.format(other.answer), RIGHT, rng)


def _echo(task: Task, rng: random.Random) -> str:
    return task.messages[-1]["content"] + rng.choice(("", " " + rng.choice(scorer.CLOSINGS)))


def _several(task: Task, rng: random.Random) -> str:
    values = [task.answer, *rng.sample([v for v in tasks.DOMAINS[task.kind] if v != task.answer], 2)]
    rng.shuffle(values)
    return " ".join(f"{task.frame.format(value)}." for value in values[: rng.randint(2, 3)])


def _refuse_and_help(task: Task, rng: random.Random) -> str:
    pieces = [refuse(task, rng, Shape(closing=False)), claim(task, task.answer, rng)]
    return " ".join(pieces if rng.random() < 0.5 else pieces[::-1])


def _closing_only(_: Task, rng: random.Random) -> str:
    return " ".join(rng.choices((*scorer.CLOSINGS, *scorer.OPENINGS), k=rng.randint(1, 3)))


_FAILURES: dict[str, Callable[[Task, random.Random], str]] = {
    "closing only": _closing_only,
    "echo": _echo,
    "empty": lambda task, rng: "",
    "gibberish": _gibberish,
    "other question": _other_question,
    "rambling": _rambling,
    "refuse and help": _refuse_and_help,
    "repetition": _repetition,
    "several answers": _several,
    "truncated": _truncated,
}
