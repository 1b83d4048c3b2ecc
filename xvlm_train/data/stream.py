"""The two inputs of a pre-training step, as functions of the step.

``stream.batch(k, rank, world)`` is the k-th batch of a process: the same rows, crops and masks
whatever ran before, in whichever process, so loader workers and resuming need no state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from xvlm_data.errors import UserError
from xvlm_data.images.decode import ImageError, row_bytes
from xvlm_data.manifest import Manifest
from xvlm_train.data.batch import Batch
from xvlm_train.data.collate import collate
from xvlm_train.data.config import DataConfig
from xvlm_train.data.entries import Entry, default_reads, find_sources
from xvlm_train.data.order import SAMPLE, Mixture, Numbers, Order, generator, turn
from xvlm_train.data.pools import Key, Lane, Pools
from xvlm_train.data.rejects import Reject, told
from xvlm_train.data.rows import Row, RowGroup, read_rows
from xvlm_train.data.samples import (
    BadRow,
    CaptionDraft,
    ConceptDraft,
    Draft,
    Sample,
    share_budget,
)
from xvlm_train.data.tokenizer import Tokenizer

#: Rows tried in the place of one that cannot be used, before the place stays empty.
STAND_INS = 4
#: Images fetched at once from an object store.
FETCHES = 16


@dataclass(frozen=True, slots=True)
class _Part:
    """The slots of a batch that are filled from one source.

    Attributes:
        source: number of it.
        order: of its rows.
        epoch, within: which of its steps it is.
        slots: ``[n]`` of the process's batch.
        numbers: ``[n]`` of the slots in the source's part of the global batch.
        places: ``[n]`` of their rows in the source's order.
    """

    source: int
    order: Order
    epoch: int
    within: int
    slots: Numbers
    numbers: Numbers
    places: Numbers


class _Slot(NamedTuple):
    """A slot of a batch: whose it is, its number in that part, and its row's place."""

    part: _Part
    number: int
    place: int


class Stream:
    """Rows of some manifests as image-text or multi-grained batches.

    An epoch is ``steps_per_epoch`` batches in which no row comes twice; the rows that do not fill
    a last batch wait for the next epoch, in a new order. Where the entries have shares of their
    own, each has its own epochs. A row that cannot be used (unreadable image, no text, no box) is
    named in ``Batch.rejects`` and replaced by the row at its place in another batch of the epoch;
    where there is none, the batch is smaller.

    Memory of a process: of each source, the row groups of the pools of the lanes that it reads,
    and of one pool more for each of them that is about to end (:mod:`xvlm_train.data.order`); and
    the batch itself.

    Args:
        entries: manifests, or entries of a recipe.
        config: see :class:`DataConfig`.
        tokenizer: for the texts.
        grid: the model's patches, (rows, columns).
        multi_grained: rows with regions or objects (else: rows with captions, or also regions
            with ``config.region_as_caption``).
        skip_unusable: leave out manifests that have rows, but none of use here, and name them in
            ``unused``, instead of refusing them.

    Raises:
        UserError: an empty manifest; one without a usable row; no usable row at all; one of web
            addresses that are still to be downloaded.
    """

    def __init__(
        self,
        entries: Sequence[Manifest | Entry],
        config: DataConfig,
        tokenizer: Tokenizer,
        grid: tuple[int, int],
        *,
        multi_grained: bool,
        skip_unusable: bool = False,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.grid = grid
        self.multi_grained = multi_grained
        reads = default_reads(multi_grained, config.region_as_caption)
        self.entries = [e if isinstance(e, Entry) else Entry(e, reads) for e in entries]
        self.sources, self.unused = find_sources(
            self.entries, multi_grained=multi_grained, lenient=skip_unusable
        )
        self._start()

    def _start(self) -> None:
        self._plans: dict[int, tuple[Mixture, list[Order]]] = {}
        self._pools = Pools(self._load)
        self._fetchers: ThreadPoolExecutor | None = None
        self._generators: list[np.random.Generator] = []

    def __len__(self) -> int:
        """Usable rows."""
        return sum(source.rows for source in self.sources)

    def __getstate__(self) -> dict[str, object]:
        own = ("_plans", "_pools", "_fetchers", "_generators")  # workers read for themselves
        return {k: v for k, v in self.__dict__.items() if k not in own}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def rows_per_step(self, world: int = 1) -> int:
        """Rows one process takes a step: as configured, or fewer when the data is smaller.

        Raises:
            UserError: not one row for each process.
        """
        wanted = self.config.max_images if self.multi_grained else self.config.batch_size
        rows = min(wanted, len(self) // world)
        if rows == 0:
            raise UserError(
                f"{len(self)} usable rows for {world} processes", "give more data or fewer ranks"
            )
        return rows

    def steps_per_epoch(self, world: int = 1) -> int:
        """Batches of one process in which as many rows come as there are; not quite all of them."""
        return len(self) // (self.rows_per_step(world) * world)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of process ``rank`` of ``world`` at a step, counted from 0 without end.

        Ranks take disjoint parts of one global batch; with batch sizes to match, that is the same
        global batch for any ``world``.

        Raises:
            UserError: no row of the batch, nor any that stood in, could be used.
            ManifestError: a manifest changed or broke after it was opened.
        """
        parts = self._parts(step, rank, world)
        for lane, keys in _lanes(parts).items():
            self._pools.open(lane, keys)
        slots, first = self._first(parts)
        self._fetch([row for _, row in first])
        rejects: list[Reject] = []
        drafted = []
        for rng, slot, (entry, row) in zip(self._chances(len(slots)), slots, first, strict=True):
            coming = self._drafts(rng, slot, entry, row, rejects)
            draft = next(coming, None)
            if draft is not None:
                drafted.append((draft, coming))
        if self.multi_grained:
            share_budget([draft for draft, _ in drafted], self.config.max_texts)
        samples: list[Sample] = []
        side = self.config.image_size
        images = np.empty((len(drafted), side, side, 3), dtype=np.uint8)
        for draft, coming in drafted:
            sample = _sample(draft, coming, rejects)
            if sample is not None:
                # At once: they are in the processor's cache, and their memory serves the next.
                images[len(samples)] = sample.pixels
                sample.pixels = images[len(samples)]
                samples.append(sample)
        if not samples:
            raise UserError(
                f"step {step}: no usable row in a whole batch ({told(rejects)})",
                "fetch the images with `xvlm-data download`"
                if any(reject.reason == "not_downloaded" for reject in rejects)
                else "were the images moved (--image-root)?",
            )
        return collate(
            samples,
            images[: len(samples)],
            self.tokenizer,
            self.config,
            self.grid,
            multi_grained=self.multi_grained,
            rejects=rejects,
        )

    def prefetch(self, step: int, rank: int = 0, world: int = 1) -> None:
        """Begin to read, beside other work, the row groups that :meth:`batch` will need."""
        for lane, keys in _lanes(self._parts(step, rank, world)).items():
            self._pools.prefetch(lane, keys)

    def _plan(self, world: int) -> tuple[Mixture, list[Order]]:
        """How a global batch is put together, and the order of each source."""
        if world not in self._plans:
            batch = self.rows_per_step(world) * world
            shares = np.array([source.share for source in self.sources])
            mixture = Mixture(shares, batch)
            self._plans[world] = (
                mixture,
                [
                    self._order(number, int(most), share)
                    for number, (most, share) in enumerate(
                        zip(mixture.most, shares / shares.sum(), strict=True)
                    )
                ],
            )
        return self._plans[world]

    def _order(self, number: int, batch: int, share: float) -> Order:
        source = self.sources[number]
        if source.rows < batch:
            raise UserError(
                f"{source.name} has {source.rows} usable rows, and {batch} in every batch",
                "give it a lower weight, or take smaller batches",
            )
        return Order(
            source.counts,
            batch,
            pool_groups=max(1, round(self.config.pool_groups * share)),
            lanes=self.config.lanes,
            seed=self.config.seed,
            stream=self._stream(number),
        )

    def _stream(self, source: int) -> int:
        """A number of its own for the chance of each source of each stream."""
        return 2 * source + self.multi_grained

    def _parts(self, step: int, rank: int, world: int) -> list[_Part]:
        mixture, orders = self._plan(world)
        rows = self.rows_per_step(world)
        sources, numbers = (
            column[rank * rows : (rank + 1) * rows] for column in mixture.slots(step)
        )
        parts = []
        for source in np.unique(sources).tolist():
            order = orders[source]
            epoch, within = divmod(step, order.steps)
            slots = np.flatnonzero(sources == source)
            places = order.places(within, numbers[slots])
            parts.append(_Part(source, order, epoch, within, slots, numbers[slots], places))
        return parts

    def _first(self, parts: Sequence[_Part]) -> tuple[list[_Slot], list[tuple[Entry, Row]]]:
        """The slots of a batch in order, and the rows that are theirs if they can be used."""
        found: list[tuple[int, _Slot, tuple[Entry, Row]]] = []
        for part in parts:
            slots = map(_Slot, repeat(part), part.numbers.tolist(), part.places.tolist())
            rows = self._rows(part, part.places)
            found += zip(part.slots.tolist(), slots, rows, strict=True)
        found.sort(key=itemgetter(0))
        return [slot for _, slot, _ in found], [row for *_, row in found]

    def _rows(self, part: _Part, places: Numbers) -> list[tuple[Entry, Row]]:
        groups, numbers = part.order.locate(part.epoch, places)
        opened = {}
        for group in set(groups.tolist()):
            entry = self.entries[self.sources[part.source].groups[group][0]]
            rows = self._pools.get((part.source, group))
            opened[group] = entry, rows, rows.usable(entry.reads)
        found: list[tuple[Entry, Row]] = []
        for group, number in zip(groups.tolist(), numbers.tolist(), strict=True):
            entry, rows, usable = opened[group]
            found.append((entry, rows.row(int(usable[number]))))
        return found

    def _chances(self, slots: int) -> list[np.random.Generator]:
        """A generator for each slot; its numbers are settled by what is drawn for."""
        while len(self._generators) < slots:
            self._generators.append(generator(0, 0, SAMPLE, 0, 0))
        return self._generators[:slots]

    def _drafts(
        self,
        rng: np.random.Generator,
        slot: _Slot,
        entry: Entry,
        row: Row,
        rejects: list[Reject],
    ) -> Iterator[Draft]:
        """What a slot may show: its own row, and if that cannot be used the ones that stand in."""
        make = ConceptDraft if self.multi_grained else CaptionDraft
        part, place = slot.part, slot.place
        stand_ins: list[int] | None = None
        while True:
            stream = self._stream(part.source)
            turn(rng, self.config.seed, stream, SAMPLE, part.epoch, place)
            try:
                draft = make(row, self.config, rng, entry.reads)
            except (BadRow, ImageError) as error:
                rejects.append(Reject(row.id, error.reason, str(error)))
            else:
                yield draft
            if stand_ins is None:
                stand_ins = part.order.stand_ins(part.within, slot.number, STAND_INS)[::-1]
            if not stand_ins:
                return
            place = stand_ins.pop()
            ((entry, row),) = self._rows(part, np.array([place]))

    def _fetch(self, rows: Sequence[Row]) -> None:
        """Get images out of an object store, many at once; what fails fails again on its own."""
        remote = [row for row in rows if row.address is not None]
        if not remote:
            return
        if self._fetchers is None:
            self._fetchers = ThreadPoolExecutor(FETCHES, thread_name_prefix="images")

        def fetch(row: Row) -> None:
            with suppress(ImageError):
                row.fetched(row_bytes(row.image))

        list(self._fetchers.map(fetch, remote))

    def _load(self, key: Key) -> RowGroup:
        source, number = key
        entry, shard, group = self.sources[source].groups[number]
        return read_rows(self.entries[entry].manifest, shard, group)


def _lanes(parts: Sequence[_Part]) -> dict[Lane, list[Key]]:
    """The row groups that some slots' lanes are read from."""
    lanes: dict[Lane, list[Key]] = {}
    for part in parts:
        order = part.order
        pools, first = np.unique(order.pools_of(part.epoch, part.places), return_index=True)
        for pool, place in zip(pools.tolist(), part.places[first].tolist(), strict=True):
            keys = [(part.source, group) for group in order.groups(part.epoch, pool)]
            lanes.setdefault((part.source, part.epoch, order.lane_of(place)), []).extend(keys)
    return lanes


def _sample(draft: Draft, coming: Iterator[Draft], rejects: list[Reject]) -> Sample | None:
    """The sample of a draft, or of the first of the coming ones whose image can be read."""
    while True:
        try:
            return draft.sample()
        except ImageError as error:
            rejects.append(Reject(draft.record_id, error.reason, str(error)))
        stand_in = next(coming, None)
        if stand_in is None:
            return None
        while len(stand_in.texts) < len(draft.texts) and stand_in.take():
            pass
        draft = stand_in
