"""Images that evaluation sets use, so that pre-training data can leave them out.

COCO images hide in Visual Genome (``coco_id``), and Flickr30K's under ``flickr_id``; RefCOCO's
evaluation images are COCO's. The lists come from the evaluation files the user has.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from xvlm_data.errors import UserError
from xvlm_data.raw.files import open_raw
from xvlm_data.raw.json_arrays import Int64, read_arrays

Ids = npt.NDArray[np.int64]

#: Where evaluation files usually lie, relative to the folder that holds all raw releases.
USUAL_PLACES = (
    "coco/dataset_coco.json",
    "coco/annotations/dataset_coco.json",
    "coco/annotations/captions_val2017.json",
    "coco/annotations/instances_val2017.json",
    "refcoco*/refs(*).p",
    "refcoco/refcoco*/refs(*).p",
    "flickr30k/dataset_flickr30k.json",
    "flickr30k/*/test.txt",
)
_HELD_OUT = {"val", "test", "testA", "testB"}


@dataclass
class EvaluationIds:
    """Ids of images that must not be trained on, sorted, and how many each file named."""

    coco_ids: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    flickr_ids: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    per_file: dict[str, int] = field(default_factory=dict)


def usual_evaluation_files(root: Path) -> tuple[Path, ...]:
    """Evaluation files in and beside a release's folder."""
    found = {p.resolve() for place in USUAL_PLACES for p in root.parent.glob(place) if p.is_file()}
    return tuple(sorted(found))


def evaluation_ids(files: Sequence[Path]) -> EvaluationIds:
    """Read the ids of held-out images.

    Args:
        files: any of Karpathy's ``dataset_coco.json`` or ``dataset_flickr30k.json``, COCO
            annotation files of a val or test part, RefCOCO's ``refs(*).p``, or a text file with a
            Flickr or COCO image name a line.

    Raises:
        UserError: a file is missing or of none of these kinds.
    """
    coco: list[int] = []
    flickr: list[int] = []
    result = EvaluationIds()
    for file in files:
        found_coco, found_flickr = _read(file)
        coco += found_coco
        flickr += found_flickr
        result.per_file[str(file)] = len(set(found_coco)) + len(set(found_flickr))
    result.coco_ids = np.unique(np.array(coco, dtype=np.int64))
    result.flickr_ids = np.unique(np.array(flickr, dtype=np.int64))
    return result


def exclude_ids(ids: Ids, banned: Ids) -> list[str | None]:
    """The reason ``leak`` where an id is banned, else None."""
    return ["leak" if hit else None for hit in np.isin(ids, banned)]


def _read(file: Path) -> tuple[list[int], list[int]]:
    if file.suffix == ".p":
        return _refer_ids(file), []
    if file.suffix == ".txt":
        return _listed(file)
    if re.search(r"(val|test)\d{4}", file.stem):
        return _coco_ids(file), []
    return _karpathy_ids(file)


class _Split(msgspec.Struct, gc=False):
    split: str
    filename: str
    cocoid: Int64 | None = None


class _Id(msgspec.Struct, gc=False):
    id: Int64


def _karpathy_ids(file: Path) -> tuple[list[int], list[int]]:
    coco, flickr = [], []
    for elements in read_arrays(file, {"images": _Split}):
        for item in elements.items:
            if item.split not in _HELD_OUT:
                continue
            if item.cocoid is not None:
                coco.append(item.cocoid)
            elif digits := re.match(r"\d+", item.filename):
                flickr.append(int(digits[0]))
    return coco, flickr


def _coco_ids(file: Path) -> list[int]:
    chunks: Iterable[Any] = read_arrays(file, {"images": _Id})
    return [item.id for elements in chunks for item in elements.items]


def _listed(file: Path) -> tuple[list[int], list[int]]:
    coco, flickr = [], []
    with open_raw(file) as raw:
        for line in raw.read(64 << 20).decode("utf-8", "replace").split("\n"):
            if match := re.search(r"COCO_\w+_(\d{12})", line):
                coco.append(int(match[1]))
            elif match := re.match(r"\s*(\d+)(?:\.jpg)?\s*$", line):
                flickr.append(int(match[1]))
    return coco, flickr


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, numbers and strings; anything that could run code is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def _refer_ids(file: Path) -> list[int]:
    """COCO ids of held-out references; the release is a pickle written by Python 2."""
    with open_raw(file) as raw:
        data = raw.read()
    try:
        refs = _PlainUnpickler(io.BytesIO(data), encoding="latin-1").load()
        return [int(ref["image_id"]) for ref in refs if str(ref["split"]) in _HELD_OUT]
    except Exception as error:
        why = json.dumps(str(error))[1:120].strip('"')
        raise UserError(f"{file}: not a RefCOCO list ({why})", "download it again") from error
