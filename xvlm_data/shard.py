"""One shard: a range of images from their spilled records to a file of the manifest.

It is the unit of work of a build: it depends on the spills and the options alone, writes one file
of rows and one of rejects, and then its record in the journal.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.attributes import join_attributes
from xvlm_data.image_index import DUPLICATE, ImageIndex
from xvlm_data.journal import Journal
from xvlm_data.ranges import READ_FOLDER
from xvlm_data.records import ANNOTATIONS, KINDS, column, count_kinds
from xvlm_data.reformulate import Counts, Reformulator
from xvlm_data.rejects import repeat_label
from xvlm_data.schema import REJECTS
from xvlm_data.sorting import stable_order
from xvlm_data.spill import Spill, open_spill, read_cut, read_images, shard_count, write_batches
from xvlm_data.storage import AnyPath
from xvlm_data.write import SHARD_NAME, ShardWriter

SHARDS_FOLDER, STAGED_FOLDER = "shards", "staged"

#: Annotations that are worked on at once, about: more leave the cache, fewer cost more calls.
BLOCK_ANNOTATIONS = 100_000
#: Images at most, and where their bytes lie in memory.
BLOCK_IMAGES, BLOCK_EMBEDDED = 8_192, 256


@dataclass(frozen=True)
class ShardPlan:
    """What all shards of a build have in common.

    Attributes:
        folder: of the journal.
        index: where the index of the images is saved.
        spills: record tables.
        shard_records: for each shard, the number of its first image record; and of the last's end.
        size: images a shard.
        reformulator: makes rows of records.
        schema: of the rows, with the manifest's footer.
        threads: that decode images in a task.
    """

    folder: AnyPath
    index: AnyPath
    spills: tuple[Spill, ...]
    shard_records: tuple[int, ...]
    size: int
    reformulator: Reformulator
    schema: pa.Schema
    threads: int = 1

    @property
    def count(self) -> int:
        """How many shards there are; at least one, be it empty."""
        return max(len(self.shard_records) - 1, 1)


def run_shard(task: tuple[ShardPlan, int]) -> dict[str, Any]:
    """Write a shard, unless that is done; returns its record.

    The shard after the last takes what belongs to no image: it has rejects and no rows.
    """
    plan, number = task
    journal = Journal(plan.folder, {})
    name = f"{SHARDS_FOLDER}/{number:05d}"
    done = journal.done(name)
    if done is None:
        done = _leftovers(plan) if number == plan.count else _rows(plan, number)
        journal.record(name, done)
    return done


def rejects_path(folder: AnyPath, number: int) -> AnyPath:
    """Where the rejects of a shard wait to be put together."""
    return folder / SHARDS_FOLDER / f"{number:05d}.rejects.arrow"


def _rows(plan: ShardPlan, number: int) -> dict[str, Any]:
    counts = Counts()
    rejects: list[pa.Table] = []
    annotations = _annotations(plan, number, counts, rejects)
    start = 0
    path = plan.folder / STAGED_FOLDER / SHARD_NAME.format(number)
    threads = ThreadPoolExecutor(plan.threads) if plan.threads > 1 else nullcontext(None)
    with ShardWriter(path, plan.schema) as writer, threads as pool:
        of_row = annotations["ordinal"].to_numpy()
        for images, ordinals in _blocks(plan, number, of_row):
            stop = int(np.searchsorted(of_row, ordinals[-1], side="right"))
            table, rejected = plan.reformulator(
                images,
                ordinals,
                annotations.slice(start, stop - start),
                pool,
                counts,
            )
            start = stop
            writer.write(table)
            rejects.append(rejected)
    return _record(plan, number, counts, rejects) | {"shard": writer.entry()}


def _blocks(
    plan: ShardPlan, number: int, of_row: np.ndarray[Any, Any]
) -> Iterator[tuple[pa.Table, np.ndarray[Any, Any]]]:
    """Images of a shard with their ordinals, some at a time; repeats left out.

    Args:
        plan: of the build.
        number: of the shard.
        of_row: the ordinal of each of its annotations, ascending.
    """
    if number + 1 >= len(plan.shard_records):
        return
    first, last = plan.shard_records[number : number + 2]
    index = ImageIndex.load(plan.index)
    size = BLOCK_EMBEDDED if plan.reformulator.checker.keep_bytes else BLOCK_IMAGES
    for start, rows in read_images(plan.folder / READ_FOLDER, plan.spills, first, last):
        ordinals = np.array(index.records[start : start + len(rows)])
        rows, ordinals = rows.filter(pa.array(ordinals >= 0)), ordinals[ordinals >= 0]
        ends = np.searchsorted(of_row, ordinals, side="right")
        place = 0
        while place < len(rows):
            before = ends[place - 1] if place else np.searchsorted(of_row, ordinals[0])
            filled = int(np.searchsorted(ends, before + BLOCK_ANNOTATIONS, side="right"))
            stop = min(max(filled, place + 1), place + size)
            yield rows.slice(place, stop - place).combine_chunks(), ordinals[place:stop]
            place = stop


def _annotations(plan: ShardPlan, number: int, counts: Counts, rejects: list[pa.Table]) -> pa.Table:
    """The annotations of a shard, sorted by image, kind and place, with their attributes."""
    folder = plan.folder / READ_FOLDER
    found = read_cut(folder, plan.spills, "annotations", number)
    if found is None:
        found = _empty_annotations()
    attributes = read_cut(folder, plan.spills, "attributes", number)
    if attributes is not None:
        aliases = read_cut(folder, plan.spills, "aliases", number)
        found, loose = join_attributes(found, attributes, aliases)
        counts.leave_out("attributes", {"unknown_object": len(loose)} if len(loose) else {})
        rejects.append(plan.reformulator.rejects.attributes(loose))
    return found


def _empty_annotations() -> pa.Table:
    fields = [pa.field("ordinal", pa.int64()), *(f for f in ANNOTATIONS if f.name != "key")]
    return pa.schema(fields).empty_table()


def _leftovers(plan: ShardPlan) -> dict[str, Any]:
    """Records that belong to no image of the manifest: orphans, repeated image records."""
    counts = Counts()
    rejects: list[pa.Table] = []
    folder, maker = plan.folder / READ_FOLDER, plan.reformulator.rejects
    index = ImageIndex.load(plan.index)
    for spill in plan.spills:
        last = shard_count(index.images, plan.size)
        orphans = read_cut(folder, [spill], "annotations", last)
        if orphans is not None:
            orphans = plan.reformulator.named(orphans)
            reasons = pc.fill_null(column(orphans, "problem"), "unknown_image").dictionary_encode()
            for kind in count_kinds(orphans):
                of_kind = pc.equal(column(orphans, "kind"), KINDS.index(kind))
                pairs = pc.value_counts(reasons.filter(of_kind)).to_pylist()
                counts.leave_out(kind, {pair["values"]: pair["counts"] for pair in pairs})
            rejects.append(maker.annotations(orphans, reasons, pa.nulls(len(orphans), pa.string())))
        attributes = read_cut(folder, [spill], "attributes", last)
        if attributes is not None:
            counts.leave_out("attributes", {"unknown_object": len(attributes)})
            rejects.append(maker.attributes(attributes))
    if (index.records == DUPLICATE).any():
        for start, rows in read_images(folder, plan.spills, 0, len(index.records)):
            rows = rows.filter(pa.array(index.records[start : start + len(rows)] == DUPLICATE))
            if len(rows):
                counts.leave_out("image", {"duplicate_image": len(rows)})
                reason = repeat_label("duplicate_image", len(rows))
                detail = pa.repeat(pa.scalar("an image record with this id came before"), len(rows))
                rejects.append(maker.images(rows, reason, detail))
    return _record(plan, plan.count, counts, rejects)


def _record(
    plan: ShardPlan, number: int, counts: Counts, rejects: list[pa.Table]
) -> dict[str, Any]:
    table = pa.concat_tables([REJECTS.empty_table(), *rejects]).combine_chunks()
    # Blocks depend on how raw files were cut into ranges; the order of rejects must not, nor that
    # of their labels.
    others = pc.not_equal(table["kind"].cast(pa.string()), "image").to_numpy()
    if (others[1:] < others[:-1]).any():
        table = table.take(pa.array(stable_order(others.view(np.int8))))
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field, _by_appearance(column(table, field.name)))
    table = table.combine_chunks()
    batches = table.to_batches() or [pa.RecordBatch.from_pylist([], REJECTS)]
    write_batches(rejects_path(plan.folder, number), batches)
    return {"counts": counts.to_dict(), "rejects": len(table)}


def _by_appearance(labels: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same labels, listed in the order in which they appear, and no others."""
    distinct = labels.dictionary.unique()
    codes = pc.index_in(labels.dictionary, value_set=distinct).take(labels.indices).to_numpy()
    first = np.full(len(distinct), len(codes))
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    order = np.argsort(first)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    used = order[: np.count_nonzero(first < len(codes))]
    return pa.DictionaryArray.from_arrays(rank[codes], distinct.take(pa.array(used)))


def read_rejects(folder: AnyPath, number: int) -> pa.Table:
    """The rejects of a shard."""
    return open_spill(rejects_path(folder, number)).read_all()
