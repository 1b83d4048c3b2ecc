"""Writing a manifest folder: shards, rejects and ``manifest.json``, all or nothing.

Everything is written into a hidden folder beside the product and moved into place at the end, the
summary last; a build that was cut off leaves the previous manifest as it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xvlm_data.errors import UserError
from xvlm_data.manifest import REJECTS_NAME, SUMMARY_NAME
from xvlm_data.schema import REJECTS, manifest_schema

SHARD_NAME = "manifest-{:05d}.parquet"

#: Row groups are what a shuffling reader loads at once.
ROW_GROUP_ROWS = 4_096
ROW_GROUP_BYTES = 32 << 20
SHARD_BYTES = 1 << 30


class ManifestWriter:
    """Appends rows; cuts row groups and shards by rows and by embedded bytes, deterministically."""

    def __init__(self, folder: Path, info: dict[str, Any], *, shard_rows: int) -> None:
        self.folder, self.shard_rows = folder, shard_rows
        self.schema = manifest_schema(info)
        self.shards: list[dict[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows = self._bytes = 0
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
            by_rows = min(ROW_GROUP_ROWS, self.shard_rows - self._rows) - self._pending_rows
            take = min(by_bytes, by_rows, len(total) - start)
            self._pending.append(table.slice(start, take))
            self._pending_rows += take
            self._pending_bytes += int(total[start + take - 1]) - before
            start += take
            if take in (by_bytes, by_rows):
                self._flush()

    def _flush(self) -> None:
        if not self._pending_rows:
            return
        if self._writer is None:
            path = self.folder / SHARD_NAME.format(len(self.shards))
            self._writer = pq.ParquetWriter(
                path,
                self.schema,
                # JPEG bytes do not compress; text does.
                compression=dict.fromkeys(_leaves(self.schema), "zstd") | {"image.bytes": "none"},
                use_dictionary=["source", "split", "concepts.list.element.granularity"],
                # With the null count of the bytes, readers know embedded images from references.
                write_statistics=["id", "width", "height", "image.bytes"],
            )
            self.shards.append({"file": path.name, "rows": 0})
        self._writer.write_table(pa.concat_tables(self._pending), row_group_size=self._pending_rows)
        self.shards[-1]["rows"] += self._pending_rows
        self._rows += self._pending_rows
        self._bytes += self._pending_bytes
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0
        if self._rows >= self.shard_rows or self._bytes >= SHARD_BYTES:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            path = self.folder / self.shards[-1]["file"]
            with path.open("rb") as file:
                self.shards[-1]["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
            self.shards[-1]["bytes"] = path.stat().st_size
        self._rows = self._bytes = 0

    def close(self) -> list[dict[str, Any]]:
        """Finish; returns the shards as ``manifest.json`` lists them. At least one is written."""
        if not self.shards and not self._pending_rows:
            self._pending = [self.schema.empty_table()]
            path = self.folder / SHARD_NAME.format(0)
            self._writer = pq.ParquetWriter(path, self.schema)
            self.shards.append({"file": path.name, "rows": 0})
        self._flush()
        self._close_shard()
        return self.shards


def _leaves(schema: pa.Schema) -> list[str]:
    """Parquet's column paths of the manifest schema."""
    lists = {"box": "box.list.element", "attributes": "attributes.list.element"}
    concept = [lists.get(f.name, f.name) for f in schema.field("concepts").type.value_type]
    flat = [name for name in schema.names if name not in ("image", "concepts")]
    return [*flat, "image.bytes", "image.path", *(f"concepts.list.element.{c}" for c in concept)]


class RejectsWriter:
    """Appends to ``rejects.parquet``."""

    def __init__(self, folder: Path) -> None:
        self._writer = pq.ParquetWriter(folder / REJECTS_NAME, REJECTS, compression="zstd")

    def write(self, table: pa.Table) -> None:
        """Append rows of ``schema.REJECTS``."""
        if len(table):
            self._writer.write_table(table)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write ``manifest.json``."""
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (folder / SUMMARY_NAME).write_text(text, encoding="utf-8")


def check_out(out: Path, name: str, *, force: bool) -> None:
    """Refuse to write where something else lies.

    Raises:
        UserError: ``out`` is a file, or a folder with other content than a manifest of ``name``.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file, but a manifest is a folder", "give another --out")
    if force or not out.is_dir() or not any(out.iterdir()):
        return
    summary = out / SUMMARY_NAME
    if not summary.is_file():
        if all(path.name.startswith(".") for path in out.iterdir()):
            return  # leftovers of a build that was cut off
        raise UserError(
            f"{out}: not empty and not a manifest",
            "give another --out, or --force to write into it",
        )
    try:
        found = json.loads(summary.read_text(encoding="utf-8")).get("name")
    except (ValueError, AttributeError):
        found = None
    if found != name:
        raise UserError(
            f"{out}: holds another manifest ({found})",
            "give another --out, or --force to replace it",
        )


def move_into_place(staged: Path, out: Path) -> None:
    """Replace the content of ``out`` by that of ``staged``.

    The summary goes first and comes last: a folder with ``manifest.json`` is a whole manifest.
    """
    summary = out / SUMMARY_NAME
    summary.unlink(missing_ok=True)
    names = {path.name for path in staged.iterdir()}
    for old in [*out.glob("manifest-*.parquet"), out / REJECTS_NAME]:
        if old.name not in names:
            old.unlink(missing_ok=True)
    for name in sorted(names - {SUMMARY_NAME}):
        (staged / name).replace(out / name)
    (staged / SUMMARY_NAME).replace(summary)
    shutil.rmtree(staged, ignore_errors=True)
