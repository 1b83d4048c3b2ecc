"""Records: what a source says of its images, as columns, before anything is filtered.

A source fills these tables as it reads, in raw order. Every raw element becomes exactly one row of
one of them, also the ones that are already known to be wrong: those carry a ``problem``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.sorting import stable_order

CAPTION, REGION, OBJECT, QUESTION = 0, 1, 2, 3
#: ``question`` is what evaluation sets ask of an image; it is no concept.
KINDS = ("caption", "region", "object", "question")

#: ``key`` joins annotations to images; (part, index, sub) is the place in the raw files. ``source``
#: and ``split`` are the build's own where an image has none.
IMAGES = pa.schema(
    [
        pa.field("key", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("paths", pa.list_(pa.string())),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("source", pa.string()),
        pa.field("split", pa.string()),
        pa.field("part", pa.int16()),
        pa.field("index", pa.int64()),
        pa.field("problem", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
#: ``label`` is a category id that :meth:`Sink.labels` gives the text of, instead of ``text``.
ANNOTATIONS = pa.schema(
    [
        pa.field("key", pa.int64()),
        pa.field("kind", pa.int8()),
        pa.field("part", pa.int16()),
        pa.field("index", pa.int64()),
        pa.field("sub", pa.int32()),
        pa.field("annotation_id", pa.int64()),
        pa.field("text", pa.string()),
        pa.field("label", pa.int32()),
        pa.field("attributes", pa.list_(pa.string())),
        pa.field("x", pa.float64()),
        pa.field("y", pa.float64()),
        pa.field("w", pa.float64()),
        pa.field("h", pa.float64()),
        pa.field("crowd", pa.bool_()),
        pa.field("extra", pa.string()),
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

#: Stands for an absent number while columns are NumPy arrays; becomes null in the tables.
ABSENT = -(2**63)

Columns = Mapping[str, Sequence[Any] | np.ndarray[Any, Any] | pa.Array]


class Sink:
    """Takes rows of the record tables and keeps them in memory."""

    def __init__(self) -> None:
        self._tables: dict[str, list[pa.Table]] = {}
        self._settled: dict[str, int] = {}

    def images(self, columns: Columns) -> None:
        """Add rows of :data:`IMAGES`; columns not given are null."""
        self._add("images", columns)

    def annotations(self, columns: Columns) -> None:
        """Add rows of :data:`ANNOTATIONS`; columns not given are null."""
        self._add("annotations", columns)

    def attributes(self, columns: Columns) -> None:
        """Add rows of :data:`ATTRIBUTES`: they join objects by (key, annotation_id)."""
        self._add("attributes", columns)

    def aliases(self, columns: Columns) -> None:
        """Add rows of :data:`ALIASES`."""
        self._add("aliases", columns)

    def malformed(self, kind: int, part: int, elements: Sequence[tuple[int, str, bytes]]) -> None:
        """Add elements that could not be decoded, as annotations with a problem."""
        if elements:
            self.annotations(_malformed(part, elements) | {"kind": [kind] * len(elements)})

    def malformed_images(self, part: int, elements: Sequence[tuple[int, str, bytes]]) -> None:
        """Add image records that could not be decoded."""
        if elements:
            self.images(_malformed(part, elements))

    def rows(self) -> int:
        """Rows of all tables that wait to be taken."""
        return sum(len(table) for tables in self._tables.values() for table in tables)

    def settle(self) -> None:
        """Put what has been added since the last time in raw order: what comes later is later."""
        for name, tables in self._tables.items():
            settled = self._settled.get(name, 0)
            if len(tables) > settled + 1:
                tables[settled:] = [_in_raw_order(_joined(tables[settled:]))]
            self._settled[name] = len(tables)

    def take(self) -> dict[str, pa.Table]:
        """All rows so far, by table; columns that nobody gave are absent. Forgets them."""
        taken = {name: _in_raw_order(_joined(tables)) for name, tables in self._tables.items()}
        self._tables, self._settled = {}, {}
        return taken

    def _add(self, name: str, columns: Columns) -> None:
        table = _table(columns, TABLES[name])
        if len(table):
            self._tables.setdefault(name, []).append(table)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables, promote_options="default")


def _in_raw_order(table: pa.Table) -> pa.Table:
    """Sources add malformed elements apart from the others; their place must not depend on that."""
    if "index" not in table.column_names:
        return table
    index, part = (pc.fill_null(column(table, name), 0).to_numpy() for name in ("index", "part"))
    if not ((index[1:] < index[:-1]) & (part[1:] == part[:-1])).any():
        return table
    order = stable_order(index)
    return table.take(pa.array(order[stable_order(part[order])]))


def pixel_sides(values: Sequence[int]) -> pa.Array:
    """Widths or heights; what no picture can have is unknown, and the decoded image tells."""
    try:
        sides = np.fromiter(values, np.int64, len(values))
    except OverflowError:
        return pa.array([v if 0 < v < 2**31 else None for v in values], pa.int32())
    bad = (sides <= 0) | (sides >= 2**31)
    return pa.array(np.where(bad, 0, sides).astype(np.int32), mask=bad)


def numbers(values: Iterable[int], count: int) -> pa.Array:
    """64-bit integers, ``count`` of them, of which :data:`ABSENT` ones are null."""
    array = np.fromiter(values, np.int64, count)
    absent = array == ABSENT
    return pa.array(array, mask=absent) if absent.any() else pa.array(array)


def _malformed(part: int, elements: Sequence[tuple[int, str, bytes]]) -> dict[str, Any]:
    return {
        "part": [part] * len(elements),
        "index": [index for index, _, _ in elements],
        "problem": ["malformed"] * len(elements),
        "detail": [why for _, why, _ in elements],
    }


def _table(columns: Columns, schema: pa.Schema) -> pa.Table:
    arrays, fields = [], []
    for name, values in columns.items():
        field = schema.field(name)
        if not isinstance(values, pa.Array | pa.ChunkedArray):
            values = pa.array(values, field.type)
        arrays.append(values if values.type == field.type else values.cast(field.type))
        fields.append(field)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def column(table: pa.Table, name: str, schema: pa.Schema = ANNOTATIONS) -> pa.Array:
    """One column in one piece; nulls where the table has none of that name."""
    if name not in table.column_names:
        return pa.nulls(len(table), schema.field(name).type)
    chunked = table[name]
    if chunked.num_chunks == 1:
        return chunked.chunk(0)
    return chunked.combine_chunks() if chunked.num_chunks else pa.array([], chunked.type)


def count_kinds(annotations: pa.Table) -> dict[str, int]:
    """How many rows there are of each kind."""
    pairs = pc.value_counts(column(annotations, "kind")).to_pylist()
    return {KINDS[pair["values"]]: pair["counts"] for pair in pairs}
