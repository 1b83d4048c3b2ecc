"""COCO, releases of 2017 and 2014, and Karpathy's split of them.

Files: ``annotations/{instances,captions}_{train,val}{2017,2014}.json`` and the image folders
``train2017/``, … or ``images/train2017/``, …. Where Karpathy's ``dataset_coco.json`` lies in the
root (or in ``annotations/``), the split is his, and ``train`` means his train + restval (113,287
images): then the official train and val files are both read, because his parts cut across them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from xvlm_data.errors import UserError
from xvlm_data.leaks import exclude_ids
from xvlm_data.raw.files import check_root, find_optional
from xvlm_data.raw.json_arrays import Int64
from xvlm_data.reading import Records
from xvlm_data.records import CAPTION
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.coco_json import Image, read_boxes, read_captions, read_images
from xvlm_data.sources.held_out import held_out_ids
from xvlm_data.storage import AnyPath

KARPATHY = ("dataset_coco.json", "annotations/dataset_coco.json", "karpathy/dataset_coco.json")
#: Which of Karpathy's parts a split is.
KARPATHY_SPLITS = {
    "train": ("train", "restval"),
    "restval": ("restval",),
    "val": ("val",),
    "test": ("test",),
}
YEARS = ("2017", "2014")


class _Sentence(msgspec.Struct, gc=False):
    raw: str
    sentid: Int64 | None = None


class _KarpathySplit(msgspec.Struct, gc=False):
    cocoid: Int64
    split: str


class _KarpathyImage(_KarpathySplit, gc=False):
    filename: str
    filepath: str = ""
    sentences: list[_Sentence] = []


class Coco(Source):
    """See the module."""

    name = "coco"
    licence = (
        "annotations CC BY 4.0 (COCO Consortium); images: Flickr terms, per-image licences, "
        "most of them non-commercial"
    )
    citation = citations.COCO
    homepage = "https://cocodataset.org"

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        root = request.root
        check_root(root)
        karpathy = find_optional(root, KARPATHY)
        if karpathy is None:
            request.notes.append(
                "no dataset_coco.json (Karpathy's split): the official split is used, whose train "
                "part holds images of the retrieval and captioning test sets"
            )
        files = _annotation_files(root, request.split, everything=karpathy is not None)
        if not files and karpathy is None:
            raise UserError(
                f"{root}: no annotations/{{instances,captions}}_{request.split}2017.json, "
                "and no dataset_coco.json",
                "unpack annotations_trainval2017.zip there, or give its folder with --root",
            )
        folders = _image_folders(root)
        leaked = _Leaks(request)
        part = None
        if karpathy is not None:
            part = _read_part(karpathy, request)
            leaked.only = part.ids
            if not files:
                _read_karpathy(karpathy, request, records, leaked)
        for path in files:
            folder = path.stem.split("_", 1)[1]
            read_images("coco", path, records, _Locator(folder, folders), leaked)
        if files and karpathy is not None and part is not None:
            _add_lacking(karpathy, part, records)
        records.images_complete()
        for path in files:
            if path.name.startswith("instances"):
                read_boxes(path, request, records)
            else:
                read_captions(path, records)
        if files:
            have = {path.name.split("_")[0] for path in files}
            for missing in sorted({"instances", "captions"} - have):
                request.notes.append(f"no {missing} file: the manifest has no {missing}")


def _annotation_files(root: AnyPath, split: str, *, everything: bool) -> list[AnyPath]:
    """The files of the newest release found, instances before captions."""
    splits = ("train", "val") if everything else (split,)
    for year in YEARS:
        names = [
            f"{kind}_{part}{year}.json" for kind in ("instances", "captions") for part in splits
        ]
        found = [find_optional(root, (f"annotations/{name}", name)) for name in names]
        if any(found):
            return [path for path in found if path is not None]
    return []


def _image_folders(root: AnyPath) -> list[str]:
    parts = [f"{part}{year}" for year in YEARS for part in ("train", "val", "test")]
    return [
        folder for folder in [*parts, *(f"images/{p}" for p in parts)] if (root / folder).is_dir()
    ]


class _Locator:
    """Where an image may lie: 2017 and 2014 hold the same pictures under two names."""

    def __init__(self, folder: str, present: list[str]) -> None:
        # The annotation file's own folder comes first, and is the one named when it is absent.
        own = [f for f in present if f.endswith(folder)]
        folders = [*(own or [folder]), *(f for f in present if f not in own)]
        parts = [folder.rsplit("/", 1)[-1] for folder in folders]
        self._old = [not part.endswith("2017") for part in parts]
        self._prefixes = [
            f"{folder}/COCO_{part}_" if old else f"{folder}/"
            for folder, part, old in zip(folders, parts, self._old, strict=True)
        ]
        self._folders = [f"{folder}/" for folder in folders]

    def __call__(self, image: Image) -> list[str]:
        name = image.file_name
        is_old = name.startswith("COCO_")
        if is_old == self._old[0] and len(self._old) == 1:
            return [self._folders[0] + name]
        return [
            folder + name if is_old == old else f"{prefix}{image.id:012d}.jpg"
            for folder, prefix, old in zip(self._folders, self._prefixes, self._old, strict=True)
        ]


class _Leaks:
    """Why an image is left out: not of this part, or in an evaluation set."""

    def __init__(self, request: Request) -> None:
        self.banned = held_out_ids(request, beside=False).coco_ids
        self.only: np.ndarray[Any, np.dtype[np.int64]] | None = None

    def __call__(self, ids: np.ndarray[Any, np.dtype[np.int64]]) -> list[str | None]:
        reasons = exclude_ids(ids, self.banned)
        if self.only is not None:
            inside = np.isin(ids, self.only)
            reasons = [r if ok else "other_split" for r, ok in zip(reasons, inside, strict=True)]
        return reasons


@dataclass
class _Part:
    """What Karpathy's file says of a split.

    Attributes:
        ids: ``[N]`` COCO ids, sorted.
        indices: ``[N]`` where each is in his ``images``.
        malformed: elements that could not be decoded.
    """

    ids: np.ndarray[Any, np.dtype[np.int64]]
    indices: np.ndarray[Any, np.dtype[np.int64]]
    malformed: list[tuple[int, str, bytes]] = field(default_factory=list)


def _read_part(path: AnyPath, request: Request) -> _Part:
    if request.split not in KARPATHY_SPLITS:
        raise UserError(
            f"unknown split {request.split!r} of {path.name}",
            f"choose from {', '.join(KARPATHY_SPLITS)}",
        )
    wanted = KARPATHY_SPLITS[request.split]
    ids: list[int] = []
    indices: list[int] = []
    malformed: list[tuple[int, str, bytes]] = []
    for elements in request.arrays(path, {"images": _KarpathySplit}):
        malformed += elements.malformed
        inside = [place for place, item in enumerate(elements.items) if item.split in wanted]
        ids += [elements.items[place].cocoid for place in inside]
        indices += elements.indices[inside].tolist()
    order = np.argsort(np.array(ids, np.int64), kind="stable")
    return _Part(np.array(ids, np.int64)[order], np.array(indices, np.int64)[order], malformed)


def _add_lacking(path: AnyPath, part: _Part, records: Records) -> None:
    """Images of the split that no official file has, and records of it that cannot be read.

    They have no key: an annotation of such an image is one of an unknown image.
    """
    number = records.part(path, "images[{index}]")
    records.malformed_images(number, part.malformed)
    lacking = np.flatnonzero(~records.have_images(part.ids))
    lacking = lacking[np.argsort(part.indices[lacking])]
    records.images(
        {
            "id": [f"coco/{id_}" for id_ in part.ids[lacking].tolist()],
            "part": np.full(len(lacking), number, np.int16),
            "index": part.indices[lacking],
            "problem": ["missing_record"] * len(lacking),
            "detail": ["no official annotation file has a record of it"] * len(lacking),
        }
    )


def _read_karpathy(path: AnyPath, request: Request, records: Records, exclude: _Leaks) -> None:
    """Images and captions from his file alone."""
    request.notes.append("no official annotation files: captions come from dataset_coco.json")
    images = records.part(path, "images[{index}]")
    captions = records.part(path, "images[{index}].sentences[{sub}]")
    for elements in request.arrays(path, {"images": _KarpathyImage}):
        items: list[_KarpathyImage] = elements.items
        records.malformed_images(images, elements.malformed)
        indices = elements.indices.tolist()
        records.images(
            {
                "key": [item.cocoid for item in items],
                "id": [f"coco/{item.cocoid}" for item in items],
                "paths": [_karpathy_paths(item) for item in items],
                "part": [images] * len(items),
                "index": indices,
                "problem": exclude(np.array([item.cocoid for item in items], dtype=np.int64)),
            }
        )
        rows = [
            (item.cocoid, index, sub, sentence)
            for item, index in zip(items, indices, strict=True)
            for sub, sentence in enumerate(item.sentences)
        ]
        records.annotations(
            {
                "key": [key for key, _, _, _ in rows],
                "kind": [CAPTION] * len(rows),
                "part": [captions] * len(rows),
                "index": [index for _, index, _, _ in rows],
                "sub": [sub for _, _, sub, _ in rows],
                "annotation_id": [sentence.sentid for _, _, _, sentence in rows],
                "text": [sentence.raw for _, _, _, sentence in rows],
            }
        )


def _karpathy_paths(image: _KarpathyImage) -> list[str]:
    part = image.filepath or "val2014"
    folders = [part, "images/" + part]
    names = [f"{folder}/{image.filename}" for folder in folders]
    renamed = f"{image.cocoid:012d}.jpg"
    return [*names, *(f"{part}2017/{renamed}" for part in ("train", "val"))]


SOURCE = Coco()
