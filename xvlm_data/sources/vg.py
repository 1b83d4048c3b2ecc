"""Visual Genome, versions 1.0 to 1.4: region phrases, and objects with attributes.

Files: ``image_data.json`` and at least one of ``region_descriptions.json``, ``objects.json`` and
``attributes.json``; images in ``VG_100K/`` and ``VG_100K_2/``, as the last two parts of each url
say. Key names differ between versions and all are accepted. There is no official split. Images that
COCO, RefCOCO or Flickr30K hold out are left out by ``coco_id`` and ``flickr_id``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from xvlm_data.errors import UserError
from xvlm_data.leaks import evaluation_ids, usual_evaluation_files
from xvlm_data.raw.files import find_file, find_optional
from xvlm_data.raw.json_arrays import Int64
from xvlm_data.records import OBJECT, REGION, Records, pixel_sides
from xvlm_data.sources.base import Request


class _Image(msgspec.Struct, gc=False):
    width: int
    height: int
    url: str
    image_id: Int64 | None = None
    id: Int64 | None = None
    coco_id: Int64 | None = None
    flickr_id: Int64 | None = None


class _Region(msgspec.Struct, gc=False):
    x: float
    y: float
    width: float
    height: float
    phrase: str
    region_id: Int64 | None = None
    id: Int64 | None = None


class _Object(msgspec.Struct, gc=False):
    """An element of ``objects`` or of ``attributes``; the latter repeats box and names."""

    x: float
    y: float
    w: float
    h: float
    names: list[str] = []
    object_names: list[str] = []
    attributes: list[str] | None = None
    object_id: Int64 | None = None
    id: Int64 | None = None
    merged_object_ids: list[Int64] = []

    @property
    def number(self) -> int | None:
        return self.object_id if self.object_id is not None else self.id

    @property
    def name(self) -> str:
        return next(iter(self.names or self.object_names), "")


class _Owner(msgspec.Struct, gc=False):
    image_id: Int64 | None = None
    id: Int64 | None = None


class _Regions(_Owner, gc=False):
    regions: list[_Region] = []


class _Objects(_Owner, gc=False):
    objects: list[_Object] = []


class _Attributes(_Owner, gc=False):
    attributes: list[_Object] = []


class _Raw(_Owner, gc=False):
    regions: list[msgspec.Raw] = []
    objects: list[msgspec.Raw] = []
    attributes: list[msgspec.Raw] = []


class VisualGenome:
    """See the module."""

    name = "vg"
    licence = (
        "annotations CC BY 4.0 (Visual Genome); images from YFCC100M and COCO under their own "
        "Flickr licences"
    )
    merge_images = False

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        root = request.root
        image_data = find_file(root, ["image_data.json"], "image list")
        regions = find_optional(root, ["region_descriptions.json"])
        objects = find_optional(root, ["objects.json"])
        attributes = find_optional(root, ["attributes.json"])
        if not (regions or objects or attributes):
            raise UserError(
                f"{root}: no region_descriptions.json, objects.json or attributes.json",
                "unpack at least one of them there",
            )
        if request.split != "train":
            request.notes.append(
                f"vg has no official split: all its images are labelled {request.split!r}"
            )
        _read_images(image_data, request, records)
        if regions:
            _read_regions(regions, request, records)
        else:
            request.notes.append("no region_descriptions.json: the manifest has no regions")
        if objects:
            _read_objects(objects, "objects", request, records)
            if attributes:
                _read_attributes(attributes, request, records)
            else:
                request.notes.append("no attributes.json: objects have no attributes")
        elif attributes:
            request.notes.append("no objects.json: objects are taken from attributes.json")
            _read_objects(attributes, "attributes", request, records)
        else:
            request.notes.append("no objects.json: the manifest has no objects")


def _read_images(path: Path, request: Request, records: Records) -> None:
    files: Sequence[Path] = ()
    if not request.keep_leaks:
        given = request.evaluation_files
        files = usual_evaluation_files(request.root.resolve()) if given is None else given
        if not files:
            request.notes.append(
                "no evaluation files found: images of COCO val/test, RefCOCO and Flickr30K test "
                "were not left out (put dataset_coco.json into a coco folder beside this one, or "
                "give files with --exclude)"
            )
    held_out = evaluation_ids(files)
    part = records.part(path, "[{index}]")
    for elements in request.arrays(path, {"": _Image}):
        items: list[_Image] = elements.items
        records.malformed_images(part, elements.malformed)
        ids = [item.image_id if item.image_id is not None else item.id for item in items]
        leaked = np.isin([item.coco_id or -1 for item in items], held_out.coco_ids) | np.isin(
            [item.flickr_id or -1 for item in items], held_out.flickr_ids
        )
        problems = [
            "malformed" if number is None else "leak" if leak else None
            for number, leak in zip(ids, leaked, strict=True)
        ]
        if items:
            records.images(
                {
                    "key": ids,
                    "id": [None if number is None else f"vg/{number}" for number in ids],
                    "paths": [_paths(item.url) for item in items],
                    "width": pixel_sides([item.width for item in items]),
                    "height": pixel_sides([item.height for item in items]),
                    "part": [part] * len(items),
                    "index": elements.indices,
                    "problem": problems,
                    "detail": [_detail(item, p) for item, p in zip(items, problems, strict=True)],
                }
            )


def _detail(image: _Image, problem: str | None) -> str | None:
    if problem == "malformed":
        return "neither image_id nor id"
    if problem == "leak":
        return f"coco_id {image.coco_id}, flickr_id {image.flickr_id} is held out"
    return None


def _paths(url: str) -> list[str]:
    folder, _, name = "/".join(url.split("/")[-2:]).rpartition("/")
    folders = dict.fromkeys([folder or "VG_100K", "VG_100K", "VG_100K_2"])
    return [f"{above}{f}/{name}" for above in ("", "images/") for f in folders]


def _read_regions(path: Path, request: Request, records: Records) -> None:
    part = records.part(path, "[{index}].regions[{sub}]")
    for elements in request.arrays(path, {"": _Regions}):
        items = zip(elements.items, elements.indices, strict=True)
        rows = [
            (owner.image_id if owner.image_id is not None else owner.id, index, sub, region)
            for owner, index in items
            for sub, region in enumerate(owner.regions)
        ]
        rows += _salvage(elements.malformed, "regions", _Region, REGION, part, records)
        if rows:
            regions = [region for *_, region in rows]
            records.annotations(
                _places(rows, REGION, part)
                | {
                    "annotation_id": [
                        r.region_id if r.region_id is not None else r.id for r in regions
                    ],
                    "text": [r.phrase for r in regions],
                    "x": [r.x for r in regions],
                    "y": [r.y for r in regions],
                    "w": [r.width for r in regions],
                    "h": [r.height for r in regions],
                }
            )


def _read_objects(path: Path, key: str, request: Request, records: Records) -> None:
    """Objects from ``objects.json``, or from ``attributes.json``, which holds as much."""
    part = records.part(path, f"[{{index}}].{key}[{{sub}}]")
    for rows in _object_rows(path, key, OBJECT, part, request, records):
        objects = [item for *_, item in rows]
        records.annotations(
            _places(rows, OBJECT, part)
            | {
                "annotation_id": [o.number for o in objects],
                "text": [o.name for o in objects],
                "attributes": [o.attributes for o in objects],
                "x": [o.x for o in objects],
                "y": [o.y for o in objects],
                "w": [o.w for o in objects],
                "h": [o.h for o in objects],
            }
        )
        merged = [
            (row[0], row[3].number, alias) for row in rows for alias in row[3].merged_object_ids
        ]
        if merged:
            records.aliases(
                {
                    "key": [key for key, _, _ in merged],
                    "annotation_id": [number for _, number, _ in merged],
                    "alias": [alias for _, _, alias in merged],
                }
            )


def _read_attributes(path: Path, request: Request, records: Records) -> None:
    """Attributes of objects read before; joined by object id within the image."""
    part = records.part(path, "[{index}].attributes[{sub}]")
    for rows in _object_rows(path, "attributes", OBJECT, part, request, records):
        some = [row for row in rows if row[3].attributes]
        if some:
            records.attributes(
                {
                    "key": [row[0] for row in some],
                    "part": [part] * len(some),
                    "index": [row[1] for row in some],
                    "sub": [row[2] for row in some],
                    "annotation_id": [row[3].number for row in some],
                    "attributes": [row[3].attributes for row in some],
                }
            )


Row = tuple[int | None, int, int, Any]


def _object_rows(
    path: Path, key: str, kind: int, part: int, request: Request, records: Records
) -> Iterable[list[Row]]:
    element = _Objects if key == "objects" else _Attributes
    for elements in request.arrays(path, {"": element}):
        rows: list[Row] = [
            (owner.image_id if owner.image_id is not None else owner.id, index, sub, item)
            for owner, index in zip(elements.items, elements.indices, strict=True)
            for sub, item in enumerate(getattr(owner, key))
        ]
        rows += _salvage(elements.malformed, key, _Object, kind, part, records)
        if rows:
            yield rows


def _places(rows: Sequence[Row], kind: int, part: int) -> dict[str, list[Any]]:
    return {
        "key": [row[0] for row in rows],
        "kind": [kind] * len(rows),
        "part": [part] * len(rows),
        "index": [row[1] for row in rows],
        "sub": [row[2] for row in rows],
    }


def _salvage(
    malformed: Sequence[tuple[int, str, bytes]],
    key: str,
    kind: Any,
    label: int,
    part: int,
    records: Records,
) -> list[Row]:
    """The good items of images of which one item is malformed; the bad ones are recorded."""
    rows: list[Row] = []
    for index, why, text in malformed:
        try:
            owner = msgspec.json.decode(text, type=_Raw)
        except (ValueError, RecursionError):
            records.malformed(label, part, [(index, why, text)])
            continue
        image = owner.image_id if owner.image_id is not None else owner.id
        bad: list[tuple[int, str]] = []
        for sub, item in enumerate(getattr(owner, key)):
            try:
                rows.append((image, index, sub, msgspec.json.decode(item, type=kind)))
            except (ValueError, RecursionError) as error:
                bad.append((sub, str(error)))
        if bad:
            columns = _places([(image, index, sub, None) for sub, _ in bad], label, part)
            details = {"problem": ["malformed"] * len(bad), "detail": [why for _, why in bad]}
            records.annotations(columns | details)
    return rows


SOURCE = VisualGenome()
