"""Which images evaluation sets use, by COCO and by Flickr id.

COCO images hide in Visual Genome (``coco_id``), and Flickr30K's under ``flickr_id``; RefCOCO's
evaluation images are COCO's. The lists come from the evaluation files the user has:

- Karpathy's ``dataset_coco.json`` and ``dataset_flickr30k.json``: their val and test parts
- COCO annotation files of a val or test part, whose ``flickr_url`` tells Flickr ids too
- RefCOCO, + and g: ``refs(unc).p``, ``refs(google).p``, ``refs(umd).p``, and Google's own
  ``google_refexp_val_…json``
- VQA v2 questions or annotations of a val or test part
- text files with a COCO image name or a Flickr photo id a line

VQA is not among the usual places, on purpose: its val part is all of COCO's val2014, of which the
paper trains on the 30,504 images of Karpathy's restval, and VQA is scored on test2015, which no
training release holds. NLVR2's images are of no training release either, and have no ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from xvlm_data.errors import UserError
from xvlm_data.raw.files import open_raw
from xvlm_data.raw.json_arrays import Int64
from xvlm_data.raw.json_document import read_arrays
from xvlm_data.raw.lines import read_lines
from xvlm_data.raw.pickles import read_pickle

Ids = npt.NDArray[np.int64]

#: Where evaluation files usually lie, relative to the folder that holds all raw releases.
USUAL_PLACES = (
    "coco/dataset_coco.json",
    "coco/annotations/dataset_coco.json",
    "coco/annotations/captions_val2017.json",
    "coco/annotations/instances_val2017.json",
    "refcoco*/refs(*).p",
    "refcoco*/refcoco*/refs(*).p",
    "refcoco*/google_refexp_val_*.json",
    "flickr30k/dataset_flickr30k.json",
    "flickr30k/*/test.txt",
)
_HELD_OUT = {"val", "test", "testA", "testB"}
#: Google's files of objects by id do not stream; the val part has some 30 MB.
_MAX_WHOLE_FILE = 1 << 30

_COCO_NAME = re.compile(r"COCO_\w+_(\d{12})")
_COCO_2017_NAME = re.compile(r"(?:^|[\s/])(\d{12})(?:\.jpg)?(?=\s|$)")
_FLICKR_LINE = re.compile(r"\s*(\d{1,12})(?:\.jpg)?\s*$")
_FLICKR_URL = re.compile(r"/(\d{1,18})_[0-9a-f]+(?:_\w)?\.\w+$")


@dataclass(frozen=True)
class EvaluationFile:
    """The held-out images of one file.

    Attributes:
        path: the file.
        kind: what it is, in words.
        images: how many held-out images it names.
        coco_ids: their COCO ids, sorted; ``[C]``.
        flickr_ids: their Flickr photo ids, as far as the file tells them, sorted; ``[F]``.
        tells: "coco" and "flickr", as far as every one of its images has such an id.
        unreadable: what is wrong with elements that could not be read.
    """

    path: Path
    kind: str
    images: int
    coco_ids: Ids
    flickr_ids: Ids
    tells: frozenset[str] = frozenset()
    unreadable: tuple[str, ...] = ()


@dataclass
class EvaluationIds:
    """Ids of images that must not be trained on, sorted, and how many each file named."""

    coco_ids: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    flickr_ids: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    per_file: dict[str, int] = field(default_factory=dict)
    files: list[EvaluationFile] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What a person should know: elements that could not be read leave nothing out."""
        return [
            f"{file.path}: {len(file.unreadable)} element(s) could not be read, so their images "
            f"are not left out by this file (first: {file.unreadable[0]})"
            for file in self.files
            if file.unreadable
        ]


def usual_evaluation_files(root: Path) -> tuple[Path, ...]:
    """Evaluation files in and beside a release's folder."""
    found = {p.resolve() for place in USUAL_PLACES for p in root.parent.glob(place) if p.is_file()}
    return tuple(sorted(found))


def evaluation_ids(files: Sequence[Path]) -> EvaluationIds:
    """Read the ids of held-out images; elements that cannot be read are told in ``notes()``.

    Args:
        files: any of the kinds this module lists.

    Raises:
        UserError: a file is missing, of none of these kinds, of a training part, or broken.
    """
    read = [read_evaluation_file(file, strict=False) for file in files]
    return EvaluationIds(
        _union([file.coco_ids for file in read]),
        _union([file.flickr_ids for file in read]),
        {str(file.path): file.images for file in read},
        read,
    )


def exclude_ids(ids: Ids, banned: Ids) -> list[str | None]:
    """The reason ``leak`` where an id is banned, else None."""
    return ["leak" if hit else None for hit in np.isin(ids, banned)]


def read_evaluation_file(path: Path, *, strict: bool = True) -> EvaluationFile:
    """The held-out images of one file; raises as :func:`evaluation_ids`.

    Args:
        path: the file.
        strict: an element that cannot be read is an error: nothing is proven by such a file.
            Otherwise it is one if there is no other.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file", "check the path")
    kind, read = _reader(path)
    found = _Found()
    read(path, found)
    if found.unreadable and (strict or not len(found)):
        raise UserError(f"{path}: {found.unreadable[0]}", "download the file again")
    ids, tells = found.ids(), found.tells()
    return EvaluationFile(path, kind, len(found), *ids, tells, tuple(found.unreadable))


class _Found:
    """Held-out images of a file: distinct (COCO id, Flickr id), either of which may be None."""

    def __init__(self) -> None:
        self._images: dict[tuple[str, int], tuple[int | None, int | None]] = {}
        self.unreadable: list[str] = []

    def miss(self, malformed: Sequence[tuple[int, str, bytes]]) -> None:
        """Elements that could not be decoded."""
        self.unreadable += [f"element {index}: {why}" for index, why, _ in malformed]

    def add(self, coco: int | None, flickr: int | None) -> None:
        key = ("flickr", flickr or 0) if coco is None else ("coco", coco)
        self._images[key] = (coco, flickr)

    def __len__(self) -> int:
        return len(self._images)

    def tells(self) -> frozenset[str]:
        kinds = {
            "coco": all(coco is not None for coco, _ in self._images.values()),
            "flickr": all(flickr is not None for _, flickr in self._images.values()),
        }
        return frozenset(kind for kind, every in kinds.items() if every)

    def ids(self) -> tuple[Ids, Ids]:
        images = self._images.values()
        return (
            _union([np.array([c for c, _ in images if c is not None], np.int64)]),
            _union([np.array([f for _, f in images if f is not None], np.int64)]),
        )


def coco_name(name: str) -> int | None:
    """The COCO id that a file name such as ``COCO_val2014_000000391895.jpg`` tells, or none."""
    match = _COCO_NAME.search(name) or _COCO_2017_NAME.search(name)
    return int(match[1]) if match else None


def flickr_photo(url: str | None) -> int | None:
    """The photo id of a Flickr address such as ``…/3410/3208122782_1b783a9f04_z.jpg``."""
    match = _FLICKR_URL.search(url or "")
    return int(match[1]) if match else None


def _reader(path: Path) -> tuple[str, Callable[[Path, _Found], None]]:
    suffix, stem = path.suffix.lower(), path.stem
    if suffix in (".p", ".pkl", ".pickle"):
        return "RefCOCO references", _refer
    if suffix in (".txt", ".lst"):
        return "list of image names", _listed
    if suffix != ".json":
        raise UserError(
            f"{path}: no known kind of evaluation file",
            "give Karpathy's or COCO's .json, RefCOCO's refs(….p), or a .txt list of image names",
        )
    if re.search(r"(^|_)train\d{4}", stem) or "refexp_train" in stem:
        raise UserError(
            f"{path}: a training part, of which nothing is held out", "give val or test"
        )
    if "refexp" in stem:
        return "RefCOCOg (Google)", _google_refexp
    if "mscoco" in stem:
        return "VQA v2", _vqa
    return "COCO or Karpathy split", _image_list


def _union(parts: Sequence[Ids]) -> Ids:
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


class _Image(msgspec.Struct, gc=False):
    """An element of ``images`` of COCO's files or of Karpathy's."""

    id: Int64 | None = None
    file_name: str = ""
    flickr_url: str | None = None
    split: str | None = None
    filename: str = ""
    cocoid: Int64 | None = None


def _image_list(path: Path, found: _Found) -> None:
    for elements in read_arrays(path, {"images": _Image}, early=True):
        found.miss(elements.malformed)
        for item, index in zip(elements.items, elements.indices, strict=True):
            if item.split is not None:
                _add_karpathy(found, item, f"images[{index}]")
            else:
                _add_coco(found, item, f"{path}: images[{index}]")


def _add_karpathy(found: _Found, item: _Image, where: str) -> None:
    if item.split not in _HELD_OUT:
        return
    digits = re.match(r"\d{1,18}", item.filename)
    if item.cocoid is not None:
        found.add(item.cocoid, None)
    elif digits:
        found.add(None, int(digits[0]))
    else:
        found.unreadable.append(f"{where}: neither a cocoid nor a Flickr file name")


def _add_coco(found: _Found, item: _Image, where: str) -> None:
    # Other data sets come in COCO's format with ids of their own, which must not be taken for his.
    digits = re.search(r"(\d{12})\.\w+$", item.file_name)
    if item.id is None and digits is None:
        found.unreadable.append(f"{where}: neither an id nor a COCO file name")
        return
    if digits is None or item.id not in (None, int(digits[1])):
        raise UserError(
            f"{where}: id {item.id}, file {item.file_name[:80]!r} is no COCO image",
            "give a file of COCO's own images, or the images themselves as a folder or manifest",
        )
    if "train20" in item.file_name and not re.search("val|test", where.rsplit("/", 1)[-1]):
        # RefCOCO's instances.json mixes its parts, all of COCO's train2014.
        raise UserError(
            f"{where}: a training image, and the file's name tells no val or test part",
            "for RefCOCO give refs(….p), which tells the parts",
        )
    found.add(int(digits[1]), flickr_photo(item.flickr_url))


class _Question(msgspec.Struct, gc=False):
    image_id: Int64


def _vqa(path: Path, found: _Found) -> None:
    key = "annotations" if path.stem.endswith("annotations") else "questions"
    for elements in read_arrays(path, {key: _Question}, early=True):
        found.miss(elements.malformed)
        for item in elements.items:
            found.add(item.image_id, None)


class _GoogleImage(msgspec.Struct, gc=False):
    image_id: Int64
    flickr_url: str | None = None


class _GoogleRefexp(msgspec.Struct, gc=False):
    images: dict[str, _GoogleImage]


def _google_refexp(path: Path, found: _Found) -> None:
    try:
        document = msgspec.json.decode(_whole(path), type=_GoogleRefexp)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not Google's RefCOCOg ({str(error)[:120]})", "download it again"
        ) from error
    for image in document.images.values():
        found.add(image.image_id, flickr_photo(image.flickr_url))


def _listed(path: Path, found: _Found) -> None:
    for first, lines in read_lines(path):
        for number, raw in enumerate(lines, first + 1):
            line = raw.decode("utf-8", "replace")
            if (coco := coco_name(line)) is not None:
                found.add(coco, None)
            elif match := _FLICKR_LINE.match(line):
                found.add(None, int(match[1]))
            elif line.strip() and not line.lstrip().startswith("#"):
                found.unreadable.append(
                    f"line {number}: {line.strip()[:60]!r} is no image name (COCO file names, "
                    "twelve digits or Flickr photo ids, one a line, are)"
                )


class _Reference(msgspec.Struct, gc=False):
    image_id: Int64
    split: str


def _refer(path: Path, found: _Found) -> None:
    """COCO ids of held-out references."""
    references = read_pickle(path)
    if not isinstance(references, list):
        raise UserError(f"{path}: not a RefCOCO list", "is it the right file?")
    for index, value in enumerate(references):
        try:
            reference = msgspec.convert(value, _Reference)
        except (msgspec.ValidationError, RecursionError) as error:
            found.miss([(index, f"no reference: {error}", b"")])
            continue
        if reference.split in _HELD_OUT:
            found.add(reference.image_id, None)


def _whole(path: Path) -> bytes:
    with open_raw(path) as raw:
        data = raw.read(_MAX_WHOLE_FILE + 1)
    if len(data) > _MAX_WHOLE_FILE:
        raise UserError(f"{path}: more than 1 GiB", "is it the right file?")
    return data
