"""Reading annotation files in COCO's layout, of whatever data: ours, CVAT's, Roboflow's, yours.

The files are read as a build reads a release: in ranges, in bounded memory, with rejects. Files of
one suffix (``instances_train.json``, ``captions_train.json``) are about the same images and share
their numbers; those of another suffix are another part, and split. What an annotation has decides
what it is: a ``bbox`` and a ``caption`` are a region, a ``bbox`` and a category an object, a
``caption`` alone is a caption.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from xvlm_data.errors import UserError
from xvlm_data.ranges import Reading
from xvlm_data.raw.json_arrays import Elements, Int64
from xvlm_data.reading import Records
from xvlm_data.records import CAPTION, OBJECT, REGION, Sink, pixel_sides
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.coco_json import Category
from xvlm_data.storage import AnyPath
from xvlm_data.text import category_text

KINDS = ("instances", "captions", "regions")
#: Image ids below this leave room for the number of their part.
_ROOM = 1 << 48


class _Image(msgspec.Struct, gc=False):
    id: Int64
    file_name: str
    width: int = 0
    height: int = 0
    manifest_id: str | None = None
    source: str | None = None
    split: str | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: Int64
    bbox: tuple[float, float, float, float] | None = None
    category_id: int | None = None
    caption: str | None = None
    id: Int64 | None = None
    iscrowd: int = 0
    attribute_names: list[str] | None = None
    attributes: list[str] | dict[str, Any] | None = None


class CocoFiles(Source):
    """See the module.

    Attributes:
        files: that are read.
        images: folder of the pictures; None for that of the files, or ``images/`` in it.
    """

    merge_images = True

    def __init__(
        self, name: str, files: Sequence[Path], images: Path | None, licence: str, citation: str
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
        return self.images or request.root

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        parts = {
            suffix: number
            for number, suffix in enumerate(dict.fromkeys(map(suffix_of, self.files)))
        }
        for path in self.files:
            suffix = suffix_of(path)
            part = records.part(path, "images[{index}]")
            convert = partial(
                _convert_images,
                part=part,
                locate=_Locator(suffix),
                base=parts[suffix] * _ROOM,
                prefix=f"{self.name}/{suffix}/" if len(parts) > 1 else f"{self.name}/",
                split=split_of(suffix) if len(parts) > 1 else None,
            )
            records.read_arrays(path, {"images": Reading(_Image, convert)}, early=True)
        records.images_complete()
        for path in self.files:
            part = records.part(path, "annotations[{index}]")
            convert_annotations = partial(
                _convert_annotations, part=part, base=parts[suffix_of(path)] * _ROOM
            )
            wanted = {
                "annotations": Reading(_Annotation, convert_annotations),
                "categories": Reading(Category, optional=True),
            }
            given = records.read_arrays(path, wanted)
            records.labels[part] = {
                c.id: category_text(c.name, request.slashed_names)
                for c in given.get("categories", ())
            }


def annotation_files(paths: Sequence[Path]) -> list[Path]:
    """The files that were named; of a folder, those of :data:`KINDS` in it or its annotations/.

    Raises:
        UserError: there is nothing.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            here = [
                file
                for folder in (path, path / "annotations")
                for file in sorted(folder.glob("*.json"))
                if file.stem.partition("_")[0] in KINDS
            ]
            if not here:
                raise UserError(
                    f"{path}: no {', '.join(f'{kind}*.json' for kind in KINDS)} in it or in its "
                    "annotations/",
                    "name the annotation files themselves",
                )
            found += here
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder", "check the path")
    return found


def suffix_of(path: Path) -> str:
    """What tells the parts of a data set apart: ``train2017`` of ``instances_train2017.json``."""
    kind, _, suffix = path.stem.partition("_")
    return suffix if kind in KINDS else ""


def split_of(suffix: str) -> str:
    """The split that a suffix stands for: ``train2017`` is train."""
    return re.sub(r"(19|20)\d\d$", "", suffix) or suffix


@dataclass(frozen=True)
class _Locator:
    suffix: str

    def __call__(self, name: str) -> list[str]:
        folders = ["", "images/"]
        if self.suffix:
            folders += [f"{self.suffix}/", f"images/{self.suffix}/"]
        return [folder + name for folder in folders]


def _convert_images(
    elements: Elements[_Image],
    sink: Sink,
    *,
    part: int,
    locate: _Locator,
    base: int,
    prefix: str,
    split: str | None,
) -> None:
    items = elements.items
    sink.malformed_images(part, elements.malformed)
    if not items:
        return
    own = [
        i.manifest_id if i.manifest_id and i.manifest_id.startswith(f"{i.source}/") else None
        for i in items
    ]
    usable = [0 <= item.id < _ROOM for item in items]
    sink.images(
        {
            "key": [base + i.id if ok else None for i, ok in zip(items, usable, strict=True)],
            "id": [o or f"{prefix}{i.id}" for o, i in zip(own, items, strict=True)],
            "paths": [locate(item.file_name) for item in items],
            "width": pixel_sides([item.width for item in items]),
            "height": pixel_sides([item.height for item in items]),
            "source": [i.source if o else None for o, i in zip(own, items, strict=True)],
            "split": [item.split or split for item in items],
            "part": np.full(len(items), part, np.int16),
            "index": elements.indices,
            "problem": [None if ok else "malformed" for ok in usable],
            "detail": [None if ok else "its id is no number below 2^48" for ok in usable],
        }
    )


def _convert_annotations(
    elements: Elements[_Annotation], sink: Sink, *, part: int, base: int
) -> None:
    items = elements.items
    sink.malformed(OBJECT, part, elements.malformed)
    if not items:
        return
    kinds = [_kind(item) for item in items]
    boxes = np.array([item.bbox or (0, 0, 0, 0) for item in items], np.float64)
    no_text = [
        kind == OBJECT and item.category_id is None for kind, item in zip(kinds, items, strict=True)
    ]
    sink.annotations(
        {
            "key": [base + i.image_id if 0 <= i.image_id < _ROOM else None for i in items],
            "kind": np.array(kinds, np.int8),
            "part": np.full(len(items), part, np.int16),
            "index": elements.indices,
            "annotation_id": [item.id for item in items],
            "text": [item.caption for item in items],
            "label": [
                item.category_id if kind == OBJECT and _is_int32(item.category_id) else None
                for kind, item in zip(kinds, items, strict=True)
            ],
            "attributes": [item.attribute_names or _texts(item.attributes) for item in items],
            **{side: boxes[:, place] for place, side in enumerate("xywh")},
            "crowd": [bool(item.iscrowd) for item in items],
            "problem": ["malformed" if bad else None for bad in no_text],
            "detail": ["neither a category nor a caption" if bad else None for bad in no_text],
        }
    )


def _kind(item: _Annotation) -> int:
    if item.caption is None:
        return OBJECT
    return CAPTION if item.bbox is None else REGION


def _is_int32(number: int | None) -> bool:
    return number is not None and -(2**31) <= number < 2**31


def _texts(attributes: list[str] | dict[str, Any] | None) -> list[str]:
    """CVAT has attributes as a mapping; those that are words are ours."""
    if isinstance(attributes, dict):
        return [value for value in attributes.values() if isinstance(value, str)]
    return attributes or []
