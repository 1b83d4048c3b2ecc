"""How large the releases are: every number that ``--scale paper`` means, in one place.

Counts and shares are those of the published files where they are known; shares that only decide
how a file looks are close to what real excerpts show.
"""

from __future__ import annotations

from dataclasses import dataclass

from xvlm_data.errors import UserError

#: What ``--scale paper`` stands for.
PAPER = 1.0
#: Beyond this the ids of the official layouts run out.
LARGEST_SCALE = 50.0


@dataclass(frozen=True)
class Coco:
    """COCO 2017 and Karpathy's split of the same images."""

    images: tuple[int, int] = (118_287, 5_000)  # train2017, val2017
    instances: tuple[int, int] = (860_001, 36_781)
    captions: tuple[int, int] = (591_753, 25_014)
    karpathy_train: int = 82_783
    karpathy_held_out: int = 5_000  # his val, and again his test
    crowd: float = 0.012
    small: float = 0.45


@dataclass(frozen=True)
class Objects365:
    """Objects365 v2. 25.4 million is the count that people report; none is published."""

    images: tuple[int, int] = (1_742_289, 80_000)  # train, val
    boxes: tuple[int, int] = (25_407_598, 1_240_587)
    crowd: float = 0.03
    small: float = 0.50


@dataclass(frozen=True)
class VisualGenome:
    """Visual Genome 1.2."""

    images: int = 108_077
    regions: int = 5_408_689
    objects: int = 3_802_374
    coco_images: int = 51_208
    leaked_images: int = 2_126 + 2_138  # in Karpathy's val and test
    small_regions: float = 0.17
    small_objects: float = 0.35
    repeated_phrases: float = 0.06
    described_objects: float = 0.74  # have attributes


@dataclass(frozen=True)
class UrlList:
    """A list of (URL, caption): rows of the training and of the validation file."""

    rows: tuple[int, int]


@dataclass(frozen=True)
class OpenImages:
    """OpenImages V4 to V6, training boxes in the layout of 13 columns."""

    images: int = 1_743_042
    boxes: int = 14_610_229
    classes: int = 601
    group: float = 0.055
    small: float = 0.25


COCO = Coco()
OBJECTS365 = Objects365()
VG = VisualGenome()
SBU = UrlList((1_000_000, 0))
CC3M = UrlList((3_318_333, 15_840))
CC12M = UrlList((12_423_374, 0))
OPENIMAGES = OpenImages()


def scaled(count: int, scale: float) -> int:
    """``count`` at a scale, at least 1 where there is anything at all."""
    return max(round(count * scale), 1) if count else 0


def parse_scale(text: str) -> float:
    """``paper``, or a number above 0.

    Raises:
        UserError: it is neither, or too large for the ids of the official layouts.
    """
    if text == "paper":
        return PAPER
    try:
        scale = float(text)
    except ValueError:
        raise UserError(f"--scale {text!r} is no number", "give paper, or such as 0.01") from None
    if not 0 < scale <= LARGEST_SCALE:
        raise UserError(
            f"--scale {text} is not above 0 and at most {LARGEST_SCALE:g}",
            "1 is the real size; give such as 0.01",
        )
    return scale
