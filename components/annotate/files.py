"""What goes in and out of the step as files: sampled responses, who wrote them, annotators' results."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from components.annotate.tasks import Sampled, sampled
from components.core import store
from components.core.errors import UserError
from components.core.store_manifest import MANIFEST

Row = dict[str, Any]
Producers = Mapping[tuple[str, str], tuple[str, str]]
"""(prompt id, response id): (model, strategy)."""


def read_lines(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON lines. Raises UserError naming the line that is none."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    fix = "make it again with sample_responses"
                    raise UserError("not a JSON object", where=f"{path}:{number}", fix=fix)
                yield row
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), fix="give the output of sample_responses") from None


def read_producers(folder: Path) -> Producers:
    """Who wrote the responses that were kept."""
    rows = read_lines(folder / "producers.jsonl")
    return {(row["prompt"], row["response"]): (row["model"], row["strategy"]) for row in rows if row["fate"] == "kept"}


def prompts_of(rows: Iterable[Row], producers: Producers) -> list[Sampled]:
    """The rows as prompts. Who wrote what is put in for the import alone; nothing exported has it."""
    found = []
    for row in rows:
        prompt, _ = str(row.get("id")), row.get("responses")
        responses = []
        for response in row.get("responses", ()):
            model, strategy = producers.get((prompt, str(response.get("id"))), ("", ""))
            responses.append({**response, "model": model, "strategy": strategy} if model else response)
        found.append(sampled({**row, "responses": responses}))
    return found


def read_results(uri: str) -> list[tuple[str, bytes]]:
    """(name, content) of every JSON file of annotators' results: one file, or all in a folder, by name."""
    place, key = store.for_uri(uri)
    if key and place.exists(key):
        return [(uri, place.get(key))]
    keys = sorted(entry.key for entry in place.list(key) if entry.key.endswith(".json"))
    return [(place.uri(key), place.get(key)) for key in keys if not key.endswith(MANIFEST)]


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
