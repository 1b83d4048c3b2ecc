"""One Parquet file of a manifest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xvlm_data.schema import manifest_schema
from xvlm_data.write import ROW_GROUP_BYTES, ROW_GROUP_ROWS, _leaves


class ShardWriter:
    """Appends rows to one file, whole or not at all; cuts row groups by rows and embedded bytes."""

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        """Open a file that gets its name when it is closed.

        Args:
            path: of the shard.
            info: provenance for the footer.
        """
        self._path, self._part = path, path.with_name(f".{path.name}.part")
        self._schema = manifest_schema(info)
        self._writer = pq.ParquetWriter(
            self._part,
            self._schema,
            # JPEG bytes do not compress; text does.
            compression=dict.fromkeys(_leaves(self._schema), "zstd") | {"image.bytes": "none"},
            use_dictionary=["source", "split", "concepts.list.element.granularity"],
            # With the null count of the bytes, readers know embedded images from references.
            write_statistics=["id", "width", "height", "image.bytes"],
        )
        self._rows = 0
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0

    def write(self, table: pa.Table) -> None:
        """Append rows of the manifest schema."""
        lengths = pc.binary_length(pc.struct_field(table["image"], "bytes")).fill_null(0)
        total = np.cumsum(lengths.to_numpy().astype(np.int64))
        start = 0
        while start < len(total):
            before = int(total[start - 1]) if start else 0
            room = ROW_GROUP_BYTES - self._pending_bytes
            by_bytes = int(np.searchsorted(total, before + room)) + 1 - start
            by_rows = ROW_GROUP_ROWS - self._pending_rows
            take = min(by_bytes, by_rows, len(total) - start)
            self._pending.append(table.slice(start, take))
            self._pending_rows += take
            self._pending_bytes += int(total[start + take - 1]) - before
            start += take
            if take in (by_bytes, by_rows):
                self._flush()

    def _flush(self) -> None:
        if self._pending_rows:
            rows = self._pending_rows
            self._writer.write_table(pa.concat_tables(self._pending), row_group_size=rows)
            self._rows += rows
            self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def close(self) -> dict[str, Any]:
        """Finish; returns the shard as ``manifest.json`` lists it."""
        self._flush()
        self._writer.close()
        with self._part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._part.replace(self._path)
        size = self._path.stat().st_size
        return {"file": self._path.name, "rows": self._rows, "sha256": digest, "bytes": size}

    def abandon(self) -> None:
        """Close and remove what was written so far."""
        self._writer.close()
        self._part.unlink(missing_ok=True)
