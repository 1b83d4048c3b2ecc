"""Reading a release into record tables: ranges of its files, each a task of its own.

A source says which arrays or lines of which files become which rows (:class:`Records`); here they
are cut into ranges of bytes that workers read at the same time (:mod:`.ranges`), and what each read
is put together.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from xvlm_data.engines import Engine
from xvlm_data.image_index import DUPLICATE, ImageIndex, make_index
from xvlm_data.journal import Journal
from xvlm_data.ranges import (
    READ_FOLDER,
    ArrayRange,
    ConvertLines,
    Cut,
    LineRange,
    Range,
    Reading,
    run_task,
)
from xvlm_data.raw.files import open_raw
from xvlm_data.raw.json_arrays import separator_lead
from xvlm_data.raw.json_document import Array, JsonDocument
from xvlm_data.records import KINDS, Sink, count_kinds
from xvlm_data.sources.base import Request
from xvlm_data.spill import Spill, image_keys, write_spill
from xvlm_data.storage import AnyPath

#: Bytes of a raw file that are one task.
RANGE = 32 << 20
#: The same where images are listed: their records are short, and all else waits for them.
IMAGE_RANGE = 8 << 20
#: Rows that a source adds by itself, without ranges, before they are written.
FLUSH_ROWS = 100_000


class Records(Sink):
    """The record tables of a source, filled while it reads.

    Images come first: once they are all there, :meth:`images_complete` numbers them, and what is
    read later is cut by shard as it is written.

    Attributes:
        parts: for each raw file or array within one: the file, and how elements of it are called
            (``annotations[7]``, ``line 7``).
        spills: what was written, in raw order.
        labels: for each part, the text of each category id.
        raw: how many records there are of each kind.
        index: of the images, once they are complete.
        index_folder: where it is saved.
        shard_records: for each shard, the number of its first image record; and of the last's end.
    """

    def __init__(
        self, request: Request, journal: Journal, engine: Engine, *, merge_images: bool, size: int
    ) -> None:
        super().__init__()
        self._request, self._journal, self._engine = request, journal, engine
        self._merge, self._size = merge_images, size
        self._folder = journal.folder
        (self._folder / READ_FOLDER).mkdir(parents=True, exist_ok=True)
        self._known: dict[str, dict[str, Array]] = {}
        self._written = 0
        self.parts: list[tuple[AnyPath, str]] = []
        self.spills: list[Spill] = []
        self.labels: dict[int, dict[int, str]] = {}
        self.raw: Counter[str] = Counter()
        self.index: ImageIndex | None = None
        self.index_folder: AnyPath | None = None
        self.shard_records: list[int] = []

    def part(self, file: AnyPath, place: str) -> int:
        """A number for a raw file; ``place`` is a template such as ``annotations[{index}]``."""
        self.parts.append((file, place))
        return len(self.parts) - 1

    def read_arrays(
        self, path: AnyPath, wanted: Mapping[str, Reading], *, early: bool = False
    ) -> dict[str, list[Any]]:
        """Read arrays of a JSON document; returns the elements of those without ``convert``.

        Args:
            path: the file.
            wanted: how to read each array, by key; "" for a document that is an array.
            early: leave the rest of the file for a later call.

        Raises:
            UserError: as `raw.json_document.read_arrays`.
        """
        given: dict[str, list[Any]] = {}
        self.flush()
        with (
            self._request.reading(path) as advance,
            JsonDocument(
                path,
                wanted,
                known=self._known.setdefault(str(path), {}),
                early=early,
                optional=[key for key, reading in wanted.items() if reading.optional],
            ) as document,
        ):
            for array in document:
                reading = wanted[array.key]
                if reading.convert is None:
                    reader = document.reader(array, reading.kind)
                    items = given.setdefault(array.key, [])
                    for elements in reader:
                        items += elements.items
                    array.end = reader.end
                else:
                    array.end = self._read_array(path, array, reading, advance, alone=early)
        return given

    def read_array_files(self, files: Sequence[tuple[AnyPath, Reading]]) -> None:
        """Read documents that are an array each, in order and without a pause between them.

        Workers begin with a file while the last ranges of the one before are still read.

        Raises:
            UserError: as `raw.json_document.read_arrays`.
        """
        self.flush()
        with ExitStack() as stack:
            opened = []
            for path, reading in files:
                with self._request.reading(path):
                    pass  # noted as read, before any task is
                known = self._known.setdefault(str(path), {})
                document = stack.enter_context(JsonDocument(path, {"": reading}, known=known))
                arrays = iter(document)
                array = next(arrays)
                opened.append((path, arrays, array, self._tasks(path, array, reading)))
            every = chain.from_iterable(tasks for *_, tasks in opened)
            results = self._engine.map(run_task, every)
            for path, arrays, array, tasks in opened:
                with self._request.reading(path) as advance:
                    array.end = self._collect(path, array, tasks, results, advance, shared=True)
                    for _ in arrays:
                        raise AssertionError(f"{path}: more than one array")

    def _read_array(
        self,
        path: AnyPath,
        array: Array,
        reading: Reading,
        advance: Callable[[int], None],
        *,
        alone: bool,
    ) -> int:
        tasks = self._tasks(path, array, reading)
        # Where other arrays follow, most guesses would be of those: the first range goes alone.
        own = 1 if alone else 0
        results = chain(map(run_task, tasks[:own]), self._engine.map(run_task, iter(tasks[own:])))
        return self._collect(path, array, tasks, results, advance)

    def _tasks(self, path: AnyPath, array: Array, reading: Reading) -> list[Range]:
        """The ranges of an array's file, from the array's start on."""

        def ranges() -> Iterator[Range]:
            length = RANGE if self.index is not None else min(IMAGE_RANGE, RANGE)
            number, start = 0, array.start
            while start < size:
                stop = start + length if array.separator is not None else None
                yield replace(
                    first, name=f"{name}-{number:05d}", start=start, stop=stop, guess=number > 0
                )
                number, start = number + 1, start + length if stop else size

        size = path.stat().st_size
        name = f"{self._written:04d}"
        self._written += 1
        first = ArrayRange(
            self._folder,
            name,
            path,
            array.start,
            None,
            self._size,
            self.index_folder,
            key=array.key,
            separator=array.separator,
            reading=reading,
        )
        return list(ranges())

    def _collect(
        self,
        path: AnyPath,
        array: Array,
        tasks: Sequence[Range],
        results: Iterator[Spill],
        advance: Callable[[int], None],
        *,
        shared: bool = False,
    ) -> int:
        """Keep what the tasks of an array read; where the array ends.

        With ``shared``, results of other files' tasks follow, so those after the end are taken too.
        """
        expected, base, lead = array.start, 0, separator_lead(array.separator)
        for number, task in enumerate(tasks):
            spill = next(results)
            if task.guess and task.stop is not None and expected - lead >= task.stop:
                continue  # one element reached over the whole range
            if spill["start"] != expected:
                spill = run_task(replace(task, start=expected, guess=False))
            self._keep(spill, base)
            advance(spill["end"] - expected)
            expected, base = spill["end"], base + spill["count"]
            if spill["closed"]:
                if shared:
                    deque(islice(results, len(tasks) - number - 1), maxlen=0)
                return expected
        # The last range ends where the file does, so its reader has said that it is cut off.
        raise AssertionError(f"{path}: {array.key!r} does not end")

    def read_lines(self, path: AnyPath, convert: ConvertLines) -> None:
        """Read the lines of a file; ``convert`` must be picklable.

        Raises:
            UserError: as `raw.lines.read_lines`.
        """
        self.flush()
        name = f"{self._written:04d}"
        self._written += 1
        with self._request.reading(path) as advance:
            open_raw(path).close()
            size, base = path.stat().st_size, 0
            tasks = [
                LineRange(
                    self._folder,
                    f"{name}-{number:05d}",
                    path,
                    start,
                    start + RANGE,
                    self._size,
                    self.index_folder,
                    convert=convert,
                )
                for number, start in enumerate(range(0, size, RANGE))
            ]
            for task, spill in zip(tasks, self._engine.map(run_task, iter(tasks)), strict=True):
                self._keep(spill, base)
                base += spill["count"]
                advance(min(RANGE, size - task.start))

    def _keep(self, spill: Spill, base: int) -> None:
        self.raw.update(spill.get("kinds", {}))
        if spill["tables"]:
            self.spills.append(spill | {"base": base})

    def _add(self, name: str, columns: Any) -> None:
        super()._add(name, columns)
        if self.rows() >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what the source has added by itself."""
        tables = self.take()
        if not tables:
            return
        name = f"{self._written:04d}-own"
        self._written += 1
        if "annotations" in tables:
            self.raw.update(count_kinds(tables["annotations"]))
        self.spills.append(
            write_spill(self._folder / READ_FOLDER, name, tables, self.index, self._size)
        )

    def have_images(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """``[N]`` whether there is an image record with each key so far."""
        self.flush()
        found, known, _ = image_keys(self._folder / READ_FOLDER, self.spills)
        every = [part[is_known] for part, is_known in zip(found, known, strict=True)]
        return np.isin(keys, np.concatenate([np.zeros(0, np.int64), *every]))

    def images_complete(self) -> None:
        """Number the images: no image record comes after this."""
        if self.index is not None:
            return
        self.flush()
        keys, known, parts = image_keys(self._folder / READ_FOLDER, self.spills)
        index = make_index(keys, known, parts, merge_images=self._merge)
        self.index, place = index, index.save(self._folder)
        self.index_folder = place
        records = index.records
        firsts = (records >= 0) & (records % self._size == 0)
        self.shard_records = [*firsts.nonzero()[0].tolist(), len(records)]
        early = [any(kind != "images" for kind in spill["tables"]) for spill in self.spills]
        cuts = iter(
            self._engine.map(
                run_task,
                (
                    Cut(self._folder, spill, self._size, place)
                    for spill, is_early in zip(self.spills, early, strict=True)
                    if is_early
                ),
            )
        )
        self.spills = [
            next(cuts) if is_early else spill
            for spill, is_early in zip(self.spills, early, strict=True)
        ]

    def close(self) -> None:
        """Nothing more comes."""
        self.images_complete()
        self.flush()

    def counts(self) -> dict[str, int]:
        """Records read, by kind; each image once, repeats of it in the same file apart."""
        assert self.index is not None
        duplicates = int((self.index.records == DUPLICATE).sum())
        return {kind: self.raw[kind] for kind in KINDS} | {"image": self.index.images + duplicates}
