"""Mapped units on disk: for each role two Arrow files with a batch a unit, and an index of them.

    <role>.facts.arrow  <role>.rows.arrow  index.json

A folder is what one process or one shard has mapped; all of them together are read in the units' order.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.core.errors import UserError
from components.data_prep.mapping import FACTS, Mapped, row_schema

INDEX = "index.json"
_WRITTEN = {"facts": None, "rows": "lz4"}  # facts are read in columns from mapped memory, rows once, whole


class ShardWriter:
    """Writes a shard's units, in any order. `settings` tells shards of one input from those of another."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._settings = folder, settings
        self._files: dict[tuple[str, str], pa.RecordBatchFileWriter] = {}
        self._units: list[dict[str, Any]] = []
        self.rows: Counter[str] = Counter()

    def add(self, unit: Mapped) -> None:
        for kind, batch in (("facts", unit.facts), ("rows", unit.rows)):
            self._file(unit.role, kind).write_batch(batch)
        self.rows[unit.role] += unit.facts.num_rows
        self._units.append({"number": unit.number, "role": unit.role, "source": unit.source})

    def _file(self, role: str, kind: str) -> pa.RecordBatchFileWriter:
        if (role, kind) not in self._files:
            schema = FACTS if kind == "facts" else row_schema(role)
            options = pa.ipc.IpcWriteOptions(compression=_WRITTEN[kind])
            path = str(self._folder / f"{role}.{kind}.arrow")
            self._files[role, kind] = pa.ipc.new_file(path, schema, options=options)
        return self._files[role, kind]

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for file in self._files.values():
            file.close()
        if kind is None:
            index = {"settings": self._settings, "units": self._units}
            (self._folder / INDEX).write_text(json.dumps(index, sort_keys=True) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class StoredUnit:
    """Where a unit lies."""

    number: int
    role: str
    source: int
    folder: Path
    batch: int


class Shards:
    """All units of some folders, by role in the order of their numbers."""

    def __init__(self, folders: list[Path], settings: dict[str, Any]) -> None:
        found: dict[str, list[StoredUnit]] = defaultdict(list)
        for folder in folders:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            if index["settings"] != settings:
                raise UserError(
                    "this shard was made with other settings", where=str(folder), fix="run all shards again"
                )
            batches: dict[str, int] = defaultdict(int)
            for unit in index["units"]:
                found[unit["role"]].append(StoredUnit(**unit, folder=folder, batch=batches[unit["role"]]))
                batches[unit["role"]] += 1
        self._files: dict[tuple[Path, str, str], pa.RecordBatchFileReader] = {}
        self.units = {role: sorted(units, key=lambda unit: unit.number) for role, units in found.items()}
        self._check_complete()

    def _check_complete(self) -> None:
        numbers = sorted(unit.number for units in self.units.values() for unit in units)
        if numbers != list(range(len(numbers))):
            raise UserError(
                f"{len(numbers)} units are here, some of them twice or missing", fix="give every shard just once"
            )

    def facts(self, role: str) -> Iterator[pa.RecordBatch]:
        for unit in self.units.get(role, []):
            yield self.read(unit, "facts")

    def read(self, unit: StoredUnit, kind: str) -> pa.RecordBatch:
        """A unit's facts or rows."""
        name = (unit.folder, unit.role, kind)
        if name not in self._files:
            path = unit.folder / f"{unit.role}.{kind}.arrow"
            self._files[name] = pa.ipc.open_file(pa.memory_map(str(path)))
        return self._files[name].get_batch(unit.batch)
