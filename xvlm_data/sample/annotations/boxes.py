"""Boxes whose fate is certain: far from every threshold, also after rounding as the file does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from xvlm_data.sample.annotations.truth import Fate, Fates

Boxes = npt.NDArray[np.float64]
Sides = npt.NDArray[np.int64]

#: The rule says 1 % of the image; nothing is drawn between these shares.
_SMALL_AT_MOST, _LARGE_AT_LEAST = 0.0095, 0.0105
#: NaN and infinities are no JSON: readers leave their fast path, and a real file has few, if any.
_NOT_FINITE_SHARE = 0.05
_NOT_FINITE = (np.nan, np.inf, -np.inf)


def choose_fates(random: np.random.Generator, count: int, shares: Mapping[Fate, float]) -> Fates:
    """``[N]`` fates by lot; what the shares leave is kept."""
    fates = list(shares)
    edges = np.cumsum([shares[fate] for fate in fates])
    codes = np.array([*fates, Fate.KEPT], dtype=np.int8)
    return codes[np.searchsorted(edges, random.random(count), side="right")]


def invalid_shares(invalid: float, *fates: Fate) -> dict[Fate, float]:
    """``invalid`` divided over fates: equally, but for boxes that are not finite."""
    rare = {Fate.BOX_NOT_FINITE: _NOT_FINITE_SHARE} if Fate.BOX_NOT_FINITE in fates else {}
    others = [fate for fate in fates if fate not in rare]
    each = (1 - sum(rare.values())) / len(others)
    return {fate: invalid * rare.get(fate, each) for fate in fates}


def draw_boxes(
    random: np.random.Generator,
    fates: Fates,
    width: Sides,
    height: Sides,
    digits: int,
    beyond: tuple[float, float] = (1.0, 30.0),
) -> Boxes:
    """Boxes that come to their fates.

    Args:
        random: where chance comes from.
        fates: ``[N]``; those that are not about boxes get a good one.
        width: ``[N]`` of the image, in pixels, at least 100.
        height: ``[N]`` likewise.
        digits: decimals that the file holds; 0 for whole pixels.
        beyond: how far a clipped box leaves its image, in pixels, at least and at most.

    Returns:
        ``[N, 4]`` (x, y, w, h) in pixels, rounded to ``digits``.
    """
    count = len(fates)
    frame = np.stack([width, height], axis=1).astype(np.float64)
    unit = 10.0**digits
    sides = np.floor(_sides(random, fates == Fate.SMALL, frame) * unit) / unit
    sides = np.maximum(sides, 1.0)
    _mend(sides, fates == Fate.SMALL, frame, unit)
    corner = np.floor(random.random((count, 2)) * (frame - sides) * unit) / unit
    boxes = np.concatenate([corner, sides], axis=1)
    _stick_out(random, boxes, np.flatnonzero(fates == Fate.CLIPPED), frame, unit, beyond)
    _leave(random, boxes, np.flatnonzero(fates == Fate.BOX_OUTSIDE), frame, unit)
    empty = np.flatnonzero(fates == Fate.BOX_EMPTY)
    boxes[empty, 2 + random.integers(0, 2, len(empty))] *= random.choice([0.0, -1.0], len(empty))
    broken = np.flatnonzero(fates == Fate.BOX_NOT_FINITE)
    boxes[broken, random.integers(0, 4, len(broken))] = random.choice(_NOT_FINITE, len(broken))
    if digits:
        boxes = np.round(boxes, digits)
    return boxes + 0.0  # no negative zeros


def _sides(random: np.random.Generator, small: npt.NDArray[np.bool_], frame: Boxes) -> Boxes:
    """Widths and heights: shares of the image spread evenly in their logarithm."""
    low = np.where(small, 1e-4, _LARGE_AT_LEAST * 1.05)
    high = np.where(small, _SMALL_AT_MOST, 0.6)
    share = low * (high / low) ** random.random(len(frame))
    slim = np.exp(random.normal(0.0, 0.45, len(frame)))
    ratio = np.stack([slim, 1 / slim], axis=1) * np.sqrt(share)[:, None]
    return np.minimum(ratio, 0.98) * frame


def _mend(sides: Boxes, small: npt.NDArray[np.bool_], frame: Boxes, unit: float) -> None:
    """Replace boxes that rounding brought too near the 1 % by ones that are not."""
    share = sides.prod(axis=1) / frame.prod(axis=1)
    wrong = np.where(small, share > _SMALL_AT_MOST, share < _LARGE_AT_LEAST)
    factor = np.where(small, 0.05, 0.3)[wrong, None]
    sides[wrong] = np.maximum(np.floor(factor * frame[wrong] * unit) / unit, 1.0)


def _stick_out(
    random: np.random.Generator,
    boxes: Boxes,
    rows: npt.NDArray[np.intp],
    frame: Boxes,
    unit: float,
    how_far: tuple[float, float],
) -> None:
    """Move boxes to an edge and prolong them beyond it; what is inside stays as large."""
    axis = random.integers(0, 2, len(rows))
    far = random.integers(0, 2, len(rows)) == 1
    beyond = np.round(random.uniform(*how_far, len(rows)) * unit) / unit
    side = boxes[rows, 2 + axis]
    boxes[rows, axis] = np.where(far, frame[rows, axis] - side, -beyond)
    boxes[rows, 2 + axis] = side + beyond


def _leave(
    random: np.random.Generator,
    boxes: Boxes,
    rows: npt.NDArray[np.intp],
    frame: Boxes,
    unit: float,
) -> None:
    """Move boxes wholly out of the image."""
    axis = random.integers(0, 2, len(rows))
    far = random.integers(0, 2, len(rows)) == 1
    gap = np.round(random.uniform(1.0, 900.0, len(rows)) * unit) / unit
    side = boxes[rows, 2 + axis]
    boxes[rows, axis] = np.where(far, frame[rows, axis] + gap, -side - gap)
