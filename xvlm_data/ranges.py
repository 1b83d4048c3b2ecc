"""Tasks of reading a release: a range of a raw file each, into one spill file; safe to repeat.

A range of a JSON array begins at the first element boundary after a byte; a worker guesses that
boundary by the bytes between elements, and the guess is checked against where the range before
really ended (:mod:`.reading`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from xvlm_data.image_index import ImageIndex
from xvlm_data.journal import Journal
from xvlm_data.raw.files import open_raw
from xvlm_data.raw.json_arrays import ArrayReader, Elements, find_element
from xvlm_data.raw.lines import read_lines
from xvlm_data.records import Sink, count_kinds
from xvlm_data.spill import Spill, cut_by_shard, open_spill, write_batches, write_spill
from xvlm_data.storage import AnyPath

READ_FOLDER = "read"


class Reading(NamedTuple):
    """How the elements of an array become rows.

    Attributes:
        kind: type of the elements.
        convert: adds the rows of some elements, whose positions count from the range's first; must
            be picklable. None gives the elements back to the source instead.
        optional: whether a file may do without the array.
    """

    kind: Any
    convert: Callable[[Elements[Any], Sink], None] | None = None
    optional: bool = False


#: Adds the rows of some lines, the first of which has the given number within its range.
ConvertLines = Callable[[int, list[bytes], Sink], None]


@dataclass(frozen=True)
class Range(ABC):
    """A range of a file for a worker to read."""

    folder: AnyPath
    name: str
    path: AnyPath
    start: int
    stop: int | None
    shard_images: int
    index: AnyPath | None
    guess: bool = False

    def run(self) -> Spill:
        """Read, unless it has been read before."""
        journal = Journal(self.folder, {})
        done = journal.done(f"{READ_FOLDER}/{self.name}")
        if done is not None and (self.guess or done["start"] == self.start):
            return done
        sink = Sink()
        place = self.read(sink)
        tables = sink.take()
        index = None if self.index is None else ImageIndex.load(self.index)
        spill = write_spill(self.folder / READ_FOLDER, self.name, tables, index, self.shard_images)
        spill |= place
        if "annotations" in tables:
            spill["kinds"] = count_kinds(tables["annotations"])
        journal.record(f"{READ_FOLDER}/{self.name}", spill)
        return spill

    @abstractmethod
    def read(self, sink: Sink) -> dict[str, Any]:
        """Fill the sink; returns start, end, count and whether the array was closed."""


@dataclass(frozen=True)
class ArrayRange(Range):
    """Elements of an array."""

    key: str = ""
    separator: bytes | None = None
    reading: Reading | None = None

    def read(self, sink: Sink) -> dict[str, Any]:
        """See :class:`Range`."""
        assert self.reading is not None
        convert = self.reading.convert
        assert convert is not None
        with open_raw(self.path) as file:
            start: int | None = self.start
            if self.guess and self.separator is not None:
                start = find_element(file, self.separator, self.start, self.stop)
            if start is None:
                return {"start": None, "end": None, "count": 0, "closed": False}
            reader = ArrayReader(
                self.path,
                file,
                self.reading.kind,
                start,
                key=self.key,
                stop=self.stop,
                separator=self.separator,
            )
            for elements in reader:
                convert(elements, sink)
                sink.settle()
        return {
            "start": start,
            "end": reader.end,
            "count": reader.count,
            "closed": reader.closed,
        }


@dataclass(frozen=True)
class LineRange(Range):
    """Lines."""

    convert: ConvertLines | None = None

    def read(self, sink: Sink) -> dict[str, Any]:
        """See :class:`Range`."""
        assert self.convert is not None
        count = 0
        for first, lines in read_lines(self.path, start=self.start, stop=self.stop):
            self.convert(first, lines, sink)
            count += len(lines)
        return {"start": self.start, "end": self.stop, "count": count, "closed": False}


@dataclass(frozen=True)
class Cut:
    """Cuts a spill by shard that was written before the images were known."""

    folder: AnyPath
    spill: Spill
    shard_images: int
    index: AnyPath

    def run(self) -> Spill:
        """Cut, unless it has been cut before."""
        journal = Journal(self.folder, {})
        task = f"{READ_FOLDER}/{self.spill['name']}.cut"
        done = journal.done(task)
        if done is not None:
            return done
        index = ImageIndex.load(self.index)
        folder = self.folder / READ_FOLDER
        tables = dict(self.spill["tables"])
        for kind, entry in tables.items():
            if kind != "images":
                rows = open_spill(folder / entry["file"]).read_all()
                batches, shards = cut_by_shard(rows, index, self.shard_images)
                # Under another name, so that a killed task finds what it began with.
                file = f"{self.spill['name']}.cut.{kind}.arrow"
                write_batches(folder / file, batches)
                tables[kind] = entry | {"file": file, "shards": shards}
        cut = self.spill | {"tables": tables}
        journal.record(task, cut)
        return cut


def run_task(task: Range | Cut) -> Spill:
    """What workers call."""
    return task.run()
