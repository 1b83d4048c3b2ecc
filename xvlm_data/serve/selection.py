"""Some rows of a manifest as a new one: a single Parquet file, sent as it is made."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xvlm_data.inspect.concepts import locate
from xvlm_data.manifest import Manifest
from xvlm_data.schema import manifest_schema
from xvlm_data.write import ROW_GROUP_ROWS, parquet_options

_BATCH = 64


def selection(manifest: Manifest, rows: Sequence[int], how: str) -> Iterator[bytes]:
    """The bytes of a manifest of the given rows, which ascend.

    Its footer is the manifest's, with ``selected_from``: what it was taken from, and how.

    Raises:
        ManifestError: a file is damaged.
    """
    wanted = np.asarray(rows, np.int64)
    schema = _schema(manifest, how, len(wanted))
    sink = _Chunks()
    writer = pq.ParquetWriter(sink, schema, **parquet_options(schema))
    pending: list[pa.Table] = []
    for number, groups, first in _groups_with(manifest, wanted):
        start = first
        only = [groups if i == number else [] for i in range(len(manifest.shards))]
        for batch in manifest.batches(schema.names, _BATCH, only):
            here = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
            start += batch.num_rows
            if len(here):
                table = pa.Table.from_batches([batch]).take(pa.array(here))
                pending.append(table.select(schema.names).cast(schema))
        size = sum(table.num_rows for table in pending)
        if size >= ROW_GROUP_ROWS or sum(table.nbytes for table in pending) > 32 << 20:
            writer.write_table(pa.concat_tables(pending))
            pending = []
            yield sink.take()
    if pending:
        writer.write_table(pa.concat_tables(pending))
    writer.close()
    yield sink.take()


def _groups_with(manifest: Manifest, wanted: Any) -> Iterator[tuple[int, list[int], int]]:
    """(shard, [row group], its first row) of the row groups that hold a wanted row."""
    first = 0
    for number, shard in enumerate(manifest.shards):
        for group, size in enumerate(shard.row_groups):
            low, high = np.searchsorted(wanted, [first, first + size])
            if low < high:
                yield number, [group], first
            first += size


def _schema(manifest: Manifest, how: str, count: int) -> pa.Schema:
    url, _ = locate(manifest, 0)
    with fsspec.open(url, "rb") as file:
        found = pq.read_schema(file)
    name = manifest.info.get("name") or "manifest"
    info = manifest.info | {
        "name": f"{name}-selection",
        "selected_from": {
            "name": name,
            "fingerprint": manifest.fingerprint,
            "rows": count,
            "how": how,
        },
    }
    plain = pa.schema([found.field(i) for i in range(len(found))])
    return manifest_schema(info, plain, manifest.schema_version)


class _Chunks(io.RawIOBase):
    """A file that is only ever appended to, and emptied as it goes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._size += len(part)
        return len(part)

    def take(self) -> bytes:
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole
