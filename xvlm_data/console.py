"""How our commands talk to a person: progress bars and tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

#: Progress and notes go to standard error, so that standard output holds the answer alone.
#: Without markup: paths, captions and names may hold anything in brackets.
stderr = Console(stderr=True, highlight=False, markup=False)
stdout = Console(highlight=False, markup=False)

Advance = Callable[[int], None]


def say(line: str) -> None:
    """A line of the answer that is not broken, so that paths in it can be copied."""
    stdout.print(line, soft_wrap=True)


def plain_table(title: str, *columns: tuple[str, JustifyMethod]) -> Table:
    """A table without lines, of (name, justification) columns."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for name, justify in columns:
        table.add_column(name, justify=justify)
    return table


def print_whole(console: Console, table: Table) -> None:
    """Print a table without cutting numbers or names off, however narrow the terminal is."""
    needed = Measurement.get(console, console.options.update(width=1000), table).maximum
    width, console.width = console.width, max(console.width, needed)
    console.print(table, crop=False)
    console.width = width


class _Rate(ProgressColumn):
    """Items a second, in the stage's own unit."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "")


class Bars:
    """Bars with rate and ETA on a terminal; nothing where nobody watches."""

    def __init__(self, console: Console = stderr, *, quiet: bool = False) -> None:
        self._console = console
        # CI services may force colours, which makes a log look like a terminal.
        self._off = quiet or not console.is_terminal or "CI" in os.environ

    @contextmanager
    def reading(self, name: str, size: int) -> Iterator[Advance]:
        """A bar in bytes for a file."""
        columns = (DownloadColumn(), TransferSpeedColumn())
        with self._bar(f"reading {name}", size, columns, "bytes") as advance:
            yield advance

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        """A bar in items for a stage; a spinner where the end is not known."""
        with self._bar(name, total, (MofNCompleteColumn(), _Rate()), unit) as advance:
            yield advance

    @contextmanager
    def _bar(
        self, name: str, total: int | None, columns: tuple[ProgressColumn, ...], unit: str
    ) -> Iterator[Advance]:
        described = TextColumn("{task.description}", markup=False)
        shown: tuple[ProgressColumn, ...] = (SpinnerColumn(), described)
        if total is not None:
            shown = (*shown, BarColumn(), *columns, TimeRemainingColumn())
        shown = (*shown, TimeElapsedColumn())
        with Progress(*shown, console=self._console, disable=self._off) as progress:
            task = progress.add_task(name, total=total, unit=unit)
            yield lambda count: progress.update(task, advance=count)
