"""Rows of ``rejects.parquet``: what did not make it, why, and where it is in the raw files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.records import IMAGES, KINDS, column
from xvlm_data.schema import REJECTS

#: A raw file (relative to the release) and how its elements are called.
Part = tuple[str, str]


@dataclass(frozen=True)
class RejectsMaker:
    """Turns records into rejects.

    Attributes:
        parts: the raw files that records point to.
    """

    parts: Sequence[Part]

    def images(self, images: pa.Table, reasons: pa.Array, details: pa.Array) -> pa.Table:
        """Rejects of image records, all of which have a reason."""
        return self._rows(
            images,
            ids=column(images, "id", IMAGES),
            kinds=_repeat("image", len(images)),
            reasons=reasons,
            messages=details,
        )

    def annotations(self, annotations: pa.Table, reasons: pa.Array, ids: pa.Array) -> pa.Table:
        """Rejects of annotations, all of which have a reason."""
        names = pa.DictionaryArray.from_arrays(column(annotations, "kind"), list(KINDS))
        return self._rows(
            annotations,
            ids=ids,
            kinds=names.cast(pa.string()),
            reasons=reasons,
            messages=pc.coalesce(column(annotations, "detail"), _describe(annotations)),
        )

    def attributes(self, attributes: pa.Table) -> pa.Table:
        """Rejects of attributes of objects that no file has."""
        count = len(attributes)
        return self._rows(
            attributes,
            ids=pa.nulls(count, pa.string()),
            kinds=_repeat("attributes", count),
            reasons=_repeat("unknown_object", count),
            messages=_repeat("no object of the image has this id", count),
        )

    def _rows(self, records: pa.Table, **columns: pa.Array) -> pa.Table:
        part = column(records, "part")
        files = pa.array([file for file, _ in self.parts], pa.string())
        return pa.table(
            {
                "source_file": files.take(part),
                "record_id": columns["ids"],
                "location": self._locations(records, part),
                "kind": columns["kinds"],
                "reason": columns["reasons"],
                "message": columns["messages"],
            },
            schema=REJECTS,
        )

    def _locations(self, records: pa.Table, part: pa.Array) -> pa.Array:
        """``annotations[7] id=12``, by each part's own template."""
        numbers = {"index": column(records, "index")}
        numbers["line"] = pc.add(numbers["index"], 1)
        numbers["sub"] = column(records, "sub")
        texts = {name: values.cast(pa.string()) for name, values in numbers.items()}
        found: pa.Array | None = None
        for place in pc.unique(part).to_pylist():
            here = _filled(self.parts[place][1], texts)
            found = here if found is None else pc.if_else(pc.equal(part, place), here, found)
        if found is None:
            return pa.array([], pa.string())
        if "annotation_id" not in records.column_names:
            return found
        ids = column(records, "annotation_id").cast(pa.string())
        named = pc.binary_join_element_wise(found, ids, " id=")
        return pc.coalesce(named, found)


def _filled(template: str, texts: dict[str, pa.Array]) -> pa.Array:
    pieces: list[Any] = []
    for literal, name, _, _ in Formatter().parse(template):
        if literal:
            pieces.append(pa.scalar(literal))
        if name:
            pieces.append(pc.fill_null(texts[name], "?"))
    return pc.binary_join_element_wise(*pieces, "")


def _describe(annotations: pa.Table) -> pa.Array:
    """``'a red dog' at x=1 y=2 w=3 h=4``, or the text alone where there is no box."""
    text = pc.fill_null(column(annotations, "text"), "")
    quoted = pc.binary_join_element_wise(pa.scalar("'"), text, pa.scalar("'"), "")
    sides: list[Any] = []
    for side in "xywh":
        values = column(annotations, side).to_numpy(zero_copy_only=False)
        # Four decimals tell any box; a float's shortest form can have seventeen digits.
        rounded = pa.array(np.round(values, 4), mask=np.isnan(values))
        sides += [f" {side}=", pc.fill_null(rounded.cast(pa.string()), "nan")]
    boxed = pc.binary_join_element_wise(quoted, " at", *sides, "")
    return pc.if_else(column(annotations, "x").is_valid(), boxed, quoted)


def _repeat(text: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(text), count)
