"""The rows to download: a manifest whose images are URLs, read by ranges."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.errors import ManifestError, UserError
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.schema import FIELDS


class UrlRows:
    """A manifest of URLs; rows are numbered from 0 over all of its shards.

    Attributes:
        name: what to call the input where rejects are listed.
        total: rows to download.
        info: provenance of the input: name, source, split, licence, …
        fields: the schema of its rows: ``schema.FIELDS``, and what columns it has beyond.
    """

    def __init__(self, manifest: Manifest, name: str, limit: int | None = None) -> None:
        self._manifest, self.name = manifest, name
        self.total = min(len(manifest), limit if limit is not None else len(manifest))
        self.info: dict[str, Any] = manifest.info
        #: (shard, row group) of each row group, and the row after its last.
        self._groups = [
            (number, group)
            for number, shard in enumerate(manifest.shards)
            for group in range(len(shard.row_groups))
        ]
        rows = [n for shard in manifest.shards for n in shard.row_groups]
        self._ends = np.cumsum(np.array(rows, dtype=np.int64))
        self.fields: pa.Schema = FIELDS
        if self._groups:
            found = manifest.read_row_group(*self._groups[0]).schema
            for field in found.remove_metadata():
                if field.name not in FIELDS.names:
                    self.fields = self.fields.append(field)

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows ``start`` to ``stop`` in the manifest schema, without any image bytes.

        Raises:
            ManifestError: a file is damaged, or holds other types.
        """
        parts = []
        group = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = int(self._ends[group])
            shard, within = self._groups[group]
            table = self._manifest.read_row_group(shard, within)
            first = end - len(table)
            part = table.slice(start - first, min(stop, end) - start)
            parts.append(_conform(part, self.fields))
            start, group = end, group + 1
        return pa.concat_tables(parts) if parts else self.fields.empty_table()


def open_url_rows(
    spec: str, limit: int | None = None, *, listed: tuple[Path, str] | None = None
) -> UrlRows:
    """Open a manifest whose images are to be downloaded.

    Args:
        spec: the manifest.
        limit: rows to take; None for all.
        listed: the table that the manifest was made of, and its column of URLs.

    Raises:
        UserError: no manifest, or its images are no URLs.
    """
    name = Path(spec).name or spec if listed is None else listed[0].name
    rows = UrlRows(open_manifest(spec), name, limit)
    first = rows.read(0, min(rows.total, 100))
    image = first["image"].combine_chunks()
    paths = pc.struct_field(image, "path").to_pylist()
    if rows.total and not any("://" in (path or "") for path in paths):
        if listed is not None:
            raise UserError(
                f"{listed[0]}: no web addresses in column {listed[1]!r}, but {paths[0][:80]!r}",
                "give the column of URLs with --url-column",
            )
        raise UserError(
            f"{spec}: its images are files or embedded already, not URLs",
            "build it with `--images url`, or give a list of URLs with --url-column",
        )
    return rows


def fingerprint(spec: str) -> dict[str, str]:
    """Names and SHA-256 of the files of a manifest; from ``manifest.json`` where it has them.

    Raises:
        UserError: a file cannot be read.
    """
    manifest = open_manifest(spec)
    told = {
        shard["file"]: shard.get("sha256")
        for shard in (manifest.summary or {}).get("shards", ())
        if isinstance(shard, dict)
    }
    paths = [Path(shard.url) for shard in manifest.shards]
    names = Counter(path.name for path in paths)
    return {  # files of several manifests may have one name
        path.name if names[path.name] == 1 else "/".join(path.parts[-2:]): (
            told.get(path.name) or file_digest(shard.url)
        )
        for path, shard in zip(paths, manifest.shards, strict=True)
    }


def file_digest(url: str) -> str:
    """The SHA-256 of a file here or elsewhere.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with fsspec.open(url, "rb") as file:
            while piece := file.read(8 << 20):
                digest.update(piece)
    except OSError as error:
        raise UserError(f"{url}: {error.strerror or error}", "check the path") from error
    return digest.hexdigest()


def _conform(table: pa.Table, fields: pa.Schema) -> pa.Table:
    """Another writer's types as the schema has them; image bytes are dropped."""
    columns = []
    for field in fields:
        column = table[field.name]
        if field.name == "image":
            paths = pc.struct_field(column.combine_chunks(), "path").cast(pa.string())
            bytes_ = pa.nulls(len(table), pa.binary())
            column = pa.StructArray.from_arrays([bytes_, paths], fields=list(field.type))
        elif column.type != field.type:
            try:
                if pa.types.is_dictionary(field.type) and pa.types.is_dictionary(column.type):
                    column = column.cast(column.type.value_type)
                column = column.cast(field.type)
            except pa.ArrowException as error:
                what = f"column {field.name!r} is {column.type}, not {field.type} ({error})"
                raise ManifestError(what, "build the manifest again") from error
        columns.append(column)
    return pa.table(columns, schema=fields)
