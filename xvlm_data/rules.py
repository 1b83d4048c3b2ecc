"""Keep or reject: the rules of reformulation, over the annotations of a block of images at once.

Each annotation ends with one reason or with none. *Rejected* means the input is broken; *filtered*
means that a rule, which the user can turn off, leaves it out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xvlm_data.boxes import clip_xywh, normalise_xywh
from xvlm_data.records import CAPTION, REGION
from xvlm_data.text import words

#: Reasons that are a choice of the user's, with the flag that turns the rule off.
FILTERS = {
    "other_split": "--split",
    "leak": "--keep-leaks",
    "crowd": "--keep-crowd",
    "small": "--min-area 0",
    "text_overlap": "--max-text-overlap 1",
}

#: A box may leave its image by this much without counting as clipped: the rounding of decimals.
CLIP_TOLERANCE = 0.02

Reasons = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Rules:
    """The filters of the paper's appendix and their thresholds.

    Attributes:
        min_area: objects and regions below this share of the image's area are left out.
        max_text_overlap: a region is left out when its words and those of an earlier region kept
            in the image have a larger Jaccard overlap than this.
        keep_crowd: keep annotations of crowds as objects.
    """

    min_area: float = 0.01
    max_text_overlap: float = 0.75
    keep_crowd: bool = False


@dataclass(frozen=True)
class Judged:
    """What the rules said of a block's annotations.

    Attributes:
        reasons: ``[N]`` reason code, or None where the annotation is kept.
        boxes: ``[N, 4]`` normalised (cx, cy, w, h); whole image for captions.
        clipped: ``[N]`` whether the box was cut to its image.
    """

    reasons: Reasons
    boxes: npt.NDArray[np.float32]
    clipped: npt.NDArray[np.bool_]


# Absurd boxes overflow; they are cut off or rejected.
@np.errstate(over="ignore", invalid="ignore")
def judge(
    annotations: pa.Table,
    image_rows: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    image_problems: Reasons,
    texts: list[str],
    rules: Rules,
) -> Judged:
    """Apply every rule, the first that holds names the reason.

    Args:
        annotations: N rows of ``records.ANNOTATIONS``, sorted by image.
        image_rows: ``[N]`` which image of the block each belongs to.
        sizes: ``[I, 2]`` (width, height) of each image; at least 1 where unknown.
        image_problems: ``[I]`` why an image is left out, or None.
        texts: N normalised texts.
        rules: the thresholds.
    """
    kinds = annotations["kind"].to_numpy()
    reasons = np.array(annotations["problem"].to_pylist(), dtype=object)
    is_box = kinds != CAPTION
    sizes = sizes[image_rows]
    pixels = np.stack(
        [annotations[side].to_numpy().astype(np.float64) for side in "xywh"], axis=1
    ).reshape(-1, 4)

    def mark(where: npt.NDArray[np.bool_], reason: str) -> None:
        reasons[where & is_none(reasons)] = reason

    # What is wrong with a record itself says more than that its image is missing, but the images
    # of another split are nobody's concern here.
    problems = image_problems[image_rows]
    elsewhere = np.isin(problems.astype(str), ["other_split", "leak"])
    reasons = np.where(is_none(reasons) & elsewhere, problems, reasons)
    mark(is_box & ~np.isfinite(pixels).all(axis=1), "box_not_finite")
    pixels = np.where(np.isfinite(pixels), pixels, 0.0)
    mark(is_box & (pixels[:, 2:] <= 0).any(axis=1), "box_empty")
    mark(np.array([not text for text in texts], dtype=bool), "empty_text")
    reasons = np.where(is_none(reasons), problems, reasons)
    if not rules.keep_crowd:
        mark(annotations["crowd"].fill_null(False).to_numpy(zero_copy_only=False), "crowd")
    cut = clip_xywh(pixels, sizes)
    boxes = normalise_xywh(cut, sizes)
    mark(is_box & (cut[:, 2:] <= 0).any(axis=1), "box_outside")
    mark(is_box & (boxes[:, 2:] <= 0).any(axis=1), "box_empty")  # gone in float32
    boxes[~is_box] = (0.5, 0.5, 1.0, 1.0)
    mark(is_box & (cut[:, 2] * cut[:, 3] < rules.min_area * sizes[:, 0] * sizes[:, 1]), "small")
    if rules.max_text_overlap < 1:
        regions = np.flatnonzero((kinds == REGION) & is_none(reasons))
        reasons[_overlapping(regions, image_rows, texts, rules.max_text_overlap)] = "text_overlap"
    clipped = is_box & (np.abs(cut - pixels).max(axis=1, initial=0) > CLIP_TOLERANCE)
    return Judged(reasons, boxes, clipped)


def is_none(reasons: Reasons) -> npt.NDArray[np.bool_]:
    """``[N]`` where no reason has been given."""
    return np.array([reason is None for reason in reasons], dtype=bool)


def _overlapping(
    regions: npt.NDArray[np.int64],
    image_rows: npt.NDArray[np.int64],
    texts: list[str],
    limit: float,
) -> npt.NDArray[np.int64]:
    """Regions whose words overlap those of an earlier kept region of their image too much."""
    dropped: list[int] = []
    starts = np.flatnonzero(np.diff(image_rows[regions], prepend=-1))
    for group in np.split(regions, starts[1:]) if len(regions) else []:
        dropped.extend(group[~_distinct([texts[i] for i in group], limit)].tolist())
    return np.array(dropped, dtype=np.int64)


def _distinct(texts: list[str], limit: float) -> npt.NDArray[np.bool_]:
    """Which texts to keep, first come first kept, so that no two overlap more than ``limit``."""
    bags = [words(text) for text in texts]
    index = {word: i for i, word in enumerate(sorted(set().union(*bags)))}
    matrix = np.zeros((len(texts), max(len(index), 1)), dtype=np.float32)
    for row, bag in enumerate(bags):
        matrix[row, [index[word] for word in bag]] = 1
    shared = matrix @ matrix.T
    counts = matrix.sum(axis=1)
    union = counts[:, None] + counts[None, :] - shared
    close = shared > limit * np.maximum(union, 1)
    # Texts without any word ("???") overlap with nothing.
    keep = np.ones(len(texts), dtype=bool)
    for row in range(1, len(texts)):
        keep[row] = not (close[row, :row] & keep[:row]).any()
    return keep
