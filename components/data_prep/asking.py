"""The same question about many texts to a chat model behind an endpoint; every answer is kept at once.

A step that was stopped goes on from its answers; what was left without one is asked about again then.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from components.core.endpoint import ChatClient, Stopped, Unanswered
from components.core.errors import Cancelled, RetryableError, UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Question(Generic[T]):
    """What is asked about a text, and how the answer is read. `read` gives None for nonsense."""

    instruction: str
    reminder: str
    """Added when the first answer was nonsense."""
    read: Callable[[str], T | None]
    left: str
    """What a text without an answer is, such as "untagged"."""
    limit: str
    """The option that says how many of them may be so."""


class Questions(Generic[T]):
    """`counts` says what became of the texts: answered, asked_again, <left>_unreachable, _refused, _nonsense."""

    def __init__(
        self, question: Question[T], client: ChatClient, cache: Path, max_left_ratio: float, max_characters: int
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._question, self._client, self._cache = question, client, cache
        self._max_ratio, self._max_characters = max_left_ratio, max_characters
        self._answers = Answers(cache, question.read)
        self._lock = threading.Lock()
        self._given = self._unreachable_in_a_row = 0

    def ask(self, texts: list[str]) -> list[T | None]:
        """Raises an error when more than the limit of all texts given so far has no answer, or the server is gone.

        What was answered by then is kept.
        """
        self._given += len(texts)
        instruction, model = self._question.instruction, self._client.endpoint.model
        keys = [answer_key(instruction, model, text) for text in texts]
        asked = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._answers.read}
        todo = iter(asked.items())
        stop = self._client.stop
        stop.clear()

        def work() -> None:
            try:
                while not stop.is_set():
                    with self._lock:
                        key, text = next(todo, ("", ""))
                    if not key:
                        return
                    self._one(key, text)
            except Stopped:
                return

        threads = self._client.endpoint.concurrency
        with ThreadPoolExecutor(threads) as pool:
            try:
                for worker in wait([pool.submit(work) for _ in range(threads)], return_when=FIRST_EXCEPTION).done:
                    worker.result()
                if stop.is_set():
                    raise Cancelled("stopped while a model was asked", where=str(self._cache), fix="its answers stay")
            finally:
                stop.set()
        return [self._answers.read.get(key) for key in keys]

    def _one(self, key: str, text: str) -> None:
        try:
            answer, value = self._answer(text[: self._max_characters])
        except Unanswered as unanswered:
            with self._lock:
                self._leave(unanswered)
            return
        with self._lock:
            self._unreachable_in_a_row = 0
            self.counts["answered"] += 1
            self._answers.keep(key, answer, value)

    def _answer(self, text: str) -> tuple[str, T]:
        for instruction in (self._question.instruction, f"{self._question.instruction} {self._question.reminder}"):
            if instruction != self._question.instruction:
                with self._lock:
                    self.counts["asked_again"] += 1
            answer = self._client.ask(instruction, text)
            value = self._question.read(answer)
            if value is not None:
                return answer, value
        raise Unanswered("nonsense", "it was not what was asked for")

    def _leave(self, unanswered: Unanswered) -> None:
        left = self._question.left
        self.counts[f"{left}_{unanswered.cause}"] += 1
        self._unreachable_in_a_row = self._unreachable_in_a_row + 1 if unanswered.cause == "unreachable" else 0
        causes = {name: self.counts[f"{left}_{name}"] for name in ("unreachable", "refused", "nonsense")}
        is_gone = self._unreachable_in_a_row > 2 * self._client.endpoint.concurrency
        if not is_gone and sum(causes.values()) <= self._max_ratio * self._given:
            return
        told = ", ".join(f"{number} {name}" for name, number in causes.items() if number)
        what = f"of {self._given} texts these stay {left}: {told} (last: {unanswered.detail})"
        kept = f"the answers so far are kept in {self._cache}"
        where = self._client.endpoint.url
        if is_gone or 2 * causes["unreachable"] >= sum(causes.values()):
            raise RetryableError(what, where=where, fix=f"{kept}; try again when the endpoint is well")
        raise UserError(what, where=where, fix=f"{kept}; take another model or raise {self._question.limit}")


def answer_key(instruction: str, model: str, text: str) -> str:
    """What an answer depends on."""
    return hashlib.sha256(json.dumps([instruction, model, text]).encode()).hexdigest()[:32]


class Answers(Generic[T]):
    """Answers in a JSONL file, a line each as it comes. A line that does not hold one that can be read, such as a torn
    last one, is as good as none."""

    def __init__(self, path: Path, read: Callable[[str], T | None]) -> None:
        self.read: dict[str, T] = {}
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        last = b"\n"
        with path.open("ab+") as file:
            file.seek(0)
            for last in file:
                try:
                    line = json.loads(last)
                    key, answer = line["key"], line["answer"]
                except (ValueError, LookupError, TypeError):
                    continue
                value = read(answer) if isinstance(key, str) and isinstance(answer, str) else None
                if value is not None:
                    self.read[key] = value
            if not last.endswith(b"\n"):
                file.write(b"\n")

    def keep(self, key: str, answer: str, value: T) -> None:
        self.read[key] = value
        with self._path.open("ab") as file:
            file.write(json.dumps({"key": key, "answer": answer}).encode() + b"\n")


def read_json(answer: str) -> Any:
    """The JSON value that an answer is; None for anything else.

    What models like to put around it is taken off: their thoughts, and a fence of Markdown.
    """
    text = answer.rpartition("</think>")[2].strip()
    text = re.sub(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", r"\1", text, flags=re.DOTALL)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
