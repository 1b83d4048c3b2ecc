"""Reading annotation files in COCO's layout, of whatever data: ours, CVAT's, Roboflow's, yours.

The files are read as a build reads a release: in ranges, in bounded memory, with rejects. Which are
about the same images is told by :mod:`.coco_parts`. What an annotation has decides what it is: a
``bbox`` and a ``caption`` are a region, a ``bbox`` and a category an object, a ``caption`` alone is
a caption. Integers may be written as pandas writes them (``100.0``), ``iscrowd`` as a boolean or
null.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from xvlm_data.formats.coco_parts import (
    ROOM,
    AnnotationFile,
    Int64s,
    JsonNumber,
    annotation_files,
    common_folder,
    find_parts,
    folders_of,
    has_own_id,
    image_number,
    prefix_of,
    whole,
)
from xvlm_data.ranges import Reading
from xvlm_data.raw.json_arrays import Elements
from xvlm_data.reading import Records
from xvlm_data.records import CAPTION, OBJECT, REGION, Sink, pixel_sides
from xvlm_data.sources.base import Request, Source
from xvlm_data.storage import AnyPath
from xvlm_data.text import category_text

__all__ = ["CocoFiles", "annotation_files"]


class _Image(msgspec.Struct, gc=False):
    id: JsonNumber
    file_name: str
    width: int | float | None = None
    height: int | float | None = None
    manifest_id: str | None = None
    source: str | None = None
    split: str | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: JsonNumber
    bbox: tuple[float, float, float, float] | None = None
    category_id: int | float | None = None
    caption: str | None = None
    id: int | float | None = None
    iscrowd: bool | int | float | None = None
    attribute_names: list[str] | None = None
    attributes: list[str] | dict[str, Any] | None = None


class _Category(msgspec.Struct):
    id: int | float
    name: str


class CocoFiles(Source):
    """See the module.

    Attributes:
        files: that are read.
        images: folder of the pictures; None for those of the files, or ``images/`` in them.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[AnnotationFile],
        images: Path | None,
        licence: str,
        citation: str,
    ) -> None:
        """Files of one name.

        Args:
            name: beginning of the ids, and source of the rows that name none.
            files: read.
            images: folder of the pictures.
            licence: of the data.
            citation: of it.
        """
        # Those of a release belong to its class; these files are a release of their own.
        self.name, self.licence, self.citation = name, licence, citation  # type: ignore[misc]
        self.files, self.images = files, images

    def image_root(self, request: Request) -> AnyPath:
        """See `Source.image_root`."""
        return self.images or common_folder(self.files).resolve()

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        found = find_parts(self.files, self.name, request)
        request.notes += found.notes
        numbered = [(part, n, file) for n, part in enumerate(found.parts) for file in part.files]
        root = self.images or common_folder(self.files)
        for part, number, file in numbered:
            convert = partial(
                _convert_images,
                part=records.part(file.path, "images[{index}]"),
                folders=folders_of(file, part, root, given=self.images is not None),
                base=number * ROOM,
                prefix=prefix_of(self.name, part),
                split=part.split,
                own_ids=found.own_ids,
                other_pictures=found.other_pictures[file.path],
            )
            records.read_arrays(file.path, {"images": Reading(_Image, convert)}, early=True)
        records.images_complete()
        for _, number, file in numbered:
            place = records.part(file.path, "annotations[{index}]")
            convert_annotations = partial(
                _convert_annotations,
                part=place,
                base=number * ROOM,
                other_pictures=found.other_pictures[file.path],
            )
            wanted = {
                "annotations": Reading(_Annotation, convert_annotations),
                "categories": Reading(_Category, optional=True),
            }
            given = records.read_arrays(file.path, wanted)
            records.labels[place] = {
                label: category_text(category.name, request.slashed_names)
                for category in given.get("categories", ())
                if (label := _in_bits(category.id, 32)) is not None
            }


def _convert_images(
    elements: Elements[_Image],
    sink: Sink,
    *,
    part: int,
    folders: Sequence[str],
    base: int,
    prefix: str,
    split: str | None,
    own_ids: bool,
    other_pictures: Int64s,
) -> None:
    items = elements.items
    sink.malformed_images(part, elements.malformed)
    if not items:
        return
    ids = [image_number(item.id) for item in items]
    own = [
        i.manifest_id if own_ids and has_own_id(i.manifest_id, i.source) else None for i in items
    ]
    problems = [None if number is not None else "malformed" for number in ids]
    details = [None if number is not None else "its id is no number below 2^48" for number in ids]
    for place in _among(ids, other_pictures):
        problems[place] = "duplicate_image"
        details[place] = f"another file has id {ids[place]} for another file_name"
    sink.images(
        {
            "key": [
                None if problem or number is None else base + number
                for number, problem in zip(ids, problems, strict=True)
            ],
            "id": [
                mine or f"{prefix}{item.id if number is None else number}"
                for mine, number, item in zip(own, ids, items, strict=True)
            ],
            "paths": [[folder + item.file_name for folder in folders] for item in items],
            "width": pixel_sides([whole(item.width) or 0 for item in items]),
            "height": pixel_sides([whole(item.height) or 0 for item in items]),
            "source": [i.source if mine else None for mine, i in zip(own, items, strict=True)],
            "split": [item.split or split for item in items],
            "part": np.full(len(items), part, np.int16),
            "index": elements.indices,
            "problem": problems,
            "detail": details,
        }
    )


def _convert_annotations(
    elements: Elements[_Annotation],
    sink: Sink,
    *,
    part: int,
    base: int,
    other_pictures: Int64s,
) -> None:
    items = elements.items
    sink.malformed(OBJECT, part, elements.malformed)
    if not items:
        return
    kinds = [_kind(item) for item in items]
    images = [image_number(item.image_id) for item in items]
    boxes = np.array([item.bbox or (0, 0, 0, 0) for item in items], np.float64)
    labels = [
        _in_bits(item.category_id, 32) if kind == OBJECT else None
        for kind, item in zip(kinds, items, strict=True)
    ]
    details = [
        _problem(kind, label, item) for kind, label, item in zip(kinds, labels, items, strict=True)
    ]
    problems = ["malformed" if detail else None for detail in details]
    keys = [None if number is None else base + number for number in images]
    for place in _among(images, other_pictures):
        # The image that has the key is of another file, and another picture than is meant here.
        keys[place] = None
        details[place] = details[place] or f"image {images[place]} of this file was left out"
    sink.annotations(
        {
            "key": keys,
            "kind": np.array(kinds, np.int8),
            "part": np.full(len(items), part, np.int16),
            "index": elements.indices,
            "annotation_id": [_in_bits(item.id, 64) for item in items],
            "text": [item.caption for item in items],
            "label": pa.array(labels, pa.int32()),
            "attributes": [item.attribute_names or _texts(item.attributes) for item in items],
            **{side: boxes[:, place] for place, side in enumerate("xywh")},
            "crowd": [_is_crowd(item.iscrowd) for item in items],
            "problem": problems,
            "detail": details,
        }
    )


def _problem(kind: int, label: int | None, item: _Annotation) -> str | None:
    if kind == OBJECT and label is None:
        if item.category_id is None:
            return "neither a category nor a caption"
        return "its category_id is no whole number below 2^31"
    return "its image_id is no whole number" if whole(item.image_id) is None else None


def _among(numbers: Sequence[int | None], chosen: Int64s) -> Sequence[int]:
    """The places of numbers that are among the chosen ones."""
    if not len(chosen):
        return ()
    given = np.array([-1 if number is None else number for number in numbers], np.int64)
    return np.flatnonzero(np.isin(given, chosen)).tolist()


def _kind(item: _Annotation) -> int:
    if item.caption is None:
        return OBJECT
    return CAPTION if item.bbox is None else REGION


def _is_crowd(given: float | None) -> bool:
    return bool(given) and given == given  # NaN is how pandas writes that there is none


def _in_bits(number: float | None, bits: int) -> int | None:
    """The integer that a number is, where a column of so many bits can hold it."""
    found = whole(number)
    half = 1 << (bits - 1)
    return found if found is not None and -half <= found < half else None


def _texts(attributes: list[str] | dict[str, Any] | None) -> list[str]:
    """CVAT has attributes as a mapping; those that are words are ours."""
    if isinstance(attributes, dict):
        return [value for value in attributes.values() if isinstance(value, str)]
    return attributes or []
