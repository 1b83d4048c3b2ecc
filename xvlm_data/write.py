"""Writing a manifest folder: shards, rejects and ``manifest.json``.

Shards are written into a hidden folder inside the product and moved into place at the end, the
summary last; a build that was cut off leaves the previous manifest as it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xvlm_data.errors import UserError
from xvlm_data.manifest import REJECTS_NAME, SUMMARY_NAME
from xvlm_data.publish.croissant import CROISSANT_NAME, write_croissant
from xvlm_data.schema import REJECTS
from xvlm_data.storage import AnyPath, is_local, missing_bucket, read_json, write_json

SHARD_NAME = "manifest-{:05d}.parquet"

#: Row groups are what a shuffling reader loads at once.
ROW_GROUP_ROWS = 4_096
ROW_GROUP_BYTES = 32 << 20

_COMPRESSION = {"image.bytes": "none", "concepts.list.element.box.list.element": "snappy"}


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How the columns of a manifest are written, for ``pq.ParquetWriter``."""
    return {
        # JPEG bytes do not compress, and boxes hardly; text does.
        "compression": dict.fromkeys(_leaves(schema), "zstd") | _COMPRESSION,
        "use_dictionary": ["source", "split", "concepts.list.element.granularity"],
        # With the null count of the bytes, readers know embedded images from references.
        "write_statistics": ["id", "width", "height", "image.bytes"],
    }


class ShardWriter:
    """Writes one shard; cuts row groups by rows and by embedded bytes. A context manager.

    The file appears when the context ends without an error, and not otherwise.
    """

    def __init__(self, path: AnyPath, schema: pa.Schema) -> None:
        """Begin.

        Args:
            path: of the file.
            schema: of the rows, with the manifest's footer.
        """
        self.path, self.schema = path, schema
        self.rows = 0
        self._file = _Hashing(path)
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            **parquet_options(schema),
        )
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            with suppress(Exception):  # or it tries when it is collected, and complains
                self._writer.close()
            self._file.discard()
            return
        self._flush()
        self._writer.close()
        self._file.publish()

    def write(self, table: pa.Table) -> None:
        """Append rows."""
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
            table = pa.concat_tables(self._pending)
            self._writer.write_table(table, row_group_size=self._pending_rows)
            self.rows += self._pending_rows
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def entry(self) -> dict[str, Any]:
        """The shard as ``manifest.json`` lists it, once it is written."""
        return {
            "file": self.path.name,
            "rows": self.rows,
            "sha256": self._file.digest.hexdigest(),
            "bytes": self._file.size,
        }


class _Hashing(io.RawIOBase):
    """A file under another name until it is complete, whose checksum is taken as it is written."""

    def __init__(self, path: AnyPath) -> None:
        self.target = path
        # The name tells processes apart that write the same file.
        self._part = path.with_name(f".{path.name}.{os.getpid()}") if is_local(path) else path
        self._file: BinaryIO = self._part.open("wb")
        self.digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        self._file.write(data)
        return memoryview(data).nbytes

    def publish(self) -> None:
        self._file.close()
        if is_local(self._part):
            self._part.replace(self.target)

    def discard(self) -> None:
        if is_local(self._part):
            self._file.close()
            self._part.unlink(missing_ok=True)


def _leaves(schema: pa.Schema) -> list[str]:
    """Parquet's paths of all columns."""

    def below(path: str, kind: pa.DataType) -> list[str]:
        if pa.types.is_struct(kind):
            return [leaf for field in kind for leaf in below(f"{path}.{field.name}", field.type)]
        if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            return below(f"{path}.list.element", kind.value_type)
        return [path]

    return [leaf for field in schema for leaf in below(field.name, field.type)]


class RejectsWriter:
    """Appends to ``rejects.parquet``."""

    def __init__(self, folder: AnyPath) -> None:
        self._file = _Hashing(folder / REJECTS_NAME)
        self._writer = pq.ParquetWriter(
            self._file,
            REJECTS,
            compression="snappy",
            use_dictionary=["source_file", "kind", "reason"],
            write_statistics=["source_file", "kind", "reason"],
        )

    def write(self, table: pa.Table) -> None:
        """Append rows of ``schema.REJECTS``."""
        if len(table):
            self._writer.write_table(table)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        self._file.publish()


def check_out(out: AnyPath, name: str, *, force: bool) -> None:
    """Refuse to write where something else lies.

    Raises:
        UserError: ``out`` is a file, or a folder with other content than a manifest of ``name``; or
            it lies in a bucket that does not exist.
    """
    if bucket := missing_bucket(out):
        raise UserError(f"{bucket}: no such bucket", "check its name in --out, or make it first")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file, but a manifest is a folder", "give another --out")
    if force or not out.is_dir() or not any(out.iterdir()):
        return
    summary = out / SUMMARY_NAME
    if not summary.is_file():
        if all(path.name.startswith(".") for path in out.iterdir()):
            return  # a build that was cut off
        if (out / ".building").is_dir():
            return  # one that was cut off while its files were moved into place
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


def move_into_place(staged: AnyPath, out: AnyPath, summary: dict[str, Any]) -> None:
    """Replace the manifest in ``out`` by the files in ``staged``; can be repeated after a kill.

    The summary goes first and comes last: a folder with ``manifest.json`` is a whole manifest.

    Args:
        staged: folder of the shards and the rejects.
        out: the manifest's folder.
        summary: content of ``manifest.json``.
    """
    names = [*(shard["file"] for shard in summary["shards"]), REJECTS_NAME, CROISSANT_NAME]
    if read_json(out / SUMMARY_NAME) == summary and not any(
        (staged / name).exists() for name in names
    ):
        return
    first = next(place / names[0] for place in (staged, out) if (place / names[0]).exists())
    write_croissant(staged, summary, first)
    write_json(staged / SUMMARY_NAME, summary, indent=2)
    (out / SUMMARY_NAME).unlink(missing_ok=True)
    for old in [*out.glob("manifest-*.parquet"), out / REJECTS_NAME]:
        if old.name not in names:
            old.unlink(missing_ok=True)
    for name in [*names, SUMMARY_NAME]:
        if (staged / name).exists():
            (staged / name).rename(out / name)
