"""A rank that does not move says so: where it is, since when, and with which stacks."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

#: Folder of the reports in a run's folder.
HANGS = "hangs"
#: Exit status of a rank that ended itself because it hung.
HUNG = 76
#: A rank ends itself after this many times the patience.
_LAST_STRAW = 3


class Watchdog:
    """A thread beside the training that reports when :meth:`at` was not called for too long.

    Args:
        run: the run's folder; reports go to ``hangs/rank_R.txt``.
        rank: of this process.
        patience: seconds at one place before the report; after three times that the process ends
            itself with status :data:`HUNG`, so that whoever supervises it can start it again. 0
            turns the watchdog off.
        say: tells the person at the console, on any rank.
    """

    def __init__(self, run: Path, rank: int, patience: float, say: Callable[[str], None]) -> None:
        self._path = run / HANGS / f"rank_{rank}.txt"
        self._rank, self._patience, self._say = rank, patience, say
        self._place = (0, "starting", time.monotonic())
        self._reported: tuple[int, str, float] | None = None
        self._paused = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._patience:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()

    def at(self, step: int, doing: str) -> None:
        """This rank moves: it is ``doing`` something of ``step``."""
        self._place = (step, doing, time.monotonic())

    @contextmanager
    def paused(self, step: int, doing: str) -> Iterator[None]:
        """Nothing is reported meanwhile: this may take any time."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self.at(step, doing)

    def _look(self) -> None:
        while not self._end.wait(min(10.0, self._patience / 4)):
            place = self._place
            stood = time.monotonic() - place[2]
            if self._paused or stood < self._patience:
                continue
            if self._reported != place:
                self._reported = place
                self._report(place, stood)
            if stood > _LAST_STRAW * self._patience:
                self._say(f"rank {self._rank} still stands there and ends itself")
                os._exit(HUNG)

    def _report(self, place: tuple[int, str, float], stood: float) -> None:
        step, doing, _ = place
        line = f"rank {self._rank} hangs: {stood:.0f} s in step {step}, {doing}"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")
            self._say(f"{line}; its stacks are in {self._path}")
        except OSError as error:
            self._say(f"{line}; its stacks could not be written ({error})")
            faulthandler.dump_traceback(all_threads=True)
