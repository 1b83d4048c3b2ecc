"""The JSON layout of COCO instances, which Objects365 shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa

from xvlm_data.ranges import Reading
from xvlm_data.raw.json_arrays import Elements, Int64
from xvlm_data.reading import Records
from xvlm_data.records import ABSENT, CAPTION, OBJECT, Sink, numbers, pixel_sides
from xvlm_data.sources.base import Request
from xvlm_data.storage import AnyPath
from xvlm_data.text import category_text

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class Image(msgspec.Struct, gc=False):
    """An element of ``images``."""

    id: Int64
    file_name: str
    width: int
    height: int


class Box(msgspec.Struct, gc=False):
    """An element of ``annotations`` of an instances file; polygons are not decoded."""

    image_id: Int64
    bbox: tuple[float, float, float, float]
    category_id: Int32
    id: Int64 | None = ABSENT
    iscrowd: int = 0


class Caption(msgspec.Struct, gc=False):
    """An element of ``annotations`` of a captions file."""

    image_id: Int64
    caption: str
    id: Int64 | None = ABSENT


class Category(msgspec.Struct):
    """An element of ``categories``."""

    id: Int32
    name: str


#: From image records to where their files may lie, and to why each is left out (or None); both
#: must be picklable.
Locate = Callable[[Image], list[str]]
Exclude = Callable[[np.ndarray[Any, np.dtype[np.int64]]], list[str | None]]


def convert_images(
    elements: Elements[Image],
    sink: Sink,
    *,
    source: str,
    part: int,
    locate: Locate,
    exclude: Exclude,
) -> None:
    """Some of ``images``."""
    items = elements.items
    sink.malformed_images(part, elements.malformed)
    if items:
        ids = np.fromiter((item.id for item in items), np.int64, len(items))
        sink.images(
            {
                "key": ids,
                "id": [f"{source}/{item.id}" for item in items],
                "paths": [locate(item) for item in items],
                "width": pixel_sides([item.width for item in items]),
                "height": pixel_sides([item.height for item in items]),
                "part": np.full(len(items), part, np.int16),
                "index": elements.indices,
                "problem": exclude(ids),
            }
        )


def convert_captions(elements: Elements[Caption], sink: Sink, *, part: int) -> None:
    """Some of a captions file's ``annotations``."""
    items = elements.items
    sink.malformed(CAPTION, part, elements.malformed)
    if items:
        sink.annotations(
            {
                "key": numbers_of(items, "image_id"),
                "kind": np.full(len(items), CAPTION, np.int8),
                "part": np.full(len(items), part, np.int16),
                "index": elements.indices,
                "annotation_id": numbers_of(items, "id"),
                "text": [item.caption for item in items],
            }
        )


def convert_boxes(elements: Elements[Box], sink: Sink, *, part: int) -> None:
    """Some of an instances file's ``annotations``."""
    items = elements.items
    sink.malformed(OBJECT, part, elements.malformed)
    if items:
        sink.annotations(
            {
                "key": numbers_of(items, "image_id"),
                "kind": np.full(len(items), OBJECT, np.int8),
                "part": np.full(len(items), part, np.int16),
                "index": elements.indices,
                "annotation_id": numbers_of(items, "id"),
                "label": np.fromiter(map(attrgetter("category_id"), items), np.int32, len(items)),
                "crowd": np.fromiter(map(attrgetter("iscrowd"), items), np.bool_, len(items)),
            }
            | box_columns(map(attrgetter("bbox"), items), len(items))
        )


def numbers_of(items: list[Any], name: str) -> pa.Array:
    """A 64-bit field of many elements; null where it is absent or null."""
    try:
        return numbers(map(attrgetter(name), items), len(items))
    except TypeError:  # a null among them
        given = [getattr(item, name) for item in items]
        return pa.array([None if v == ABSENT else v for v in given], pa.int64())


def box_columns(boxes: Any, count: int) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Columns x, y, w and h from an iterator over quadruples."""
    flat = np.fromiter(chain.from_iterable(boxes), np.float64, 4 * count)
    return {side: flat[place::4] for place, side in enumerate("xywh")}


def read_images(
    source: str, path: AnyPath, records: Records, locate: Locate, exclude: Exclude
) -> None:
    """Read the ``images`` of a file."""
    part = records.part(path, "images[{index}]")
    convert = partial(convert_images, source=source, part=part, locate=locate, exclude=exclude)
    records.read_arrays(path, {"images": Reading(Image, convert)}, early=True)


def read_captions(path: AnyPath, records: Records) -> None:
    """Read the ``annotations`` of a captions file."""
    part = records.part(path, "annotations[{index}]")
    records.read_arrays(
        path, {"annotations": Reading(Caption, partial(convert_captions, part=part))}
    )


def read_boxes(path: AnyPath, request: Request, records: Records) -> None:
    """Read the ``annotations`` and ``categories`` of an instances file.

    Names are taken from the file, never from a built-in list: ids and spellings differ between
    releases.
    """
    part = records.part(path, "annotations[{index}]")
    convert = partial(convert_boxes, part=part)
    given = records.read_arrays(
        path, {"annotations": Reading(Box, convert), "categories": Reading(Category)}
    )
    records.labels[part] = {
        c.id: category_text(c.name, request.slashed_names) for c in given["categories"]
    }
