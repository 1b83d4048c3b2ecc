"""Record tables on disk between reading and writing, cut by shard.

A spill file is Arrow's file format, uncompressed: rows sorted by image, one record batch a shard
that has any, so that a shard's task reads its own rows and nothing else, from a local disk or an
object store. Rows whose image does not exist lie in one more batch, after all shards.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.image_index import ImageIndex, Int64s
from xvlm_data.records import IMAGES, KINDS, column
from xvlm_data.sorting import stable_order
from xvlm_data.storage import AnyPath, is_local

#: Image records are not sorted; a batch of them is what is read at once.
IMAGE_BATCH = 8_192

#: What a spill's record says: name, base (what to add to ``index``), and per table its file, its
#: rows and, where it is cut by shard, the shards of its batches.
Spill = dict[str, Any]


def write_spill(
    folder: AnyPath, name: str, tables: dict[str, pa.Table], index: ImageIndex | None, size: int
) -> Spill:
    """Write tables; all but ``images`` are cut by shard if the index is known by now.

    Args:
        folder: of spills.
        name: of this one.
        tables: rows by table name.
        index: of all images.
        size: images a shard.
    """
    written: Spill = {"name": name, "base": 0, "tables": {}}
    for kind, table in tables.items():
        shards = None
        if kind == "images" or index is None:
            batches = table.combine_chunks().to_batches(max_chunksize=IMAGE_BATCH)
        else:
            batches, shards = cut_by_shard(table, index, size)
        file = f"{name}.{kind}.arrow"
        write_batches(folder / file, batches)
        written["tables"][kind] = {"file": file, "rows": len(table), "shards": shards}
    return written


def shard_count(images: int, size: int) -> int:
    """How many shards of ``size`` images there are; at least one, be it empty."""
    return max(-(-images // size), 1)


def cut_by_shard(
    table: pa.Table, index: ImageIndex, size: int
) -> tuple[list[pa.RecordBatch], list[int]]:
    """One batch a shard, sorted by the column ``ordinal``, which replaces ``key``; the shards."""
    keys = column(table, "key")
    known = np.asarray(pc.is_valid(keys))
    after_all = shard_count(index.images, size) * size
    ordinals = index.find(pc.fill_null(keys, 0).to_numpy(), known, after_all)
    if (ordinals[1:] < ordinals[:-1]).any():
        table, ordinals = _by_ordinal(table, ordinals, after_all)
    if "key" in table.column_names:
        table = table.drop_columns("key")
    table = table.append_column("ordinal", pa.array(ordinals)).combine_chunks()
    of_row = ordinals // size
    starts = np.flatnonzero(np.diff(of_row, prepend=-1))
    ends = np.append(starts[1:], len(of_row))
    batches = [
        batch
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        for batch in table.slice(start, end - start).to_batches()
    ]
    return batches, of_row[starts].tolist()


def _by_ordinal(table: pa.Table, ordinals: Int64s, after_all: int) -> tuple[pa.Table, Int64s]:
    """Rows and their ordinals in the order of these.

    Most files list images in the same order, so that only rows of no image, which come last, are
    out of place; to set them apart is cheaper than to sort.
    """
    loose = ordinals >= after_all
    kept = ordinals[~loose]
    if (kept[1:] >= kept[:-1]).all():
        # In slices, of which there are few: rows of an image come together.
        edges = np.flatnonzero(np.diff(loose)) + 1
        starts, ends = [0, *edges.tolist()], [*edges.tolist(), len(loose)]
        if len(starts) < len(loose) // 64:
            slices = [table.slice(a, b - a) for a, b in zip(starts, ends, strict=True)]
            first = int(loose[0])
            ordered = [*slices[first::2], *slices[1 - first :: 2]]
            return pa.concat_tables(ordered), np.concatenate([kept, ordinals[loose]])
    order = stable_order(ordinals)
    return table.take(pa.array(order)), ordinals[order]


def write_batches(path: AnyPath, batches: Sequence[pa.RecordBatch]) -> None:
    """Write a file whole or not at all."""
    if is_local(path):
        part = path.with_name(f".{path.name}.{os.getpid()}")
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        part.replace(path)
        return
    with path.open("wb") as file, pa.ipc.new_file(file, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def open_spill(path: AnyPath) -> pa.ipc.RecordBatchFileReader:
    """Open a spill file; what is read of it lives as long as the batches do.

    A local one stays open until :func:`close_spills`: each shard reads a bit of every spill.
    """
    if is_local(path):
        found = path.stat()
        return _opened(str(path), found.st_ino, found.st_mtime_ns)
    return pa.ipc.open_file(path.open("rb"))


@lru_cache(maxsize=256)
def _opened(path: str, inode: int, modified: int) -> pa.ipc.RecordBatchFileReader:
    """The other arguments tell a file from a later one at the same place."""
    return pa.ipc.open_file(pa.OSFile(path))


def close_spills() -> None:
    """Let go of the files that are open, so that their space on the disk is free once removed."""
    _opened.cache_clear()


def read_cut(folder: AnyPath, spills: Sequence[Spill], kind: str, shard: int) -> pa.Table | None:
    """The rows of one shard in one table, sorted by image, kind and place; None if there are none.

    The column ``index`` is made global.
    """
    found = []
    for spill in spills:
        entry = spill["tables"].get(kind)
        if entry is None:
            continue
        place = bisect_left(entry["shards"], shard)
        if place < len(entry["shards"]) and entry["shards"][place] == shard:
            reader = open_spill(folder / entry["file"])
            found.append(_based(reader.get_batch(place), spill["base"]))
    if not found:
        return None
    table = pa.concat_tables(
        [pa.Table.from_batches([batch]) for batch in found], promote_options="default"
    ).combine_chunks()
    order = table["ordinal"].to_numpy()
    if "kind" in table.column_names:
        order = order * len(KINDS) + table["kind"].to_numpy()
    if (order[1:] < order[:-1]).any():
        table = table.take(pa.array(stable_order(order)))
    return table


def read_images(
    folder: AnyPath, spills: Sequence[Spill], first: int, last: int
) -> Iterator[tuple[int, pa.Table]]:
    """Image records number ``first`` up to ``last``, in pieces: (number of its first row, rows)."""
    number = 0
    for spill in spills:
        entry = spill["tables"].get("images")
        if entry is None:
            continue
        rows = entry["rows"]
        low, high = max(first - number, 0), min(last - number, rows)
        if low < high:
            reader = open_spill(folder / entry["file"])
            for place in range(low // IMAGE_BATCH, -(-high // IMAGE_BATCH)):
                batch = reader.get_batch(place)
                start = place * IMAGE_BATCH
                skip = max(low - start, 0)
                cut = batch.slice(skip, min(high - start, len(batch)) - skip)
                table = pa.Table.from_batches([_based(cut, spill["base"])])
                yield number + max(low, start), _complete(table)
        number += rows


def image_keys(
    folder: AnyPath, spills: Sequence[Spill]
) -> tuple[list[Int64s], list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """(keys, whether there is one, parts) of all image records, a piece a batch."""
    keys, known, parts = [], [], []
    for spill in spills:
        if entry := spill["tables"].get("images"):
            reader = open_spill(folder / entry["file"])
            for place in range(reader.num_record_batches):
                table = pa.Table.from_batches([reader.get_batch(place)])
                key = column(table, "key", IMAGES)
                known.append(np.asarray(pc.is_valid(key)))
                keys.append(pc.fill_null(key, 0).to_numpy().copy())
                parts.append(column(table, "part", IMAGES).to_numpy().copy())
    return keys, known, parts


def _based(batch: pa.RecordBatch, base: int) -> pa.RecordBatch:
    place = batch.schema.get_field_index("index")
    if place < 0 or not base:
        return batch
    return batch.set_column(place, batch.schema.field(place), pc.add(batch.column(place), base))


def _complete(table: pa.Table) -> pa.Table:
    """With every column of an image record."""
    return pa.Table.from_arrays(
        [column(table, name, IMAGES) for name in IMAGES.names], schema=IMAGES
    )
