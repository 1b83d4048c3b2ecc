"""How far a download is: rows and megabytes a second, the share that arrives, and until when."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from xvlm_data.console import stderr

_EVERY = 0.25
#: Speeds are those of the last so many seconds.
_WINDOW = 10.0


class Tally:
    """What this run has done so far.

    Attributes:
        kept: images that arrived.
        failed: by reason.
        received: bytes of bodies.
        known: rows of unfinished shards that an earlier run had got through.
    """

    def __init__(self) -> None:
        self.kept = 0
        self.failed: Counter[str] = Counter()
        self.received = self.known = 0

    @property
    def through(self) -> int:
        """Rows that are through."""
        return self.kept + self.failed.total()


@asynccontextmanager
async def shown(tally: Tally, total: int, before: int, *, quiet: bool) -> AsyncIterator[None]:
    """Show a tally on a terminal while it grows.

    Args:
        tally: filled by the run.
        total: rows in all.
        before: rows that earlier runs finished.
        quiet: show nothing.
    """
    if quiet or not stderr.is_terminal:
        yield
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr, speed_estimate_period=60) as progress:
        task = progress.add_task("downloading", total=total, completed=before, speed="")

        async def watch() -> None:
            history = [(time.monotonic(), 0, 0)]
            while True:
                await asyncio.sleep(_EVERY)
                now = time.monotonic()
                history.append((now, tally.through, tally.received))
                while len(history) > 2 and history[0][0] < now - _WINDOW:
                    history.pop(0)
                since, rows, size = history[0]
                seconds = max(now - since, 1e-6)
                progress.update(
                    task,
                    completed=before + tally.known + tally.through,
                    speed=(
                        f"{(tally.through - rows) / seconds:,.0f} rows/s "
                        f"{(tally.received - size) / seconds / 1e6:,.1f} MB/s "
                        f"{tally.kept / max(tally.through, 1):.1%} arrived"
                    ),
                )

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            progress.update(task, completed=before + tally.known + tally.through)
