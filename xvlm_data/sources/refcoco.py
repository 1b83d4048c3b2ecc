"""RefCOCO, RefCOCO+ and RefCOCOg: three sources of one layout.

Files: ``refs(unc).p``, ``refs(google).p`` or ``refs(umd).p`` and ``instances.json``, in the folder
``refcoco/``, ``refcoco+/`` or ``refcocog/``, or in the root itself; where ``instances.json`` is
absent, COCO's own ``annotations/instances_train2014.json`` has the same boxes. Images, of
every split: COCO's train2014 (or 2017), in the root or in a ``coco`` folder beside it.

One data set has been divided in several ways. A split is of the usual one (unc; umd for RefCOCOg);
``google-val`` or ``umd-test`` names another. ``google-train`` and ``google-val`` of RefCOCOg may
also come as the Google release (:mod:`xvlm_data.sources.refcocog_google`).

A text is ``sent``, the cleaned form that papers evaluate with; ``refs`` also has what was typed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from xvlm_data.errors import UserError
from xvlm_data.raw.files import find_file, find_optional
from xvlm_data.raw.json_arrays import Int64
from xvlm_data.raw.pickles import plain_text, read_pickle
from xvlm_data.reading import Records
from xvlm_data.records import pixel_sides
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.image_paths import TRAIN2014, coco_paths, coco_root
from xvlm_data.sources.questions import convert_each
from xvlm_data.sources.references import REFS, Reference, Sentence, write_references
from xvlm_data.storage import AnyPath

_NAMES = ("refcoco", "refcoco+", "refcocog")
_DIVISIONS = ("unc", "google", "umd")


class _Ref(msgspec.Struct):
    ref_id: Int64
    ann_id: Int64
    image_id: Int64
    split: str
    sentences: list[Any]
    category_id: int | None = None


class _Sentence(msgspec.Struct):
    sent: str
    raw: str | None = None
    sent_id: Int64 | None = None


class _Image(msgspec.Struct, gc=False):
    id: Int64
    width: int
    height: int


class _Object(msgspec.Struct, gc=False):
    id: Int64
    image_id: Int64
    bbox: tuple[float, float, float, float]


class _Category(msgspec.Struct):
    id: int
    name: str


class RefCoco(Source):
    """See the module.

    Attributes:
        evaluation: every expression counts, so that no rule that is a choice applies by itself.
        extra: the column ``refs``.
        division: the usual one.
    """

    name = "refcoco"
    licence = "expressions: none stated, to be cited; images: COCO's, under their Flickr terms"
    citation = citations.REFCOCO
    homepage = "https://github.com/lichengunc/refer"
    evaluation = True
    extra = REFS
    division = "unc"

    def image_root(self, request: Request) -> AnyPath:
        """COCO's images may lie beside the release."""
        return coco_root(request.root, TRAIN2014)

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        division, split = _divided(request.split, self.division)
        path = self._find(request, division, split)
        if path.suffix == ".json":
            from xvlm_data.sources.refcocog_google import read_release

            read_release(path, self.image_root(request), request, records)
            return
        instances = _find_instances(path, self.image_root(request))
        with request.reading(path) as advance:
            references = _references(path, read_pickle(path, on_bytes=advance), split)
        objects = _read_instances(
            self.name, instances, references, self.image_root(request), request, records
        )
        records.images_complete()
        _join(references, objects)
        sentences_part = records.part(path, "[{index}].sentences[{sub}]")
        write_references(references, records.part(path, "[{index}]"), sentences_part, records)

    def _find(self, request: Request, division: str, split: str) -> AnyPath:
        folders = [f"{self.name}/"]
        # The files of the three have the same names: a folder called refcoco holds no refcoco+.
        if request.root.resolve().name not in set(_NAMES) - {self.name}:
            folders.append("")
        release = f"google_refexp_{split}_201511_coco_aligned_catg.json"
        google = [folder + release for folder in ("", *folders)] if self.name == "refcocog" else []
        names = [f"{folder}refs({division}).p" for folder in folders]
        if division == "google":
            return find_file(request.root, [*names, *google], "list of references")
        if find_optional(request.root, names) is None and find_optional(request.root, google):
            raise UserError(
                f"{request.root}: no refs({division}).p, but {release}",
                f"read that one with --split google-{split}",
            )
        return find_file(request.root, names, "list of references")


def _divided(split: str, usual: str) -> tuple[str, str]:
    """(division, split): of ``google-val`` google and val, of ``val`` the usual one and val."""
    first, _, rest = split.partition("-")
    return (first, rest) if first in _DIVISIONS and rest else (usual, split)


def _find_instances(refs: AnyPath, images: AnyPath) -> AnyPath:
    candidates = [refs.parent / "instances.json", images / "annotations/instances_train2014.json"]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(
        f"{candidates[0]}: no such file, and {refs.name} holds no boxes",
        "unpack the whole release, or put COCO's annotations/instances_train2014.json beside "
        "its images",
    )


def _references(path: AnyPath, refs: Any, split: str) -> list[Reference]:
    """What the list says, element by element; those of other splits are marked."""
    if not isinstance(refs, list):
        raise UserError(f"{path}: no list of references", "is it the right file?")
    values, wrong = convert_each(refs, _Ref)
    known = sorted({plain_text(ref.split) for ref in values if ref is not None})
    if split not in known:
        raise UserError(f"{path}: no split {split!r}", f"choose from {', '.join(known)}")
    result = []
    for index, (ref, why) in enumerate(zip(values, wrong, strict=True)):
        if ref is None:
            inner = refs[index].get("sentences") if isinstance(refs[index], dict) else None
            count = len(inner) if isinstance(inner, list) else 0
            sentences = [Sentence(index, sub) for sub in range(count)]
            result.append(Reference(index, sentences=sentences, problem="malformed", detail=why))
            continue
        result.append(
            Reference(
                index,
                image_id=ref.image_id,
                ref_id=ref.ref_id,
                ann_id=ref.ann_id,
                category_id=ref.category_id,
                sentences=_sentences(index, ref.sentences),
                problem=None if ref.split == split else "other_split",
                detail=None if ref.split == split else plain_text(ref.split),
            )
        )
    return result


def _sentences(index: int, items: list[Any]) -> list[Sentence]:
    values, wrong = convert_each(items, _Sentence)
    return [
        Sentence(index, sub, wrong=why)
        if item is None
        else Sentence(
            index,
            sub,
            item.sent_id,
            plain_text(item.sent),
            None if item.raw is None else plain_text(item.raw),
        )
        for sub, (item, why) in enumerate(zip(values, wrong, strict=True))
    ]


@dataclass
class _Objects:
    """The objects of a file, as columns sorted by id, and category names by number."""

    file: str
    ids: npt.NDArray[np.int64]
    image_ids: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    categories: dict[int, str]


def _read_instances(
    source: str,
    path: AnyPath,
    references: list[Reference],
    images_at: AnyPath,
    request: Request,
    records: Records,
) -> _Objects:
    """Writes the images that are referred to; returns what the references are joined with.

    Objects that nobody refers to are no records of this release.
    """
    referred = np.unique(
        np.array([ref.image_id for ref in references if ref.image_id is not None], np.int64)
    )
    wanted = np.unique(
        np.array([ref.image_id for ref in references if ref.problem is None], np.int64)
    )
    part = records.part(path, "images[{index}]")
    chunks: list[list[npt.NDArray[Any]]] = [
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.int64)],
        [np.zeros((0, 4))],
    ]
    categories: dict[int, str] = {}
    unread: list[str] = []
    kinds = {"images": _Image, "annotations": _Object, "categories": _Category}
    for elements in request.arrays(path, kinds):
        if elements.key == "images":
            _write_images(source, elements, referred, wanted, part, images_at, records)
            continue
        unread += [f"{elements.key}[{index}]: {why}" for index, why, _ in elements.malformed]
        if elements.key == "categories":
            categories |= {item.id: item.name for item in elements.items}
        elif elements.items:
            chunks[0].append(np.array([item.id for item in elements.items], np.int64))
            chunks[1].append(np.array([item.image_id for item in elements.items], np.int64))
            chunks[2].append(np.array([item.bbox for item in elements.items]))
    if unread:
        request.notes.append(f"{path.name}: {len(unread)} could not be read, first {unread[0]}")
    ids, image_ids, boxes = (np.concatenate(chunk) for chunk in chunks)
    order = np.argsort(ids, kind="stable")
    return _Objects(path.name, ids[order], image_ids[order], boxes[order], categories)


def _write_images(
    source: str,
    elements: Any,
    referred: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.int64],
    part: int,
    images_at: AnyPath,
    records: Records,
) -> None:
    records.malformed_images(part, elements.malformed)
    ids = np.array([item.id for item in elements.items], np.int64)
    ours = np.isin(ids, referred)
    items = [item for item, our in zip(elements.items, ours, strict=True) if our]
    if items:
        ids = ids[ours]
        records.images(
            {
                "key": ids,
                "id": [f"{source}/{item.id}" for item in items],
                "paths": coco_paths(ids, images_at, TRAIN2014),
                "width": pixel_sides([item.width for item in items]),
                "height": pixel_sides([item.height for item in items]),
                "part": np.full(len(items), part, np.int16),
                "index": np.array(elements.indices)[ours],
                "problem": [None if inside else "other_split" for inside in np.isin(ids, wanted)],
            }
        )


def _join(references: list[Reference], objects: _Objects) -> None:
    """Give each reference the box and the category of its object."""
    usable = [ref for ref in references if ref.problem != "malformed"]
    wanted = np.array([ref.ann_id for ref in usable], np.int64)
    places = np.searchsorted(objects.ids, wanted)
    inside = np.minimum(places, len(objects.ids) - 1)
    found = objects.ids[inside] == wanted if len(objects.ids) else np.zeros(len(wanted), bool)
    for ref, place, there in zip(usable, places.tolist(), found.tolist(), strict=True):
        if ref.category_id is not None:
            ref.category = objects.categories.get(ref.category_id)
        if not there:
            problem, detail = "unknown_annotation", f"{objects.file} has no object {ref.ann_id}"
        elif objects.image_ids[place] != ref.image_id:
            problem = "unknown_annotation"
            detail = f"object {ref.ann_id} is of image {objects.image_ids[place]}"
        else:
            ref.bbox = tuple(objects.boxes[place].tolist())
            continue
        if ref.problem is None:
            ref.problem, ref.detail = problem, detail


class RefCocoPlus(RefCoco):
    """RefCOCO without words of place."""

    name = "refcoco+"


class RefCocoG(RefCoco):
    """Longer expressions, on images with fewer objects of a kind."""

    name = "refcocog"
    licence = "expressions CC BY 4.0 (Google LLC); images: COCO's, under their Flickr terms"
    citation = citations.REFCOCOG
    division = "umd"


SOURCE = RefCoco()
SOURCE_PLUS = RefCocoPlus()
SOURCE_G = RefCocoG()
