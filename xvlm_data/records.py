"""Records: what a source says of its images, as columns, before anything is filtered.

A source writes these tables as it reads, in raw order; :mod:`xvlm_data.group` then brings the
annotations of each image together out of core. Every raw element becomes exactly one row of one of
them, also the ones that are already known to be wrong: those carry a ``problem``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CAPTION, REGION, OBJECT = 0, 1, 2
KINDS = ("caption", "region", "object")

#: ``key`` joins annotations to images; (part, index, sub) is the place in the raw files.
IMAGES = pa.schema(
    [
        pa.field("key", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("paths", pa.list_(pa.string())),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("part", pa.int16()),
        pa.field("index", pa.int64()),
        pa.field("problem", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
ANNOTATIONS = pa.schema(
    [
        pa.field("key", pa.int64()),
        pa.field("kind", pa.int8()),
        pa.field("part", pa.int16()),
        pa.field("index", pa.int64()),
        pa.field("sub", pa.int32()),
        pa.field("annotation_id", pa.int64()),
        pa.field("text", pa.string()),
        pa.field("attributes", pa.list_(pa.string())),
        pa.field("x", pa.float64()),
        pa.field("y", pa.float64()),
        pa.field("w", pa.float64()),
        pa.field("h", pa.float64()),
        pa.field("crowd", pa.bool_()),
        pa.field("problem", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
#: Attributes that another file has of objects (VG), and ids of objects merged into another.
ATTRIBUTES = pa.schema(
    [
        pa.field("key", pa.int64()),
        pa.field("part", pa.int16()),
        pa.field("index", pa.int64()),
        pa.field("sub", pa.int32()),
        pa.field("annotation_id", pa.int64()),
        pa.field("attributes", pa.list_(pa.string())),
    ]
)
ALIASES = pa.schema(
    [
        pa.field("key", pa.int64()),
        pa.field("annotation_id", pa.int64()),
        pa.field("alias", pa.int64()),
    ]
)
TABLES = {
    "images": IMAGES,
    "annotations": ANNOTATIONS,
    "attributes": ATTRIBUTES,
    "aliases": ALIASES,
}

Columns = Mapping[str, Sequence[Any] | pa.Array]


class Records:
    """The tables of a source on disk, filled while it reads.

    Attributes:
        parts: for each raw file or array within one: the file, and how elements of it are called
            (``annotations[7]``, ``line 7``).
    """

    def __init__(self, folder: Path) -> None:
        self.paths = {name: folder / f"{name}.parquet" for name in TABLES}
        self.parts: list[tuple[Path, str]] = []
        self._writers = {
            name: pq.ParquetWriter(self.paths[name], schema, compression="zstd")
            for name, schema in TABLES.items()
        }

    def part(self, file: Path, place: str) -> int:
        """A number for a raw file; ``place`` is a template such as ``annotations[{index}]``."""
        self.parts.append((file, place))
        return len(self.parts) - 1

    def images(self, columns: Columns) -> None:
        """Add rows of :data:`IMAGES`; columns not given are null."""
        self._write("images", columns)

    def annotations(self, columns: Columns) -> None:
        """Add rows of :data:`ANNOTATIONS`; columns not given are null."""
        self._write("annotations", columns)

    def attributes(self, columns: Columns) -> None:
        """Add rows of :data:`ATTRIBUTES`: they join objects by (key, annotation_id)."""
        self._write("attributes", columns)

    def aliases(self, columns: Columns) -> None:
        """Add rows of :data:`ALIASES`."""
        self._write("aliases", columns)

    def _write(self, name: str, columns: Columns) -> None:
        self._writers[name].write_table(_table(columns, TABLES[name]))

    def malformed(self, kind: int, part: int, elements: Sequence[tuple[int, str, bytes]]) -> None:
        """Add elements that could not be decoded, as annotations with a problem."""
        if elements:
            self.annotations(
                {
                    "kind": [kind] * len(elements),
                    "part": [part] * len(elements),
                    "index": [index for index, _, _ in elements],
                    "problem": ["malformed"] * len(elements),
                    "detail": [why for _, why, _ in elements],
                }
            )

    def malformed_images(self, part: int, elements: Sequence[tuple[int, str, bytes]]) -> None:
        """Add image records that could not be decoded."""
        if elements:
            self.images(
                {
                    "part": [part] * len(elements),
                    "index": [index for index, _, _ in elements],
                    "problem": ["malformed"] * len(elements),
                    "detail": [why for _, why, _ in elements],
                }
            )

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in self._writers.values():
            writer.close()


def pixel_sides(values: Sequence[int]) -> list[int | None]:
    """Widths or heights; what no picture can have is unknown, and the decoded image tells."""
    return [value if 0 < value < 2**31 else None for value in values]


def _table(columns: Columns, schema: pa.Schema) -> pa.Table:
    length = len(next(iter(columns.values())))
    arrays = []
    for field in schema:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(length, field.type))
        elif isinstance(values, pa.Array):
            arrays.append(values.cast(field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
