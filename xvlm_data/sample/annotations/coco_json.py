"""The JSON of COCO's annotations that other releases share, and the outlines that only COCO has."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from xvlm_data.sample.annotations.boxes import Boxes, Sides, choose_fates, invalid_shares
from xvlm_data.sample.annotations.plan import Spoil, having, replaced_by, without
from xvlm_data.sample.annotations.truth import Fate, Fates

ANNOTATION_ID_PRIME = 899_999_963
COMPACT = (",", ": ")  # the official files of 2017 have no space after a comma

#: How an annotation with a box goes wrong; each form lacks something that a builder needs.
MALFORMED_BOXES: tuple[Spoil, ...] = (
    without("bbox"),
    lambda record: {**record, "bbox": record["bbox"][:3]},
    having("bbox", None),
    lambda record: {**record, "bbox": ["left", *record["bbox"][1:]]},
    without("category_id"),
    lambda record: {**record, "image_id": f"{record['image_id']}.jpg"},
    without("image_id"),
    replaced_by(17),
)
MALFORMED_CAPTIONS: tuple[Spoil, ...] = (
    without("caption"),
    having("caption", None),
    lambda record: {**record, "image_id": f"{record['image_id']}.jpg"},
    replaced_by("a caption alone"),
)

#: Numbers of outline points are four times this on average, at most.
_MEAN_POINTS, _MOST_POINTS = 5.4, 40
_TWO_POLYGONS = 0.10


def instance_fates(
    random: np.random.Generator, count: int, invalid: float, *, small: float, crowd: float
) -> Fates:
    """``[N]`` what becomes of annotations with boxes and categories.

    Args:
        random: where chance comes from.
        count: N.
        invalid: the share that is spoilt.
        small: the share below 1 % of the image.
        crowd: the share of crowds.
    """
    spoilt = invalid_shares(
        invalid,
        Fate.CLIPPED,
        Fate.BOX_EMPTY,
        Fate.BOX_OUTSIDE,
        Fate.BOX_NOT_FINITE,
        Fate.UNKNOWN_IMAGE,
        Fate.UNKNOWN_CATEGORY,
        Fate.MALFORMED,
    )
    return choose_fates(random, count, {Fate.SMALL: small, Fate.CROWD: crowd, **spoilt})


def polygons(random: np.random.Generator, boxes: Boxes) -> tuple[list[str], list[float]]:
    """Outlines with boxes' extents, as JSON, and their areas.

    Args:
        random: where chance comes from.
        boxes: ``[N, 4]`` (x, y, w, h), finite.

    Returns:
        ``[N]`` JSON of lists of polygons, and ``[N]`` areas in square pixels.
    """
    parts = 1 + (random.random(len(boxes)) < _TWO_POLYGONS)
    owner = np.repeat(np.arange(len(boxes)), parts)
    second = np.diff(owner, prepend=-1) == 0
    frame = boxes[owner]
    frame[second, 2:] *= 0.4
    quarter = np.minimum(1 + random.exponential(_MEAN_POINTS - 0.5, len(owner)), _MOST_POINTS)
    quarter = quarter.astype(np.int64)
    points = 4 * quarter
    ends = np.cumsum(points)
    starts = ends - points
    place = np.arange(ends[-1]) - np.repeat(starts, points)
    angle = 2 * np.pi * place / np.repeat(points, points)
    # Every quarter turn lies on the box, the rest inside.
    radius = np.where(
        place % np.repeat(quarter, points) == 0, 1.0, 0.6 + 0.35 * random.random(len(place))
    )
    half = np.repeat(frame[:, 2:] / 2, points, axis=0)
    centre = np.repeat(frame[:, :2] + frame[:, 2:] / 2, points, axis=0)
    turn = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
    xy = np.round(centre + half * turn, 2) + 0.0
    following = np.arange(1, ends[-1] + 1)
    following[ends - 1] = starts
    cross = xy[:, 0] * xy[following, 1] - xy[following, 0] * xy[:, 1]
    shape_areas = np.abs(np.add.reduceat(cross, starts)) / 2
    areas = np.bincount(owner, weights=shape_areas, minlength=len(boxes))
    flat = xy.ravel().tolist()
    outlines: list[list[list[float]]] = [[] for _ in range(len(boxes))]
    for row, start, end in zip(
        owner.tolist(), (2 * starts).tolist(), (2 * ends).tolist(), strict=True
    ):
        outlines[row].append(flat[start:end])
    # One call for all; between two records there is "]],[[", between two polygons "],[".
    text = msgspec.json.encode(outlines).decode()
    return [f"[[{inner}]]" for inner in text[3:-3].split("]],[[")], areas.tolist()


def crowd_mask(
    random: np.random.Generator, box: npt.NDArray[np.int64], width: int, height: int
) -> dict[str, Any]:
    """A mask with a box's extents as COCO writes crowds: run lengths down the columns."""
    x, y, w, h = box.tolist()
    # Whole columns at first, so that the extents are met; then one or two runs in each.
    top = y + random.integers(0, max(h // 3, 1), w)
    end = y + h - random.integers(0, max(h // 3, 1), w)
    top[0], end[0] = y, y + h
    edges = np.stack([np.arange(x, x + w) * height + top, np.arange(x, x + w) * height + end], 1)
    if h >= 12:
        middle = (edges.sum(axis=1) // 2)[:, None]
        edges = np.concatenate([edges[:, :1], middle - 1, middle + 1, edges[:, 1:]], axis=1)
    runs = np.diff(edges.ravel(), prepend=0, append=width * height)
    return {"counts": runs.tolist(), "size": [height, width], "area": int(runs[1::2].sum())}


def whole(boxes: Boxes, width: Sides, height: Sides) -> npt.NDArray[np.int64]:
    """``[N, 4]`` boxes in whole pixels inside their images, as COCO's crowds have them."""
    frame = np.stack([width, height], axis=1)
    corner = np.minimum(np.floor(boxes[:, :2]).astype(np.int64), frame - 1)
    sides = np.maximum(np.floor(boxes[:, 2:]).astype(np.int64), 1)
    return np.concatenate([corner, np.minimum(sides, frame - corner)], axis=1)
