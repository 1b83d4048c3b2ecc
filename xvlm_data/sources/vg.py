"""Visual Genome, versions 1.0 to 1.4: region phrases, and objects with attributes.

Files: ``image_data.json`` and at least one of ``region_descriptions.json``, ``objects.json`` and
``attributes.json``; images in ``VG_100K/`` and ``VG_100K_2/``, as the last two parts of each url
say. Key names differ between versions and all are accepted. There is no official split. Images that
COCO, RefCOCO or Flickr30K hold out are left out by ``coco_id`` and ``flickr_id``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from xvlm_data.errors import UserError
from xvlm_data.ranges import Reading
from xvlm_data.raw.files import find_file, find_optional
from xvlm_data.raw.json_arrays import Elements
from xvlm_data.reading import Records
from xvlm_data.records import ABSENT, OBJECT, REGION, Sink, pixel_sides
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.coco_json import numbers_of
from xvlm_data.sources.held_out import held_out_ids
from xvlm_data.sources.vg_json import (
    Attributes,
    Described,
    Descriptions,
    Image,
    Object,
    Objects,
    Region,
    Regions,
    either,
    salvage,
)
from xvlm_data.storage import AnyPath


class VisualGenome(Source):
    """See the module."""

    name = "vg"
    licence = (
        "annotations CC BY 4.0 (Visual Genome); images from YFCC100M and COCO under their own "
        "Flickr licences"
    )
    citation = citations.VISUAL_GENOME
    homepage = "https://homes.cs.washington.edu/~ranjay/visualgenome"

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
        records.images_complete()
        files = []
        if regions:
            files.append(_owned(regions, "regions", Regions, Region, REGION, _add_regions, records))
        else:
            request.notes.append("no region_descriptions.json: the manifest has no regions")
        if objects:
            files.append(_owned(objects, "objects", Objects, Object, OBJECT, _add_objects, records))
            if attributes:
                found = (attributes, "attributes", Descriptions, Described, OBJECT, _describe)
                files.append(_owned(*found, records))
            else:
                request.notes.append("no attributes.json: objects have no attributes")
        elif attributes:
            request.notes.append("no objects.json: objects are taken from attributes.json")
            files.append(
                _owned(attributes, "attributes", Attributes, Object, OBJECT, _add_objects, records)
            )
        else:
            request.notes.append("no objects.json: the manifest has no objects")
        records.read_array_files(files)


def _read_images(path: AnyPath, request: Request, records: Records) -> None:
    held_out = held_out_ids(
        request,
        beside=True,
        absent="no evaluation files found: images of COCO val/test, RefCOCO and Flickr30K test "
        "were not left out (put dataset_coco.json into a coco folder beside this one, or give "
        "files with --exclude)",
    )
    convert = partial(
        _add_images,
        part=records.part(path, "[{index}]"),
        coco_ids=held_out.coco_ids,
        flickr_ids=held_out.flickr_ids,
    )
    records.read_arrays(path, {"": Reading(Image, convert)})


def _add_images(
    elements: Elements[Image],
    sink: Sink,
    *,
    part: int,
    coco_ids: np.ndarray[Any, Any],
    flickr_ids: np.ndarray[Any, Any],
) -> None:
    items = elements.items
    sink.malformed_images(part, elements.malformed)
    if not items:
        return
    ids = [item.image_id if item.image_id is not None else item.id for item in items]
    leaked = np.isin([item.coco_id or -1 for item in items], coco_ids) | np.isin(
        [item.flickr_id or -1 for item in items], flickr_ids
    )
    problems = [
        "malformed" if number is None else "leak" if leak else None
        for number, leak in zip(ids, leaked, strict=True)
    ]
    sink.images(
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


def _detail(image: Image, problem: str | None) -> str | None:
    if problem == "malformed":
        return "neither image_id nor id"
    if problem == "leak":
        return f"coco_id {image.coco_id}, flickr_id {image.flickr_id} is held out"
    return None


def _paths(url: str) -> list[str]:
    folder, _, name = "/".join(url.split("/")[-2:]).rpartition("/")
    folders = dict.fromkeys([folder or "VG_100K", "VG_100K", "VG_100K_2"])
    return [f"{above}{f}/{name}" for above in ("", "images/") for f in folders]


#: Adds the items that lie in some owners: (items, columns key, kind, part, index and sub, sink).
_Add = Callable[[list[Any], dict[str, Any], Sink], None]


def _owned(
    path: AnyPath, key: str, owner: Any, item: Any, kind: int, add: _Add, records: Records
) -> tuple[AnyPath, Reading]:
    """How to read a file whose elements are images that own a list of items under ``key``."""
    part = records.part(path, f"[{{index}}].{key}[{{sub}}]")
    convert = partial(_add_owned, key=key, item=item, kind=kind, part=part, add=add)
    return path, Reading(owner, convert)


def _add_owned(
    elements: Elements[Any], sink: Sink, *, key: str, item: Any, kind: int, part: int, add: _Add
) -> None:
    images = [either(owner.image_id, owner.id) for owner in elements.items]
    lists = [getattr(owner, key) for owner in elements.items]
    indices = elements.indices
    salvaged = salvage(elements.malformed, key, item, kind, part, sink)
    if salvaged:
        # In the order of the file, as if nothing had been wrong.
        indices = np.concatenate([indices, np.array([s.element for s in salvaged], np.int64)])
        order = np.argsort(indices, kind="stable")
        indices = indices[order]
        images += [s.image for s in salvaged]
        lists += [s.items for s in salvaged]
        images = [images[place] for place in order.tolist()]
        lists = [lists[place] for place in order.tolist()]
    items = list(chain.from_iterable(lists))
    if not items:
        return
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    starts = np.cumsum(lengths) - lengths
    owners = np.repeat(np.array(images, np.int64), lengths)
    place = {
        "key": pa.array(owners, mask=owners == ABSENT),
        "part": np.full(len(items), part, np.int16),
        "index": np.repeat(indices, lengths),
        "sub": np.arange(len(items)) - np.repeat(starts, lengths),
    }
    if salvaged:
        begin = np.empty_like(starts)
        begin[order] = starts
        of_salvaged = begin[len(begin) - len(salvaged) :].tolist()
        place |= _problems(
            len(items),
            {
                start + sub: why
                for start, one in zip(of_salvaged, salvaged, strict=True)
                for sub, why in one.problems.items()
            },
        )
    add(items, place, sink)


def _problems(count: int, whys: dict[int, str]) -> dict[str, list[str | None]]:
    """Columns ``problem`` and ``detail`` of items some of which are malformed."""
    problem: list[str | None] = [None] * count
    detail: list[str | None] = [None] * count
    for place, why in whys.items():
        problem[place], detail[place] = "malformed", why
    return {"problem": problem, "detail": detail}


def _ids(items: list[Any], name: str) -> pa.Array:
    """The ids of items, which older releases call plain ``id``."""
    found = numbers_of(items, name)
    if found.null_count:
        ids = found.fill_null(ABSENT).to_numpy().copy()
        for place in np.flatnonzero(ids == ABSENT).tolist():
            ids[place] = either(None, items[place].id)
        return pa.array(ids, mask=ids == ABSENT)
    return found


def _sides(items: list[Any], names: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Columns x, y, w and h from the fields of these names."""
    return {
        side: np.fromiter(map(attrgetter(name), items), np.float64, len(items))
        for side, name in zip("xywh", names, strict=True)
    }


def _add_regions(items: list[Region], place: dict[str, Any], sink: Sink) -> None:
    sink.annotations(
        place
        | {
            "kind": np.full(len(items), REGION, np.int8),
            "annotation_id": _ids(items, "region_id"),
            "text": [item.phrase for item in items],
        }
        | _sides(items, ("x", "y", "width", "height"))
    )


def _add_objects(items: list[Object], place: dict[str, Any], sink: Sink) -> None:
    """Objects from ``objects.json``, or from ``attributes.json``, which holds as much."""
    ids = _ids(items, "object_id")
    sink.annotations(
        place
        | {
            "kind": np.full(len(items), OBJECT, np.int8),
            "annotation_id": ids,
            "text": [
                names[0] if (names := item.names or item.object_names) else "" for item in items
            ],
        }
        | _attributes(items)
        | _sides(items, ("x", "y", "w", "h"))
    )
    if any(map(attrgetter("merged_object_ids"), items)):
        merged = [place for place, item in enumerate(items) if item.merged_object_ids]
        counts = [len(items[i].merged_object_ids) for i in merged]
        rows = pa.array(np.repeat(merged, counts))
        sink.aliases(
            {
                "key": place["key"].take(rows),
                "annotation_id": ids.take(rows),
                "alias": list(chain.from_iterable(items[i].merged_object_ids for i in merged)),
            }
        )


def _attributes(items: list[Object]) -> dict[str, Any]:
    """The column of attributes, where the file has any."""
    if not any(map(attrgetter("attributes"), items)):
        return {}
    return {"attributes": [item.attributes for item in items]}


def _describe(items: list[Described], place: dict[str, Any], sink: Sink) -> None:
    """Attributes of objects read before; joined by object id within the image."""
    problems, details = place.pop("problem", None), place.pop("detail", None)
    if problems is not None:
        rows = pa.array(np.flatnonzero([problem is not None for problem in problems]))
        sink.annotations(
            {name: pa.array(values).take(rows) for name, values in place.items()}
            | {
                "kind": np.full(len(rows), OBJECT, np.int8),
                "problem": pa.array(problems).take(rows),
                "detail": pa.array(details).take(rows),
            }
        )
    lists = [item.attributes or () for item in items]
    lengths = np.fromiter(map(len, lists), np.int32, len(lists))
    rows = pa.array(np.flatnonzero(lengths))
    if len(rows):
        attributes = pa.ListArray.from_arrays(
            pa.array(np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])),
            pa.array(list(chain.from_iterable(lists)), pa.string()),
        )
        sink.attributes(
            {name: pa.array(values).take(rows) for name, values in place.items()}
            | {
                "annotation_id": _ids(items, "object_id").take(rows),
                "attributes": attributes.take(rows),
            }
        )


SOURCE = VisualGenome()
