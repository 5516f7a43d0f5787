"""Annotators' answers become one row a prompt, in the shape of data_prep's `scored_responses`.

    scores[response] = mean over the prompt's annotators (recipe.md §3.2), floats kept

Which answers are given first, or twice, changes nothing. Every answer that does not count is a rejected row.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime
from typing import Any

from components.annotate.tasks import Sampled, Task
from components.core.records import Rejected

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one annotator says of one task. `scores` are in the order shown; none where `fault` says why it is none."""

    task: str
    annotator: str
    scores: tuple[float, ...] = ()
    fault: str = ""
    updated: float = 0.0
    """When it was last changed, in seconds since 1970 (UTC); 0 where the tool does not say."""
    seconds: float | None = None
    """Time that it took, where the tool measures one."""
    source: str = ""
    """The tool."""
    place: str = ""
    """Where it lies there, by the tool's own ids: the same in every export."""


@dataclass
class Results:
    """`rows` by prompt id; `answers` that count, gold ones too; `unanswered` ids of tasks that nobody has done."""

    rows: list[Row] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Rejected answers by rule, and what came out."""
        of = Counter(row.rule for row in self.rejected)
        totals = {"rows": len(self.rows), "answers": len(self.answers), "unanswered": len(self.unanswered)}
        return {rule: of[rule] for rule in sorted(of)} | totals


def collect(tasks: Iterable[Task], given: Iterable[Answer | Rejected], excluded: Collection[str] = ()) -> Results:
    """Everything that any number of exports say of these tasks. Answers of `excluded` annotators do not count.

    An annotator counts once a prompt, with the latest answer, be it that the task is skipped: earlier answers to the
    task are `superseded`, those in another slot are `seen_before`.
    """
    known = {task.id: task for task in tasks}
    results = Results()
    answers: dict[tuple[str, str], list[Answer]] = {}
    for one in {astuple(one): one for one in given}.values():
        if isinstance(one, Rejected):
            results.rejected.append(one)
        elif one.task not in known:
            results.rejected.append(rejected(one, "unknown_task"))
        else:
            answers.setdefault((known[one.task].prompt.id, one.annotator), []).append(one)
    for history in answers.values():
        *earlier, last = sorted(history, key=lambda answer: (answer.updated, answer.place, answer.scores))
        for answer in earlier:
            results.rejected.append(rejected(answer, "superseded" if answer.task == last.task else "seen_before"))
        fault = last.fault or _fault(last, known[last.task], excluded)
        results.rejected += [rejected(last, fault)] if fault else []
        results.answers += [] if fault else [last]
    results.answers.sort(key=lambda answer: (answer.task, answer.annotator))
    results.rejected.sort(key=lambda row: (row.rule, row.source, row.place, row.row))
    results.unanswered = sorted(known.keys() - {answer.task for answer in results.answers})
    results.rows = _rows(known, results.answers)
    return results


def rejected(answer: Answer, rule: str) -> Rejected:
    row = {"task": answer.task, "annotator": answer.annotator, "scores": answer.scores, "updated": answer.updated}
    return Rejected(role="annotate", source=answer.source, place=answer.place, rule=rule, row=json.dumps(row))


def timestamp(text: object) -> float:
    """ISO 8601, in UTC where no offset is given, as seconds since 1970; 0 for anything else."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return 0.0
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def rating(value: object, highest: int) -> float | None:
    """A score of the plan's scale, 1 to `highest`; None for anything else. Argilla and Label Studio give numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= highest:
        return None
    return float(value)


def scores_or_fault(values: Mapping[str, object], names: Sequence[str], highest: int) -> tuple[tuple[float, ...], str]:
    """(the scores of these questions, "") or ((), why there are none)."""
    if any(values.get(name) is None for name in names):
        return (), "incomplete"
    scores = [rating(values[name], highest) for name in names]
    return ((), "bad_score") if None in scores else (tuple(score for score in scores if score is not None), "")


def _fault(answer: Answer, task: Task, excluded: Collection[str]) -> str:
    if answer.annotator in excluded:
        return "excluded_annotator"
    if len(answer.scores) != len(task.order):
        return "score_count"
    return "" if all(math.isfinite(score) for score in answer.scores) else "bad_score"


def _rows(known: Mapping[str, Task], answers: Iterable[Answer]) -> list[Row]:
    judged: dict[str, tuple[Sampled, list[list[float]]]] = {}
    for answer in answers:
        task = known[answer.task]
        if task.prompt.gold is None:
            judged.setdefault(task.prompt.id, (task.prompt, []))[1].append(task.unshuffled(answer.scores))
    return [_row(*judged[prompt_id]) for prompt_id in sorted(judged)]


def _row(prompt: Sampled, by_annotator: list[list[float]]) -> Row:
    """`fsum` is exact, so the mean does not depend on the order of the annotators."""
    number = len(by_annotator)
    return {
        "messages": list(prompt.messages),
        "responses": [response.text for response in prompt.responses],
        "scores": [math.fsum(scores) / number for scores in zip(*by_annotator, strict=True)],
        "meta": {
            "prompt": prompt.id,
            "annotators": number,
            "response_ids": [response.id for response in prompt.responses],
            "models": [response.model for response in prompt.responses],
            "strategies": [response.strategy for response in prompt.responses],
        },
    }
