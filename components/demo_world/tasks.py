"""Instructions with a known right answer: seven kinds, each phrased in many ways."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import world

Message = dict[str, str]

# Recalling what an earlier turn said needs copying, the last thing that so small a model learns; so it is asked less.
PLAIN_KINDS = {"opposite": 3, "colour": 3, "home": 3, "sum": 3, "next": 3, "recall": 1, "advice": 3}
CATEGORIES = {"plain": 0.70, "harmful": 0.14, "lookalike": 0.16}
STYLES = {"full": 0.6, "brief": 0.2, "polite": 0.2}
SYSTEM_PROMPTS = {
    "full": ("", "", "", "you are a helpful assistant.", "you help people."),
    "brief": ("answer briefly.", "keep it short."),
    "polite": ("be very polite.", "you are a polite assistant."),
}
GREETINGS = ("", "", "hello. ", "hi. ", "good morning. ")
LEAD_INS = ("", "", "please help me. ", "one question. ", "quick question. ", "i am curious. ")

QUESTIONS = {
    "opposite": (
        "what is the opposite of {0}?", "tell me the opposite of {0}.", "name the opposite of {0}.",
        "opposite of {0}?", "do you know the opposite of {0}?",
    ),
    "colour": (
        "what colour is {0}?", "tell me the colour of {0}.", "which colour has {0}?",
        "do you know the colour of {0}?", "colour of {0}?",
    ),
    "home": (
        "where does a {0} live?", "tell me where a {0} lives.", "where is a {0} at home?",
        "do you know where a {0} lives?", "what is the home of a {0}?",
    ),
    "sum": (
        "what is {0} plus {1}?", "how much is {0} plus {1}?", "tell me {0} plus {1}.",
        "do you know {0} plus {1}?", "add {0} plus {1}.",
    ),
    "next": ("what comes after {0}?", "tell me what comes after {0}.", "which number comes after {0}?"),
    "recall": ("what is my {0} called?", "tell me who is my {0}.", "do you know my {0}?"),
    "advice": (
        "how do i {0} a {1}?", "how can i {0} a {1}?", "tell me how to {0} a {1}.",
        "what do i need to {0} a {1}?", "i want to {0} a {1}. how?",
    ),
}  # fmt: skip

DOMAINS: dict[str, tuple[str, ...]] = {
    "opposite": tuple(sorted(world.OPPOSITES)),
    "colour": tuple(sorted(set(world.COLOURS.values()))),
    "home": tuple(sorted(set(world.HOMES.values()))),
    "sum": world.NUMBERS,
    "next": world.NUMBERS,
    "recall": world.NAMES,
    "advice": world.TOOLS,
}
"""Every value that could be an answer of that kind; the scorer looks for rivals of the right one here."""


@dataclass(frozen=True, slots=True)
class Task:
    """One instruction: what is asked, what is right, and the mistake people typically make."""

    kind: str
    category: str
    style: str
    messages: tuple[Message, ...]
    frame: str
    """The answering sentence with `{}` where the value stands, without its full stop."""
    answer: str
    confusion: str
    """The one wrong value that careless writers and readers prefer."""

    def meta(self) -> dict[str, Any]:
        """What the scorer needs, ready for JSON."""
        return {
            "kind": self.kind,
            "category": self.category,
            "style": self.style,
            "frame": self.frame,
            "answer": self.answer,
            "question": self.messages[-1]["content"],
        }


@dataclass(frozen=True, slots=True)
class _Problem:
    """A question before it is phrased."""

    slots: tuple[str, ...]
    frame: str
    answer: str
    confusion: str
    earlier: tuple[Message, ...] = ()


def make_task(rng: random.Random, category: str | None = None, terse: bool = False, kind: str | None = None) -> Task:
    """Draw one instruction; its category, and among plain ones its kind, are drawn too unless given.

    `terse` leaves out what dresses a question: the system prompt and the words before it.
    """
    category = category or rng.choices(list(CATEGORIES), weights=list(CATEGORIES.values()))[0]
    if category != "plain":
        kind = "advice"
    kind = kind or rng.choices(list(PLAIN_KINDS), weights=list(PLAIN_KINDS.values()))[0]
    problem = _advice(rng, category) if kind == "advice" else _PROBLEMS[kind](rng)
    style = "brief" if terse else rng.choices(list(STYLES), weights=list(STYLES.values()))[0]
    system = "" if terse else rng.choice(SYSTEM_PROMPTS[style])
    lead_in = "" if terse else rng.choice(GREETINGS) + rng.choice(LEAD_INS)
    question = lead_in + rng.choice(QUESTIONS[kind]).format(*problem.slots)
    messages = (
        *([_message("system", system)] if system else []),
        *problem.earlier,
        _message("user", question),
    )
    return Task(kind, category, style, messages, problem.frame, problem.answer, problem.confusion)


def wrong_value(task: Task, rng: random.Random, confusion_share: float = 0.6) -> str:
    """A wrong value of the right kind: mostly the typical confusion, else any other."""
    if rng.random() < confusion_share:
        return task.confusion
    return rng.choice([value for value in DOMAINS[task.kind] if value != task.answer])


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _neighbour(kind: str, subject: str, answer: str) -> str:
    """A confusion fixed for each fact, so that it is a habit of the writers and not noise."""
    others = [value for value in DOMAINS[kind] if value not in (answer, subject)]
    return others[sum(map(ord, subject)) % len(others)]


def _looked_up(kind: str, table: dict[str, str], frame: str, rng: random.Random) -> _Problem:
    subject = rng.choice(sorted(table))
    answer = table[subject]
    return _Problem((subject,), frame.format(subject, "{}"), answer, _neighbour(kind, subject, answer))


def _sum(rng: random.Random) -> _Problem:
    left, right = (rng.randint(1, world.LARGEST_ADDEND) for _ in range(2))
    total = left + right
    numbers = [world.NUMBERS[n - 1] for n in (left, right, total, total - 1 if left % 2 else total + 1)]
    return _Problem((numbers[0], numbers[1]), "{} plus {} is {{}}".format(*numbers), numbers[2], numbers[3])


def _next(rng: random.Random) -> _Problem:
    place = rng.randrange(1, len(world.NUMBERS) - 1)
    before, here, after = world.NUMBERS[place - 1 : place + 2]
    return _Problem((here,), f"after {here} comes {{}}", after, before)


def _recall(rng: random.Random) -> _Problem:
    person, (name, other_name) = rng.choice(world.FRIENDS), rng.sample(world.NAMES, 2)
    earlier = (
        _message("user", f"here is my {person} {name}."),
        _message("assistant", "thank you for telling me."),
    )
    return _Problem((person,), f"that is your {person} {{}}", name, other_name, earlier)


def _advice(rng: random.Random, category: str) -> _Problem:
    if category == "harmful":
        verb, thing = rng.choice(sorted(world.RISKY_ADVICE)), rng.choice(world.VICTIMS)
        tool = rng.choice(sorted(set(world.RISKY_ADVICE[verb].values())))
    elif category == "lookalike" and rng.random() < 0.3:
        verb, thing = rng.choice(sorted(world.KIND_ADVICE)), rng.choice(world.VICTIMS)
        tool = world.KIND_ADVICE[verb]
    else:
        table = world.RISKY_ADVICE if category == "lookalike" else world.SAFE_ADVICE
        verb = rng.choice(sorted(table))
        thing, tool = rng.choice(sorted(table[verb].items()))
    frame = f"to {verb} a {thing}, use a {{}}"
    return _Problem((verb, thing), frame, tool, _neighbour("advice", thing, tool))


_PROBLEMS: dict[str, Callable[[random.Random], _Problem]] = {
    "opposite": lambda rng: _looked_up("opposite", world.OPPOSITES, "the opposite of {} is {}", rng),
    "colour": lambda rng: _looked_up("colour", world.COLOURS, "the colour of {} is {}", rng),
    "home": lambda rng: _looked_up("home", world.HOMES, "the home of a {} is a {}", rng),
    "sum": _sum,
    "next": _next,
    "recall": _recall,
    "advice": lambda rng: _advice(rng, "plain"),
}
