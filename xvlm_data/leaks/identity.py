"""Which COCO image and which Flickr photo a manifest row is, as far as its id tells.

A row ``coco/391895`` (and RefCOCO's and VQA's rows, whose images are COCO's) is that COCO image,
``sbu/5148648301_1174ef59bc`` and ``flickr30k/1007129816`` are those Flickr photos. Others need a
file of their release: ``image_data.json`` for Visual Genome's ``coco_id`` and ``flickr_id``, COCO's
own annotation files for its ``flickr_url``, OpenImages' image list for its ``OriginalURL``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.errors import UserError
from xvlm_data.leaks.evaluation import Ids, flickr_photo
from xvlm_data.manifest import Manifest
from xvlm_data.raw.files import open_raw
from xvlm_data.raw.json_arrays import Int64
from xvlm_data.raw.json_document import read_arrays

#: What the number in a row's id is, by the part of the id before the slash.
_NUMBERING = {
    "coco": "coco",
    "refcoco": "coco",
    "refcoco+": "coco",
    "refcocog": "coco",
    "vqa": "coco",
    "flickr30k": "flickr",
    "sbu": "flickr",
    "vg": "vg",
    "openimages": "openimages",
}
_ID = r"^(?P<source>[^/]+)/(?P<key>[0-9a-fA-F]{1,18})(?:[_.].*)?$"

#: The file that tells the ids of a source, where its own numbers do not.
TELLING = {"vg": "image_data.json", "openimages": "the image list with its OriginalURL column"}

#: Where those files lie, relative to the folder of the release.
_PLACES = {
    "vg": ("image_data.json",),
    "openimages": ("*-with-rotation.csv", "*/*-with-rotation.csv", "image_ids_and_rotation.csv"),
    "coco": ("annotations/captions_*20*.json", "captions_*20*.json"),
}

NONE = -1

#: Chunks of (number of the row, COCO id, Flickr photo id).
Rows = Iterable[Sequence[tuple[int, int | None, int | None]]]


@dataclass(frozen=True)
class RowIds:
    """Ids of N rows.

    Attributes:
        coco: ``[N]`` COCO id, or -1.
        flickr: ``[N]`` Flickr photo id, or -1.
        coco_known: ``[N]`` whether it is known which COCO image the row is, or that it is none.
    """

    coco: Ids
    flickr: Ids
    coco_known: npt.NDArray[np.bool_]

    @property
    def flickr_known(self) -> npt.NDArray[np.bool_]:
        """``[N]`` whether the photo is known: a release that names none does not deny it."""
        return self.flickr != NONE


@dataclass
class _Told:
    """Ids by the numbers of one source; arrays of equal length, sorted by ``key``."""

    key: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    coco: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    flickr: Ids = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, rows: Rows) -> None:
        """Add what a file tells; of a number that is there already, the first stays."""
        chunks = [
            np.array([[k, _or_none(c), _or_none(f)] for k, c, f in chunk], np.int64).reshape(-1, 3)
            for chunk in rows
        ]
        table = np.concatenate([np.zeros((0, 3), np.int64), *chunks])
        self.key, first = np.unique(np.concatenate([self.key, table[:, 0]]), return_index=True)
        self.coco = np.concatenate([self.coco, table[:, 1]])[first]
        self.flickr = np.concatenate([self.flickr, table[:, 2]])[first]

    def look_up(self, keys: Ids) -> tuple[npt.NDArray[np.bool_], Ids, Ids]:
        """(known, COCO id, Flickr id) of each key."""
        if not len(self.key):
            nothing = np.full(len(keys), NONE)
            return np.zeros(len(keys), bool), nothing, nothing
        place = np.searchsorted(self.key, keys).clip(max=len(self.key) - 1)
        known = self.key[place] == keys
        return (
            known,
            np.where(known, self.coco[place], NONE),
            np.where(known, self.flickr[place], NONE),
        )


class Identities:
    """Finds the ids of rows; :meth:`read` adds what the files of a release tell."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}
        self._read: set[Path] = set()

    def knows(self, source: str) -> bool:
        """Whether rows of that source can be told: by themselves, or by a file that was read."""
        numbering = _NUMBERING.get(source)
        return numbering in ("coco", "flickr") or numbering in self._told

    def read(self, path: Path) -> None:
        """Read ids from a file of a release: see the module.

        Raises:
            UserError: missing, damaged, or of none of these kinds.
        """
        if path.resolve() in self._read:
            return
        self._read.add(path.resolve())
        with open_raw(path) as file:
            opening = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if path.suffix.lower() == ".csv":
            self._add("openimages", _openimages(path))
        elif opening == b"[":
            self._add("vg", _visual_genome(path))
        elif opening == b"{":
            self._add("coco", _coco(path))
        else:
            raise UserError(
                f"{path}: tells no ids",
                "give VG's image_data.json, a COCO annotation file or OpenImages' image list",
            )

    def read_beside(self, manifest: Manifest) -> None:
        """Read what lies in the image roots of a manifest: a release's own files tell the most."""
        for source, root in sorted(
            {
                (str(shard.info.get("source")), str(root))
                for shard in manifest.shards
                if (root := manifest.image_root or shard.info.get("image_root"))
            }
        ):
            for place in _PLACES.get(_NUMBERING.get(source, ""), ()):
                for path in sorted(Path(root).glob(place)):
                    self.read(path)

    def _add(self, numbering: str, rows: Rows) -> None:
        self._told.setdefault(numbering, _Told()).add(rows)

    def __call__(self, ids: pa.Array) -> RowIds:
        """The ids of rows, by their manifest ids."""
        parts = pc.extract_regex(ids, _ID)
        source = pc.fill_null(pc.struct_field(parts, "source"), "")
        keys = pc.fill_null(pc.struct_field(parts, "key"), "")
        coco = np.full(len(ids), NONE, np.int64)
        flickr = np.full(len(ids), NONE, np.int64)
        known = np.zeros(len(ids), bool)
        for name in pc.unique(source).to_pylist():
            numbering = _NUMBERING.get(name)
            if numbering is None:
                continue
            rows = np.flatnonzero(pc.equal(source, name).to_numpy(zero_copy_only=False))
            number = _numbers(keys.take(pa.array(rows)), numbering)
            rows, number = rows[number >= 0], number[number >= 0]
            if numbering == "flickr":
                flickr[rows] = number
                continue
            told, told_coco, told_flickr = self._told.get(numbering, _Told()).look_up(number)
            flickr[rows] = told_flickr
            coco[rows] = number if numbering == "coco" else told_coco
            # OpenImages tells addresses of photos, and nothing of COCO.
            known[rows] = numbering == "coco" or (numbering == "vg" and told)
        return RowIds(coco, flickr, known)


def _numbers(keys: pa.Array, numbering: str) -> Ids:
    """Integers of id texts; -1 where one is no number of that source."""
    base = 16 if numbering == "openimages" else 10
    return np.array([_number(key, base) for key in keys.to_pylist()], dtype=np.int64)


def _number(text: str, base: int) -> int:
    try:
        value = int(text, base)
    except ValueError:
        return NONE
    return value & (2**63 - 1)  # OpenImages' have 64 bits, of which 63 tell as much


def _or_none(value: int | None) -> int:
    return NONE if value is None else value


class _VgImage(msgspec.Struct, gc=False):
    image_id: Int64 | None = None
    id: Int64 | None = None
    coco_id: Int64 | None = None
    flickr_id: Int64 | None = None


class _CocoImage(msgspec.Struct, gc=False):
    id: Int64
    flickr_url: str | None = None


def _visual_genome(path: Path) -> Rows:
    for elements in read_arrays(path, {"": _VgImage}):
        yield [
            (number, item.coco_id, item.flickr_id)
            for item in elements.items
            if (number := item.image_id if item.image_id is not None else item.id) is not None
        ]


def _coco(path: Path) -> Rows:
    for elements in read_arrays(path, {"images": _CocoImage}, early=True):
        yield [(item.id, item.id, flickr_photo(item.flickr_url)) for item in elements.items]


def _openimages(path: Path) -> Rows:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if not {"ImageID", "OriginalURL"} <= set(reader.fieldnames or ()):
            raise UserError(
                f"{path}: no columns ImageID and OriginalURL", "give the list of images"
            )
        while block := list(islice(reader, 50_000)):
            rows = [
                (_number(r["ImageID"] or "", 16), flickr_photo(r["OriginalURL"])) for r in block
            ]
            yield [(number, None, photo) for number, photo in rows if number != NONE and photo]
