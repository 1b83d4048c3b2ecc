"""How our commands talk to a person: one-line errors, progress bars, tables."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click
from rich.console import Console
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
from rich.text import Text

from xvlm_data.errors import UserError

#: Progress and notes go to standard error, so that standard output holds the answer alone.
stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)

Advance = Callable[[int], None]


class _Rate(ProgressColumn):
    """Items a second, in the stage's own unit."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "")


class BuildProgress:
    """Bars with rate and ETA on a terminal; nothing where nobody watches."""

    def __init__(self, console: Console = stderr, *, quiet: bool = False) -> None:
        self._console = console
        self._off = quiet or not console.is_terminal

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
        shown: tuple[ProgressColumn, ...] = (SpinnerColumn(), TextColumn("{task.description}"))
        if total is not None:
            shown = (*shown, BarColumn(), *columns, TimeRemainingColumn())
        shown = (*shown, TimeElapsedColumn())
        with Progress(*shown, console=self._console, disable=self._off) as progress:
            task = progress.add_task(name, total=total, unit=unit)
            yield lambda count: progress.update(task, advance=count)


def run(command: click.Command, name: str, args: list[str] | None = None) -> NoReturn:
    """Run a command line; whatever goes wrong ends in one line and a non-zero status."""
    try:
        status = command.main(args=args, prog_name=name, standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Abort:
        _end("interrupted", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UserError as error:
        _end(str(error), 2)
    except OSError as error:
        _end(_explained(error), 2)


def _explained(error: OSError) -> str:
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}; free some space and run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what}; check its permissions"
    return what


def _end(message: str, status: int) -> NoReturn:
    line: Any = " ".join(message.split("\n"))
    click.echo(f"error: {line}", err=True)
    sys.exit(status)
