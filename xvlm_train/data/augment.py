"""RandAugment over the operations the paper keeps (spec: Inputs).

Strengths follow the ALBEF family's convention for a magnitude m out of 10: brightness and
sharpness by 1.8 m/10 + 0.1, shear by 0.3 m/10, rotation by 30 m/10 degrees, and translation by
10 m/10 pixels of a 224-pixel image (scaled with the image); geometric ones with a random sign,
grey outside the picture. A drawn operation is carried out with probability ``prob``. As there,
OpenCV does the work: a lookup table, one filter, or one affine transform an operation.

Images are ``[H, W, 3]`` uint8; none is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8]
#: An operation that was drawn: its name, and -1 or 1 for those that have a direction.
Drawn: TypeAlias = tuple[str, int]
_Operation: TypeAlias = Callable[[Pixels, float, int], Pixels]

GREY = 128
_RAMP = np.arange(256)


def enhancement(strength: float) -> float:
    """The factor of brightness and sharpness; 1 leaves an image as it is."""
    return 1.8 * strength + 0.1


def affine_matrix(name: str, strength: float, sign: int, side: int) -> npt.NDArray[np.float32]:
    """``[2, 3]``: where a pixel (x, y, 1) of a square image goes by a geometric operation."""
    amount = sign * strength
    if name == "Rotate":
        turned = cv2.getRotationMatrix2D((side / 2, side / 2), 30 * amount, 1.0)
        return np.asarray(turned, dtype=np.float32)
    matrix = np.eye(2, 3, dtype=np.float32)
    row, column = {"ShearX": (0, 1), "ShearY": (1, 0), "TranslateX": (0, 2), "TranslateY": (1, 2)}[
        name
    ]
    matrix[row, column] = amount * (0.3 if column < 2 else 10 / 224 * side)
    return matrix


def _move(name: str) -> _Operation:
    def operation(image: Pixels, strength: float, sign: int) -> Pixels:
        height, width = image.shape[:2]
        matrix = affine_matrix(name, strength, sign, width)
        return _pixels(cv2.warpAffine(image, matrix, (width, height), borderValue=(GREY,) * 3))

    return operation


def _look_up(image: Pixels, table: npt.NDArray[Any]) -> Pixels:
    """Pass an image through ``[256]`` or, channel by channel, ``[256, 3]`` values."""
    values = np.clip(table, 0, 255).astype(np.uint8)
    return _pixels(cv2.LUT(image, values if values.ndim == 1 else values[None]))


def _histograms(image: Pixels) -> npt.NDArray[np.int64]:
    """``[256, 3]``: pixels of each value in each channel."""
    counts = [cv2.calcHist([image], [c], None, [256], [0, 256]).ravel() for c in range(3)]
    return np.stack(counts, axis=1).astype(np.int64)


def _auto_contrast(image: Pixels, strength: float, sign: int) -> Pixels:
    present = _histograms(image) > 0
    low, high = present.argmax(axis=0), 255 - present[::-1].argmax(axis=0)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1.0)
    return _look_up(image, (_RAMP[:, None] - np.where(high > low, low, 0)) * scale)


def _equalize(image: Pixels, strength: float, sign: int) -> Pixels:
    counts = _histograms(image)
    highest = np.take_along_axis(counts, 255 - (counts[::-1] > 0).argmax(axis=0)[None], axis=0)[0]
    step = (counts.sum(axis=0) - highest) // 255
    below = np.cumsum(counts, axis=0) - counts
    table = (step // 2 + below) // np.maximum(step, 1)
    return _look_up(image, np.where(step > 0, table, _RAMP[:, None]))


def _brightness(image: Pixels, strength: float, sign: int) -> Pixels:
    return _look_up(image, _RAMP * enhancement(strength))


def sharpness_kernel(strength: float) -> npt.NDArray[np.float32]:
    """``[3, 3]``: the image less (or plus) its smoothed form, in one filter."""
    factor = enhancement(strength)
    kernel = np.full((3, 3), (1 - factor) / 13, dtype=np.float32)
    kernel[1, 1] = factor + (1 - factor) * 5 / 13
    return kernel


def _sharpness(image: Pixels, strength: float, sign: int) -> Pixels:
    out = _pixels(cv2.filter2D(image, -1, sharpness_kernel(strength)))
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):  # they have no full surrounding
        out[edge] = image[edge]
    return out


def _pixels(image: Any) -> Pixels:
    return np.asarray(image, dtype=np.uint8)


#: name -> (image, strength in [0, 1], sign) -> image
COLOUR: dict[str, _Operation] = {
    "Identity": lambda image, strength, sign: image,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
}
GEOMETRIC: dict[str, _Operation] = {
    name: _move(name) for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
}
OPERATIONS = {**COLOUR, **GEOMETRIC}
_NAMES = (list(COLOUR), list(OPERATIONS))


def draw_operations(
    rng: np.random.Generator, *, count: int, prob: float, geometric: bool
) -> list[Drawn]:
    """What RandAugment does to an image: those of ``count`` drawn operations that are carried out.

    Args:
        rng: the only source of chance.
        count: operations drawn, with replacement (n).
        prob: chance that a drawn operation is carried out.
        geometric: allow operations that move pixels; false where boxes must stay true.
    """
    if not count:
        return []
    names = _NAMES[geometric]
    return [
        (names[int(number * len(names))], 1 if sign < 0.5 else -1)
        for number, fate, sign in rng.random((count, 3)).tolist()
        if fate < prob
    ]


def rand_augment(image: Pixels, drawn: Sequence[Drawn], magnitude: int) -> Pixels:
    """Carry out drawn operations, one after the other, with strength ``magnitude``/10."""
    for name, sign in drawn:
        image = OPERATIONS[name](image, magnitude / 10, sign)
    return image
