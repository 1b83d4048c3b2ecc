"""The JSON layout of COCO instances, which Objects365 shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from xvlm_data.raw.json_arrays import Int64
from xvlm_data.records import CAPTION, OBJECT, Records, pixel_sides
from xvlm_data.sources.base import Request
from xvlm_data.text import category_text


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
    category_id: int
    id: Int64 | None = None
    iscrowd: int = 0


class Caption(msgspec.Struct, gc=False):
    """An element of ``annotations`` of a captions file."""

    image_id: Int64
    caption: str
    id: Int64 | None = None


class Category(msgspec.Struct):
    """An element of ``categories``."""

    id: int
    name: str


#: From an image record to where its file may lie, and to why it is left out (or None).
Locate = Callable[[Image], list[str]]
Exclude = Callable[[np.ndarray[Any, np.dtype[np.int64]]], list[str | None]]


def read_images(
    source: str, elements: Any, part: int, records: Records, locate: Locate, exclude: Exclude
) -> None:
    """Write a chunk of ``images``."""
    items: list[Image] = elements.items
    records.malformed_images(part, elements.malformed)
    if items:
        ids = np.array([item.id for item in items], dtype=np.int64)
        records.images(
            {
                "key": ids,
                "id": [f"{source}/{item.id}" for item in items],
                "paths": [locate(item) for item in items],
                "width": pixel_sides([item.width for item in items]),
                "height": pixel_sides([item.height for item in items]),
                "part": [part] * len(items),
                "index": elements.indices,
                "problem": exclude(ids),
            }
        )


def read_captions(elements: Any, part: int, records: Records) -> None:
    """Write a chunk of a captions file's ``annotations``."""
    items: list[Caption] = elements.items
    records.malformed(CAPTION, part, elements.malformed)
    if items:
        records.annotations(
            {
                "key": [item.image_id for item in items],
                "kind": [CAPTION] * len(items),
                "part": [part] * len(items),
                "index": elements.indices,
                "annotation_id": [item.id for item in items],
                "text": [item.caption for item in items],
            }
        )


def read_boxes(elements: Any, part: int, records: Records, names: dict[int, str]) -> None:
    """Write a chunk of an instances file's ``annotations``; ``names`` is text by category id."""
    items: list[Box] = elements.items
    records.malformed(OBJECT, part, elements.malformed)
    if not items:
        return
    boxes = np.array([item.bbox for item in items], dtype=np.float64)
    texts = [names.get(item.category_id) for item in items]
    records.annotations(
        {
            "key": [item.image_id for item in items],
            "kind": [OBJECT] * len(items),
            "part": [part] * len(items),
            "index": elements.indices,
            "annotation_id": [item.id for item in items],
            "text": pa.array(texts, pa.string()),
            "x": boxes[:, 0],
            "y": boxes[:, 1],
            "w": boxes[:, 2],
            "h": boxes[:, 3],
            "crowd": [item.iscrowd != 0 for item in items],
            "problem": [None if text is not None else "unknown_category" for text in texts],
            "detail": [
                None if text is not None else f"category {item.category_id} is not in the file"
                for text, item in zip(texts, items, strict=True)
            ],
        }
    )


def read_instances(
    source: str,
    path: Path,
    request: Request,
    records: Records,
    locate: Locate,
    exclude: Exclude,
) -> None:
    """Read an instances file. Categories come first, wherever they stand in the file.

    Names are taken from the file, never from a built-in list: ids and spellings differ between
    releases.
    """
    names: dict[int, str] = {}
    for elements in request.arrays(path, {"categories": Category}):
        names |= {c.id: category_text(c.name, request.slashed_names) for c in elements.items}
    images = records.part(path, "images[{index}]")
    annotations = records.part(path, "annotations[{index}]")
    for elements in request.arrays(path, {"images": Image, "annotations": Box}):
        if elements.key == "images":
            read_images(source, elements, images, records, locate, exclude)
        else:
            read_boxes(elements, annotations, records, names)
