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
from xvlm_data.sorting import stable_order

#: A raw file (relative to the release) and how its elements are called.
Part = tuple[str, str]


@dataclass(frozen=True)
class RejectsMaker:
    """Turns records into rejects.

    Attributes:
        parts: the raw files that records point to.
    """

    parts: Sequence[Part]

    @staticmethod
    def columns(annotations: pa.Table) -> list[str]:
        """What :meth:`annotations` needs."""
        wanted = ("kind", "part", "index", "sub", "annotation_id", "text", *"xywh", "detail")
        return [name for name in wanted if name in annotations.column_names]

    def images(self, images: pa.Table, reasons: pa.Array, details: pa.Array) -> pa.Table:
        """Rejects of image records, all of which have a reason."""
        return self._rows(
            images,
            ids=column(images, "id", IMAGES),
            kinds=repeat_label("image", len(images)),
            reasons=reasons,
            messages=details,
        )

    def annotations(
        self, annotations: pa.Table, reasons: pa.DictionaryArray, ids: pa.Array
    ) -> pa.Table:
        """Rejects of annotations, all of which have a reason."""
        kinds = column(annotations, "kind").cast(pa.int32())
        return self._rows(
            annotations,
            ids=ids,
            kinds=pa.DictionaryArray.from_arrays(kinds, list(KINDS)),
            reasons=reasons,
            messages=pc.coalesce(column(annotations, "detail"), _describe(annotations, reasons)),
        )

    def attributes(self, attributes: pa.Table) -> pa.Table:
        """Rejects of attributes of objects that no file has."""
        count = len(attributes)
        return self._rows(
            attributes,
            ids=pa.nulls(count, pa.string()),
            kinds=repeat_label("attributes", count),
            reasons=repeat_label("unknown_object", count),
            messages=pa.repeat(pa.scalar("no object of the image has this id"), count),
        )

    def _rows(self, records: pa.Table, **columns: pa.Array) -> pa.Table:
        part = column(records, "part")
        files = pa.array([file for file, _ in self.parts], pa.string())
        return pa.table(
            {
                "source_file": pa.DictionaryArray.from_arrays(part.cast(pa.int32()), files),
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
        parts = pc.unique(part)
        templates = [_pieces(self.parts[place][1]) for place in parts.to_pylist()]
        if not templates:
            return pa.array([], pa.string())
        if len({names for _, names in templates}) > 1:  # of sources with files of several layouts
            return self._apart(records, part, parts)
        numbers = {"index": column(records, "index"), "sub": column(records, "sub")}
        if "line" in templates[0][1]:
            numbers["line"] = pc.add(numbers["index"], 1)
        template = pc.index_in(part, value_set=parts)
        literals: list[Any] = [
            texts[0] if len(templates) == 1 else pa.array(texts).take(template)
            for texts in zip(*(texts for texts, _ in templates), strict=True)
        ]
        pieces = [literals[0]]
        for name, literal in zip(templates[0][1], literals[1:], strict=True):
            pieces += [pc.fill_null(numbers[name].cast(pa.string()), "?"), literal]
        if "annotation_id" in records.column_names:
            ids = column(records, "annotation_id").cast(pa.string())
            if not ids.null_count:
                pieces += [" id=", ids]
            else:
                named = pc.binary_join_element_wise(" id=", ids, "")
                pieces.append(pc.fill_null(named, ""))
        return pc.binary_join_element_wise(*pieces, "")

    def _apart(self, records: pa.Table, part: pa.Array, parts: pa.Array) -> pa.Array:
        """The same, part by part."""
        places = [np.flatnonzero(pc.equal(part, place)) for place in parts]
        found = [
            self._locations(records.take(pa.array(rows)), part.take(pa.array(rows)))
            for rows in places
        ]
        back = stable_order(np.concatenate(places))
        return pa.concat_arrays(found).take(pa.array(back))


def _pieces(template: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(texts, names) of a template: names stand between the texts, one fewer."""
    texts, names = [], []
    for literal, name, _, _ in Formatter().parse(template):
        texts.append(literal)
        if name:
            names.append(name)
    if len(texts) == len(names):
        texts.append("")
    return tuple(texts), tuple(names)


def _describe(annotations: pa.Table, reasons: pa.DictionaryArray) -> pa.Array:
    """``'a red dog'``, and ``at x=1 y=2 w=3 h=4`` where the box is the reason."""
    text = pc.fill_null(column(annotations, "text"), "")
    quoted = pc.binary_join_element_wise(pa.scalar("'"), text, pa.scalar("'"), "")
    of_boxes = [i for i, name in enumerate(reasons.dictionary.to_pylist()) if "box_" in name]
    about_box = pc.is_in(reasons.indices, value_set=pa.array(of_boxes, reasons.indices.type))
    if not pc.any(about_box).as_py():
        return quoted
    some = annotations.filter(about_box)
    sides: list[Any] = []
    for side in "xywh":
        values = _shortened(column(some, side))
        sides += [f" {side}=", pc.fill_null(values.cast(pa.string()), "?")]
    boxed = pc.binary_join_element_wise(quoted.filter(about_box), " at", *sides, "")
    return pc.replace_with_mask(quoted, about_box, boxed)


def _shortened(values: pa.Array) -> pa.Array:
    """Floats to four places, as their shortest forms can have 17; huge ones as they are."""
    few = pc.less(pc.abs(values), 1e15)  # beyond, rounding changes nothing but can overflow
    return pc.if_else(few, pc.round(pc.if_else(few, values, 0.0), 4), values)


def repeat_label(text: str, count: int) -> pa.DictionaryArray:
    """The same label for many records."""
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), count), [text])
