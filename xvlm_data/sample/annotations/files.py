"""Writing files block by block: several processes make the text, one writes it, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from xvlm_data.errors import UserError
from xvlm_data.sample.annotations.truth import Tally

#: Below this many records a process costs more than it helps.
_RECORDS_PER_PROCESS = 100_000

Make = Callable[[int, int], "Block"]


@dataclass
class Block:
    """The text of some consecutive records, without a separator at its ends, and what they are."""

    text: bytes
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Run:
    """Records in a row.

    Attributes:
        make: makes the records from one number up to another; must be picklable.
        records: how many there are.
        size: how many make a block. What is written may depend on it.
        separator: stands between records.
    """

    make: Make
    records: int
    size: int
    separator: bytes = b","

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and last but one record of each block."""
        for first in range(0, self.records, self.size):
            yield first, min(first + self.size, self.records)


@dataclass(frozen=True)
class File:
    """A file: literal bytes and runs of records, one after the other."""

    path: Path
    pieces: Sequence[bytes | Run]

    @property
    def records(self) -> int:
        """How many records the file has."""
        return sum(piece.records for piece in self.pieces if isinstance(piece, Run))


def write_files(files: Sequence[File], workers: int, advance: Callable[[int], None]) -> Tally:
    """Write files one after the other; the bytes do not depend on ``workers``.

    Args:
        files: what to write; folders are made.
        workers: processes that make blocks.
        advance: called with the number of records written.

    Raises:
        OSError: the disk refuses.
        UserError: a process was killed.
    """
    tally = Tally()
    workers = min(workers, 1 + sum(file.records for file in files) // _RECORDS_PER_PROCESS)
    with _makers(workers) as make_all:
        made = make_all(
            (piece.make, first, stop)
            for file in files
            for piece in file.pieces
            if isinstance(piece, Run)
            for first, stop in piece.blocks()
        )
        for file in files:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            with file.path.open("wb") as out:
                for piece in file.pieces:
                    if isinstance(piece, bytes):
                        out.write(piece)
                        continue
                    between = b""
                    for first, stop in piece.blocks():
                        block = next(made)
                        if block.text:
                            out.write(between)
                            out.write(block.text)
                            between = piece.separator
                        tally.merge(block.tally)
                        advance(stop - first)
    return tally


_Job = tuple[Make, int, int]


@contextmanager
def _makers(workers: int) -> Iterator[Callable[[Iterator[_Job]], Iterator[Block]]]:
    if workers < 2:
        yield lambda jobs: (make(first, stop) for make, first, stop in jobs)
        return
    import multiprocessing

    # "spawn": forking a process that has threads (a progress bar's) can lock up.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield lambda jobs: _in_order(pool, jobs, ahead=2 * workers)
    except BrokenProcessPool as error:
        raise UserError("a generating process was killed", "try --workers 1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, jobs: Iterator[_Job], ahead: int) -> Iterator[Block]:
    """Blocks in the order of their jobs; at most ``ahead`` of them wait, so memory is bounded."""
    waiting: deque[Future[Block]] = deque()
    for make, first, stop in jobs:
        waiting.append(pool.submit(make, first, stop))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
