"""Show a run's progress: a table that stays in place on a terminal, lines where output is piped."""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipelines.progress import StepView, duration

_LINE_SECONDS = 10.0
_STYLES = {
    "running": "bold cyan",
    "done": "green",
    "skipped": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "waiting": "dim",
}
_WORDS = {"skipped": "already done"}


class Display(Protocol):
    def update(self, views: list[StepView]) -> None: ...


@contextlib.contextmanager
def display(console: Console) -> Iterator[Display]:
    """The display that fits where `console` writes to."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=False) as live:
            yield _Table(live)
    else:
        yield Lines(console)


class _Table:
    def __init__(self, live: Live) -> None:
        self._live = live

    def update(self, views: list[StepView]) -> None:
        table = Table(box=None, pad_edge=False)
        table.add_column("step", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("progress")
        for view in views:
            style = _STYLES[view.state]
            took = duration(view.seconds) if view.seconds is not None and view.state != "skipped" else ""
            table.add_row(view.step, f"[{style}]{_WORDS.get(view.state, view.state)}[/]", took, view.detail)
        self._live.update(table)


class Lines:
    """One line at each change of a step's state, and one now and then for the step that runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[str, str] = {}
        self._last = 0.0

    def update(self, views: list[StepView]) -> None:
        for view in views:
            if view.state != self._states.get(view.step, "waiting"):
                self._states[view.step] = view.state
                took = f" after {duration(view.seconds or 0)}" if view.state in ("done", "failed", "cancelled") else ""
                self._say(f"{view.step}: {_WORDS.get(view.state, view.state)}{took}", view.detail)
            elif view.state == "running" and view.detail and time.monotonic() - self._last > _LINE_SECONDS:
                self._say(view.step, view.detail)

    def _say(self, what: str, detail: str) -> None:
        self._last = time.monotonic()
        line = f"{what}: {detail}" if detail else what
        # Whole lines for a log reader: no wrapping, no markup.
        self._console.print(f"{time.strftime('%H:%M:%S')} {line}", soft_wrap=True, markup=False, highlight=False)
        self._console.file.flush()
