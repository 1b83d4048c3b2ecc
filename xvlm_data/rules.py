"""Keep or reject: the rules of reformulation, over the annotations of a block of images at once.

Each annotation ends with one reason or with none. *Rejected* means the input is broken; *filtered*
means that a rule, which the user can turn off, leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.boxes import clip_xywh, normalise_xywh
from xvlm_data.overlap import overlapping
from xvlm_data.records import OBJECT, REGION, column

#: Reasons that are a choice of the user's, with the flag that turns the rule off.
FILTERS = {
    "other_split": "--split",
    "leak": "--keep-leaks",
    "crowd": "--keep-crowd",
    "small": "--min-area 0",
    "text_overlap": "--max-text-overlap 1",
}

#: Image problems that concern nobody here: their records are not judged by themselves.
_ELSEWHERE = ("other_split", "leak")

#: A box may leave its image by this much without counting as clipped: the rounding of decimals.
CLIP_TOLERANCE = 0.02

Bools = npt.NDArray[np.bool_]


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


#: The rules that keep everything that is not broken.
KEEP_ALL = Rules(min_area=0.0, max_text_overlap=1.0, keep_crowd=True)


@dataclass
class Reasons:
    """Why records are left out: a small number each, 0 where they are kept.

    Attributes:
        codes: ``[N]``.
        names: reason by code; the first stands for "kept".
    """

    codes: npt.NDArray[np.int16]
    names: list[str] = field(default_factory=lambda: [""])

    @classmethod
    def of(cls, texts: pa.Array) -> Reasons:
        """From ``[N]`` reasons, null where there is none."""
        reasons = cls(np.zeros(len(texts), np.int16))
        if texts.null_count < len(texts):
            encoded = texts.dictionary_encode()
            names = [reasons.code(name) for name in encoded.dictionary.to_pylist()]
            table = np.array([0, *names], np.int16)
            places = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
            reasons.codes = table[places + 1]
        return reasons

    @property
    def kept(self) -> Bools:
        """``[N]`` where there is no reason."""
        return self.codes == 0

    def code(self, reason: str) -> int:
        """The number of a reason."""
        if reason not in self.names:
            self.names.append(reason)
        return self.names.index(reason)

    def mark(self, where: Bools, reason: str) -> None:
        """Give a reason where there is none yet."""
        if where.any():
            self.codes[where & (self.codes == 0)] = self.code(reason)

    def take_over(self, others: Reasons, rows: npt.NDArray[np.int64]) -> None:
        """Where there is none yet, take the reason of other records, ``rows`` of them."""
        table = np.array([0, *(self.code(name) for name in others.names[1:])], np.int16)
        given = table[others.codes[rows]]
        self.codes = np.where(self.codes == 0, given, self.codes)

    def counts(self, where: Bools) -> dict[str, int]:
        """How often each reason is among some of the records."""
        found = np.bincount(self.codes[where], minlength=len(self.names)).tolist()
        return {name: n for name, n in zip(self.names[1:], found[1:], strict=True) if n}

    def labels(self, where: Bools) -> pa.DictionaryArray:
        """The reasons of some of the records."""
        return pa.DictionaryArray.from_arrays(self.codes[where].astype(np.int32), self.names)

    def only(self, names: Sequence[str]) -> Reasons:
        """These reasons alone."""
        keep = np.array([name in names for name in self.names])
        return Reasons(np.where(keep[self.codes], self.codes, 0).astype(np.int16), self.names)


@dataclass(frozen=True)
class Judged:
    """What the rules said of a block's annotations.

    Attributes:
        reasons: why each is left out.
        boxes: ``[N, 4]`` normalised (cx, cy, w, h); whole image for captions.
        clipped: ``[N]`` whether the box was cut to its image.
    """

    reasons: Reasons
    boxes: npt.NDArray[np.float32]
    clipped: Bools


# Absurd boxes overflow; they are cut off or rejected.
@np.errstate(over="ignore", invalid="ignore")
def judge(
    annotations: pa.Table,
    image_rows: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    image_problems: Reasons,
    texts: pa.Array,
    rules: Rules,
) -> Judged:
    """Apply every rule, the first that holds names the reason.

    Args:
        annotations: N rows of ``records.ANNOTATIONS``, sorted by image.
        image_rows: ``[N]`` which image of the block each belongs to.
        sizes: ``[I, 2]`` (width, height) of each image in the unit of the boxes.
        image_problems: why images are left out, I of them.
        texts: N normalised texts.
        rules: the thresholds.
    """
    kinds = column(annotations, "kind").to_numpy()
    reasons = Reasons.of(column(annotations, "problem"))
    is_box = (kinds == REGION) | (kinds == OBJECT)
    sizes = sizes[image_rows]
    sides = [column(annotations, side).to_numpy(zero_copy_only=False) for side in "xywh"]
    pixels = np.stack(sides, axis=1).astype(np.float64, copy=False).reshape(-1, 4)

    # What is wrong with a record itself says more than that its image is missing, but the images
    # of another split are nobody's concern here.
    reasons.take_over(image_problems.only(_ELSEWHERE), image_rows)
    finite = np.isfinite(pixels[:, 0] + pixels[:, 1] + pixels[:, 2] + pixels[:, 3])
    if not finite.all():  # or their sum overflows
        broken = ~np.isfinite(pixels)
        reasons.mark(is_box & broken.any(axis=1), "box_not_finite")
        pixels[broken] = 0.0
    reasons.mark(is_box & ((pixels[:, 2] <= 0) | (pixels[:, 3] <= 0)), "box_empty")
    empty = pc.equal(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False)
    reasons.mark(empty, "empty_text")
    reasons.take_over(image_problems, image_rows)
    if not rules.keep_crowd:
        crowd = pc.fill_null(column(annotations, "crowd"), False)
        reasons.mark(crowd.to_numpy(zero_copy_only=False), "crowd")
    cut = clip_xywh(pixels, sizes)
    boxes = normalise_xywh(cut, sizes)
    reasons.mark(is_box & ((cut[:, 2] <= 0) | (cut[:, 3] <= 0)), "box_outside")
    # Gone in float32.
    reasons.mark(is_box & ((boxes[:, 2] <= 0) | (boxes[:, 3] <= 0)), "box_empty")
    boxes[~is_box] = (0.5, 0.5, 1.0, 1.0)
    area = cut[:, 2] * cut[:, 3]
    reasons.mark(is_box & (area < rules.min_area * sizes[:, 0] * sizes[:, 1]), "small")
    if rules.max_text_overlap < 1:
        regions = np.flatnonzero((kinds == REGION) & reasons.kept)
        if len(regions):
            some = texts.take(pa.array(regions))
            again = overlapping(some, image_rows[regions], rules.max_text_overlap)
            where = np.zeros(len(kinds), bool)
            where[regions[again]] = True
            reasons.mark(where, "text_overlap")
    moved = np.abs(cut - pixels)
    tolerance = CLIP_TOLERANCE if (sizes > 1).any() else CLIP_TOLERANCE / 1000
    clipped = is_box & (np.maximum.reduce(list(moved.T)) > tolerance)
    return Judged(reasons, boxes, clipped)
