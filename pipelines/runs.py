"""A run and its records: `run.json` (settings), `state.json` (how it went), the lock that says it is being run."""

import contextlib
import difflib
import fcntl
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from components.core import store
from components.core.config import Profile
from components.core.errors import UserError
from components.core.spec import work_folder
from components.launch.run import is_current
from pipelines.definitions import definition

_RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class Settings(BaseModel):
    """What decides a run; written once, when it is first started. Holds no secret."""

    model_config = ConfigDict(extra="ignore")

    run: str
    profile: Profile
    data_root: str
    created_at: float


class RunState(BaseModel):
    """How the last attempt at a run ended, or that it has begun."""

    model_config = ConfigDict(extra="ignore")

    state: Literal["running", "done", "failed", "cancelled"]
    started_at: float
    ended_at: float | None = None
    error: str = ""


class Run:
    """One run under a root. `folder` is local: the run's own place where the root is local, else scratch space."""

    def __init__(self, root: str, run: str) -> None:
        if not _RUN_ID.fullmatch(run):
            fix = "use 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"
            raise UserError(f"run id {run!r}", fix=fix)
        self.root, self.id = root, run
        self.uri = store.join(root, "runs", run)

    @property
    def folder(self) -> Path:
        return self.step_folder("any").parent

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def step_folder(self, step: str) -> Path:
        return work_folder(store.join(self.uri, step), self.id)

    def places(self) -> list[str]:
        """The steps' folders in the run, in order; of a run that has not begun, the alignment pipeline's."""
        settings = self.settings()
        profile = settings.profile if settings else Profile()
        return definition(profile).places(profile)

    def settings(self) -> Settings | None:
        """What the run was started with; None where there is no such run."""
        uri = store.join(self.uri, "run.json")
        try:
            return Settings.model_validate_json(store.read_bytes(uri)) if store.exists(uri) else None
        except ValidationError as error:
            what = "its settings are not of this version of kubealign"
            raise UserError(what, where=uri, fix="use another run id") from error

    def begin(self, profile: Profile, data_root: str) -> None:
        """Record the settings; UserError where this id was started with others."""
        known = self.settings()
        if known is not None:
            different = _differences(_flat(known.profile, known.data_root), _flat(profile, data_root))
            if different:
                what = f"run {self.id} exists with other settings: {', '.join(different)}"
                raise UserError(what, fix="choose another --run, or go on with its own settings by --resume")
            return
        settings = Settings(run=self.id, profile=profile, data_root=data_root, created_at=time.time())
        store.write_bytes(store.join(self.uri, "run.json"), settings.model_dump_json(indent=1).encode())

    def state(self) -> RunState | None:
        uri = store.join(self.uri, "state.json")
        try:
            return RunState.model_validate_json(store.read_bytes(uri)) if store.exists(uri) else None
        except ValidationError:
            return None

    def set_state(self, state: RunState) -> None:
        store.write_bytes(store.join(self.uri, "state.json"), state.model_dump_json().encode())

    def is_finished(self) -> bool:
        """Whether running it again would find every step done already; asked first, for the pipeline takes a while."""
        state = self.state()
        if state is None or state.state != "done":
            return False
        return all(is_current(store.join(self.uri, place)) for place in self.places())

    def state_name(self) -> str:
        """In one word; a run whose process was killed has no end on record and no lock."""
        state = self.state()
        if state is None:
            return "new"
        if state.state != "running":
            return state.state
        return "running" if self.locked() else "stopped"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time on this machine: two would write the same checkpoints."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                what = f"run {self.id} is being run by another process"
                raise UserError(what, where=str(self.folder), fix="wait for it, or stop it") from None
            yield

    def locked(self) -> bool:
        try:
            with (self.folder / ".lock").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False


def default_id(profile: Profile, data_root: str) -> str:
    """The same settings give the same id, so that the same command again goes on with the same run."""
    text = json.dumps([profile.model_dump(mode="json"), data_root], sort_keys=True)
    name = re.sub(r"[^a-z0-9._-]+", "-", profile.name.lower()).strip("-._") or "run"
    return f"{name[:50]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def all_runs(root: str) -> list[Run]:
    """The runs under a root, newest last."""
    path = store.local_path(root)
    if path is not None:  # a listing would walk through every checkpoint
        names = [found.parent.name for found in path.glob("runs/*/run.json")]
    else:
        opened, key = store.for_uri(store.join(root, "runs"))
        keys = [entry.key.removeprefix(f"{key}/").split("/") for entry in opened.list(key)]
        names = [parts[0] for parts in keys if parts[1:] == ["run.json"]]
    found = [(run, settings) for name in names if (run := Run(root, name)) and (settings := _readable(run))]
    return [run for run, settings in sorted(found, key=lambda pair: (_last_use(*pair), pair[0].id))]


def find(root: str, run: str | None) -> Run:
    """The run of this id, or the latest; UserError where there is none."""
    known = all_runs(root)
    if run is None:
        if not known:
            raise UserError("no runs", where=root, fix="start one with `kubealign run --profile demo`")
        return known[-1]
    for candidate in known:
        if candidate.id == run:
            return candidate
    near = difflib.get_close_matches(run, [candidate.id for candidate in known], n=1)
    raise UserError(f"no run {run}", where=root, fix=f"did you mean {near[0]}?" if near else "see `kubealign runs`")


def _readable(run: Run) -> Settings | None:
    try:
        return run.settings()
    except UserError:
        return None


def _last_use(run: Run, settings: Settings) -> float:
    state = run.state()
    return state.started_at if state else settings.created_at


def _flat(profile: Profile, data_root: str) -> dict[str, Any]:
    return {"data_root": data_root, **_flatten(profile.model_dump(mode="json"))}


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return flat


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted keys that differ. Texts about the profile decide nothing."""
    keys = sorted((old.keys() | new.keys()) - {"name", "description"})
    return [f"{key} ({_short(old.get(key))} -> {_short(new.get(key))})" for key in keys if old.get(key) != new.get(key)]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
