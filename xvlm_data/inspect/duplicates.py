"""The same thing on several rows: ids, image files, image bytes, captions."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xvlm_data.inspect.concepts import Sample, checked_batches, to_strings
from xvlm_data.manifest import Manifest

#: What is compared, by what people read.
KINDS = {
    "same_id": "The same id",
    "same_file": "The same image file",
    "same_bytes": "The same image, byte for byte",
    "same_caption": "The same caption",
}
#: Groups of equal rows that are kept, the largest first, and rows kept of each.
GROUPS, ROWS = 6, 3
#: More image bytes than these are not read to be compared.
BYTES_LIMIT = 4 << 30

_MEMORY = "256MB"
_IMAGE_BATCH = 64
_SCHEMA = pa.schema([(kind, pa.binary()) for kind in KINDS] + [("row", pa.int64())])


@dataclass(frozen=True)
class Duplicates:
    """Rows that share something.

    Attributes:
        groups: how many different values are on several rows.
        rows: how many rows these are, the first of each included.
        examples: of the largest groups, their size and their first rows.
    """

    groups: int
    rows: int
    examples: list[tuple[int, list[int]]]


def find_duplicates(
    manifest: Manifest,
    *,
    sample: Sample | None = None,
    bytes_limit: int | None = BYTES_LIMIT,
    advance: Callable[[int], None] = lambda rows: None,
) -> dict[str, Duplicates | None]:
    """Compare all rows, or a sample's, with each other, in bounded memory.

    Args:
        manifest: an opened manifest.
        sample: the row groups to look at; without, all of them.
        bytes_limit: more bytes of embedded images than these are not compared; None: they are.
        advance: told the rows of each batch.

    Returns:
        By :data:`KINDS`; None for the bytes of images that are too many.

    Raises:
        ManifestError: a file is damaged.
    """
    import duckdb

    embedded = image_bytes(manifest, sample)
    compare_bytes = embedded > 0 and (bytes_limit is None or embedded <= bytes_limit)
    found: dict[str, Duplicates | None] = {}
    with tempfile.TemporaryDirectory() as spill:
        config = {"memory_limit": _MEMORY, "temp_directory": spill, "threads": 2}
        with duckdb.connect(config=config) as database:
            batches = _values(manifest, sample, compare_bytes, advance)
            database.register("given", pa.RecordBatchReader.from_batches(_SCHEMA, batches))
            database.execute("CREATE TABLE rows AS SELECT * FROM given")
            for kind in KINDS:
                found[kind] = _grouped(database, kind)
    if embedded and not compare_bytes:
        found["same_bytes"] = None
    return found


def image_bytes(manifest: Manifest, sample: Sample | None) -> int:
    """Bytes of embedded images, by the footers."""
    total = 0
    for number, shard in enumerate(manifest.shards):
        groups = range(len(shard.row_groups)) if sample is None else sample.groups[number]
        if not groups:
            continue
        with fsspec.open(shard.url, "rb") as file:
            metadata = pq.ParquetFile(file).metadata
        names = [metadata.schema.column(i).path for i in range(len(metadata.schema))]
        index = names.index("image.bytes")
        for group in groups:
            column = metadata.row_group(group).column(index)
            # A column of nulls alone takes some bytes too: of its levels.
            nulls = column.statistics.null_count if column.is_stats_set else None
            if nulls != metadata.row_group(group).num_rows:
                total += column.total_uncompressed_size
    return total


def _values(
    manifest: Manifest, sample: Sample | None, compare_bytes: bool, advance: Callable[[int], None]
) -> Iterator[pa.RecordBatch]:
    """What is compared of each row: texts and digests as they are, or null."""
    columns = ["id", "caption", "image" if compare_bytes else "image.path"]
    size = _IMAGE_BATCH if compare_bytes else 8192
    with ThreadPoolExecutor(2) as pool:
        for first, batch in checked_batches(manifest, columns, size, sample):
            image = batch.column("image")
            digests = pa.nulls(batch.num_rows, pa.binary())
            if compare_bytes:
                data = pc.struct_field(image, "bytes")
                digests = pa.array(list(pool.map(_digest, data)), pa.binary())
            values = [to_strings(batch.column("id")), pc.struct_field(image, "path")]
            values = [pc.cast(value, pa.binary()) for value in values]
            caption = pc.cast(to_strings(batch.column("caption")), pa.binary())
            rows = pa.array(np.arange(first, first + batch.num_rows))
            yield pa.RecordBatch.from_arrays([*values, digests, caption, rows], schema=_SCHEMA)
            advance(batch.num_rows)


def _digest(data: pa.BinaryScalar) -> bytes | None:
    buffer = data.as_buffer()
    return None if buffer is None else hashlib.blake2b(buffer, digest_size=16).digest()


def _grouped(database: Any, kind: str) -> Duplicates:
    database.execute(
        f"CREATE OR REPLACE TEMP TABLE grouped AS SELECT count(*) AS number, "
        f'min("row", {ROWS}) AS places FROM rows WHERE octet_length({kind}) > 0 '
        f"GROUP BY {kind} HAVING count(*) > 1"
    )
    ((groups, rows),) = database.execute("SELECT count(*), sum(number) FROM grouped").fetchall()
    largest = database.execute(
        f"SELECT number, places FROM grouped ORDER BY number DESC, places LIMIT {GROUPS}"
    ).fetchall()
    return Duplicates(int(groups), int(rows or 0), [(n, list(places)) for n, places in largest])
