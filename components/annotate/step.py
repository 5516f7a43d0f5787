"""The step, in one of four modes:

export   tasks for annotators                                             -> tasks/
import   annotators' results: spam checks, agreement, mean scores         -> scored/
judge    an AI judge answers in their place                               -> scored/
demo     export, the demo world's annotators, and the import of theirs    -> tasks/, results/, scored/

scored/scored.jsonl   rows of data_prep's `scored_responses`, by prompt id
scored/report.json    counts, agreement, spam, cost
scored/rejected.jsonl every answer that does not count, with its rule
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

from components.annotate import argilla, demo, label_studio, spam
from components.annotate.files import (
    Row,
    prompts_of,
    read_lines,
    read_producers,
    read_results,
    write_files,
    write_lines,
)
from components.annotate.judge import Judged, judge, question
from components.annotate.report import figures
from components.annotate.results import Answer, Results, collect
from components.annotate.tasks import GUIDELINE, Plan, Sampled, Task, make_tasks, one_each
from components.core import store
from components.core.config import AnnotateConfig
from components.core.endpoint import ChatClient, Endpoint
from components.core.errors import UserError
from components.core.records import Rejected
from components.core.step import Step

log = logging.getLogger(__name__)
TOOLS: dict[str, ModuleType] = {"label_studio": label_studio, "argilla": argilla}
JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class World:
    """What every mode starts from. `rows` are those of sample_responses, by prompt id."""

    plan: Plan
    prompts: list[Sampled]
    rows: dict[str, Row]
    tasks: list[Task]
    refused: list[Rejected]
    tool: ModuleType


def work(step: Step) -> None:
    """Inputs: `responses`; for the record of who wrote what `producers`; for an import `results`."""
    config: AnnotateConfig = step.config
    world = read_world(step)
    modes: dict[str, Callable[[Step, World, Path], dict[str, Any]]] = {
        "export": export, "import": import_, "judge": judged, "demo": demonstrate,
    }  # fmt: skip
    folder = step.scratch("output")
    metrics = modes[config.mode](step, world, folder)
    step.finish({path.name: path for path in sorted(folder.iterdir())}, metrics)


def read_world(step: Step) -> World:
    """The tasks are made anew from the same rows and plan, in whatever mode; so are their ids."""
    config: AnnotateConfig = step.config
    plan = Plan(
        annotators=config.annotators, overlap=config.overlap, overlap_share=config.overlap_share,
        highest=config.highest, guideline=config.guideline or GUIDELINE, seed=step.spec.seed,
    )  # fmt: skip
    rows = list(read_lines(step.input("responses") / "responses.jsonl"))
    known = step.has_input("producers") and config.mode != "export"
    prompts = prompts_of(rows, read_producers(step.input("producers")) if known else {})
    tasks, refused = make_tasks(prompts, plan)
    if not tasks:
        raise UserError("no prompt makes a task", where="responses", fix="sample more responses")
    return World(plan, prompts, {str(row["id"]): row for row in rows}, tasks, refused, TOOLS[config.tool])


def export(step: Step, world: World, folder: Path) -> dict[str, Any]:
    """Blind tasks, a folder a project of the tool."""
    files: dict[str, str] = world.tool.files(world.tasks, world.plan)
    write_files(folder / "tasks", files)
    return {"tasks": len(world.tasks), "prompts": len(world.rows), "refused": len(world.refused)}


def import_(step: Step, world: World, folder: Path) -> dict[str, Any]:
    """What people answered. While they have not, the tasks are there and the step says where what goes."""
    uri = step.spec.inputs.get("results", "")
    found = read_results(uri) if uri else []
    if not found:
        tasks = step.scratch("tasks")
        export(step, world, tasks)
        place, _ = step.publish(tasks / "tasks", "tasks")
        what = "no results of annotators yet" if uri else "no input results was given"
        fix = f"hand out the tasks in {place}, put there what {step.config.tool} exports, and start again"
        raise UserError(what, where=uri or "annotate", fix=fix)
    return import_files(step, world, folder, found)


def import_files(step: Step, world: World, folder: Path, files: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    given = [answer for name, content in files for answer in _answers(world, name, content)]
    results, reports = counted(world.tasks, given, step.config)
    return write_scored(folder / "scored", world, results, figures(results, by_id(world.tasks), reports))


def _answers(world: World, name: str, content: bytes) -> Iterator[Answer | Rejected]:
    try:
        yield from world.tool.answers(content, world.tasks, world.plan)
    except UserError as error:
        raise UserError(str(error.args[0]), where=name, fix=error.fix) from None


def counted(
    tasks: Sequence[Task], given: Sequence[Answer | Rejected], config: AnnotateConfig
) -> tuple[Results, dict[str, spam.Report]]:
    """The answers that count, and everybody's spam report: with `exclude_flagged` of those, too, whom it leaves out."""
    results = collect(tasks, given, config.excluded)
    reports = spam.check(results.answers, by_id(tasks))
    flagged = {name for name, report in reports.items() if report.flags}
    for name in sorted(flagged):
        log.warning("annotator %s: %s", name, ", ".join(reports[name].flags))
    if flagged and config.exclude_flagged:
        results = collect(tasks, given, {*config.excluded, *flagged})
    return results, reports


def judged(step: Step, world: World, folder: Path) -> dict[str, Any]:
    """Every prompt once. Verdicts are kept in the step's journal, whatever becomes of the rest."""
    config: AnnotateConfig = step.config
    wanted = config.judge
    if not wanted.url or not wanted.model:
        raise UserError("no judge", where="annotate.judge", fix="give annotate.judge.url and annotate.judge.model")
    endpoint = Endpoint(
        url=wanted.url, model=wanted.model, key_variable=wanted.key_variable, concurrency=wanted.concurrency,
        timeout_seconds=wanted.timeout_seconds, attempts=wanted.attempts,
        longest_wait_seconds=wanted.longest_wait_seconds,
    )  # fmt: skip
    tasks = one_each(world.tasks)
    journal, kept = step.work / JOURNAL, store.join(step.spec.output, JOURNAL)
    elsewhere = store.local_path(step.spec.output) is None
    if elsewhere and store.exists(kept):
        journal.write_bytes(store.read_bytes(kept))
    try:
        found = judge(tasks, world.plan, ChatClient(endpoint), journal, wanted.max_failed_share)
    finally:
        if elsewhere and journal.exists():
            store.write_bytes(kept, journal.read_bytes())
    results, reports = counted(tasks, [*found.answers, *found.rejected], config)
    shown = figures(results, by_id(tasks), reports)
    shown["judge"] = {"model": wanted.model, "pairs": found.pairs, "inconsistent": found.inconsistent}
    shown["cost"] |= _questions(tasks, found)
    return write_scored(folder / "scored", world, results, shown)


def _questions(tasks: Sequence[Task], found: Judged) -> dict[str, int]:
    """Questions with a verdict, of all attempts at the step, and their characters: what an endpoint bills by."""
    answered = {answer.task for answer in found.answers}
    asked = [
        question(task, *order)
        for task in tasks
        if task.id in answered
        for pair in combinations(range(len(task.order)), 2)
        for order in (pair, pair[::-1])
    ]
    return {"questions": len(asked), "question_characters": sum(map(len, asked))}


def demonstrate(step: Step, world: World, folder: Path) -> dict[str, Any]:
    """The whole round trip with nobody: out in the tool's files, answered in its format, and in again."""
    from components.demo_world.scorer import score

    truth: dict[str, list[float]] = {}
    for prompt in world.prompts:
        meta = world.rows[prompt.id].get("meta", {})
        if "frame" not in meta:
            what = f"prompt {prompt.id} is not of the demo world, so nobody knows how good its responses are"
            raise UserError(what, where="annotate.mode", fix="choose export, import or judge")
        truth[prompt.id] = [score(meta, response.text).total for response in prompt.responses]
    export(step, world, folder)
    files = demo.exported(demo.answers(world.tasks, truth, world.plan), world.tasks, step.config.tool)
    write_files(folder / "results", files)
    for row in world.rows.values():
        row["true_scores"] = truth[str(row["id"])]
    return import_files(step, world, folder, [(name, text.encode()) for name, text in sorted(files.items())])


def write_scored(folder: Path, world: World, results: Results, shown: dict[str, Any]) -> dict[str, Any]:
    """Rows, report and rejected answers; returns the report's figures."""
    if not results.rows:
        what = f"no answer counts ({json.dumps(results.counts)})"
        raise UserError(what, where="annotate", fix="see annotate's README for the rules")
    folder.mkdir(parents=True)
    results.rejected += world.refused
    write_lines(folder / "scored.jsonl", (_with_meta(row, world.rows) for row in results.rows))
    write_lines(folder / "rejected.jsonl", map(vars, results.rejected))
    (folder / "report.json").write_text(json.dumps(shown, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    log.info("annotate: %s", json.dumps(shown["counts"]))
    return shown


def _with_meta(row: Row, rows: Mapping[str, Row]) -> Row:
    """With what was known of the prompt before, and the true scores where there are some."""
    source = rows[row["meta"]["prompt"]]
    truth = {"true_scores": source["true_scores"]} if "true_scores" in source else {}
    return {**row, **truth, "meta": {**source.get("meta", {}), **row["meta"]}}


def by_id(tasks: Sequence[Task]) -> dict[str, Task]:
    return {task.id: task for task in tasks}
