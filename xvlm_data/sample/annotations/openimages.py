"""OpenImages at any scale: boxes as fractions of the image, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xvlm_data.sample.annotations import words
from xvlm_data.sample.annotations.boxes import choose_fates, draw_boxes, invalid_shares
from xvlm_data.sample.annotations.chance import (
    Numbers,
    Shares,
    Weighted,
    block_random,
    keys_of,
    zipf,
)
from xvlm_data.sample.annotations.files import Block, File, Run
from xvlm_data.sample.annotations.plan import Plan, Request
from xvlm_data.sample.annotations.sizes import OPENIMAGES, scaled
from xvlm_data.sample.annotations.truth import Fate, Tally

_SPLIT = "train"
_HEADER = (
    b"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    b"IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)
_IMAGES_A_BLOCK = 2_000
_SPREAD = 6
_CLASS = Weighted(zipf(OPENIMAGES.classes, 3.0))
#: Boxes are drawn in an image of this side, so that fractions have six decimals, as released.
_SIDE, _DIGITS = 1000, 3
#: A fraction this far beyond the image is no rounding, however large the image is.
_BEYOND = (100.0, 300.0)


@dataclass(frozen=True)
class _Images:
    request: Request
    count: int
    boxes: int

    def ids(self, numbers: Numbers) -> list[str]:
        """Sixteen hexadecimal digits in ascending order, as the official rows are sorted."""
        step = 2**64 // self.count
        within = keys_of(self.request.seed, "openimages/ids", numbers) % np.uint64(step)
        starts = numbers.astype(np.uint64) * np.uint64(step)
        return [f"{id_:016x}" for id_ in (starts + within).tolist()]


def _plan(folder: Path, request: Request) -> Plan:
    """``train-annotations-bbox.csv`` and ``class-descriptions-boxable.csv``."""
    images = _Images(
        request,
        scaled(OPENIMAGES.images, request.scale),
        scaled(OPENIMAGES.boxes, request.scale),
    )
    names = "".join(f"{mid},{name}\n" for mid, name in zip(*_classes(), strict=True))
    return Plan(
        [
            File(folder / "class-descriptions-boxable.csv", [names.encode()]),
            File(
                folder / "train-annotations-bbox.csv",
                [
                    _HEADER,
                    Run(partial(_block, images), images.count, _IMAGES_A_BLOCK, b"\n"),
                    b"\n",
                ],
            ),
        ],
        _truth,
    )


def _classes() -> tuple[list[str], list[str]]:
    """MIDs and names of the boxable classes."""
    numbers = range(OPENIMAGES.classes)
    nouns = words.NOUNS[: OPENIMAGES.classes].tolist()
    names = [
        f"{noun.capitalize()} tool" if n % 11 == 3 else noun.capitalize()
        for n, noun in enumerate(nouns)
    ]
    return [f"/m/0{10_000 + 977 * number:x}" for number in numbers], names


def _truth(tally: Tally) -> dict[str, Any]:
    return {"splits": {_SPLIT: tally.settle({_SPLIT: None})}}


def _block(images: _Images, first: int, stop: int) -> Block:
    request = images.request
    numbers = np.arange(first, stop)
    counts = Shares(request.seed, "openimages", images.boxes, images.count, _SPREAD).counts(numbers)
    owner = np.repeat(np.arange(len(numbers)), counts)
    count = len(owner)
    random = block_random(request.seed, "openimages/boxes", first)
    fates = choose_fates(
        random,
        count,
        {
            Fate.SMALL: OPENIMAGES.small,
            Fate.CROWD: OPENIMAGES.group,
            **invalid_shares(
                request.invalid,
                Fate.CLIPPED,
                Fate.BOX_EMPTY,
                Fate.BOX_OUTSIDE,
                Fate.BOX_NOT_FINITE,
                Fate.UNKNOWN_CATEGORY,
                Fate.MALFORMED,
            ),
        },
    )
    side = np.full(count, _SIDE)
    boxes = draw_boxes(random, fates, side, side, _DIGITS, _BEYOND) / _SIDE
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    mids, _ = _classes()
    labels = [mids[label] for label in _CLASS[random.integers(0, 1 << 16, count)].tolist()]
    for row in np.flatnonzero(fates == Fate.UNKNOWN_CATEGORY).tolist():
        labels[row] = f"/m/none{row % 10}"
    flags = random.integers(0, 2, (count, 4)) - (random.random((count, 1)) < 0.01)
    ids = images.ids(numbers)
    rows = [
        [
            *(ids[image], "xclick" if freehand else "freeform", label, "1"),
            *(f"{x0:.6f}", f"{x1:.6f}", f"{y0:.6f}", f"{y1:.6f}"),
            *(str(occluded), str(truncated), "1" if fate == Fate.CROWD else "0"),
            *(str(depiction), str(inside)),
        ]
        for image, label, (x0, y0, x1, y1), fate, (
            occluded,
            truncated,
            depiction,
            inside,
        ), freehand in zip(
            owner.tolist(),
            labels,
            corners.tolist(),
            fates.tolist(),
            flags.tolist(),
            (random.random(count) < 0.9).tolist(),
            strict=True,
        )
    ]
    named = np.ones(count, dtype=bool)
    for row in np.flatnonzero(fates == Fate.MALFORMED).tolist():
        named[row] = _spoil(rows[row], row)
    tally = Tally()
    # There is no list of images: an image is there if a row that can be read names it.
    seen = np.bincount(owner[named], minlength=len(numbers)) > 0
    tally.add("image", _SPLIT, Fate.KEPT, int(seen.sum()))
    tally.add_all("object", fates, _SPLIT)
    text = "\n".join(",".join(row) for row in rows)
    return Block(text.encode("utf-8", "surrogateescape"), tally)


def _spoil(fields: list[str], row: int) -> bool:
    """Spoil a row; whether it still names its image."""
    form = row % 5
    if form == 0:
        fields.append("0")
    elif form == 1:
        del fields[-1]
    elif form == 2:
        fields[0] = "not-an-image-id"
    elif form == 3:
        fields[0] = f"{fields[0][:-1]}\udce9"  # no UTF-8
    else:
        fields[4] = "left"
    return form == 4


PLANS = {"openimages": _plan}
