"""RandAugment over the operations the paper keeps (spec: Inputs).

Strengths follow the ALBEF family's convention for a magnitude m out of 10: brightness and
sharpness by 1.8 m/10 + 0.1, shear by 0.3 m/10, rotation by 30 m/10 degrees, and translation by
10 m/10 pixels of a 224-pixel image (scaled with the image); geometric ones with a random sign,
grey outside the picture. A drawn operation is carried out with probability ``prob``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_GREY = (128, 128, 128)
_Operation = Callable[[Image.Image, float, float], Image.Image]


def _affine(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=_GREY
    )


def _enhance(kind: type[ImageEnhance.Brightness] | type[ImageEnhance.Sharpness]) -> _Operation:
    return lambda image, strength, sign: kind(image).enhance(1.8 * strength + 0.1)


def _shift(strength: float, sign: float, side: int) -> float:
    return sign * strength * 10 / 224 * side


#: name -> (image, strength in [0, 1], sign) -> image
COLOUR: dict[str, _Operation] = {
    "Identity": lambda image, strength, sign: image,
    "AutoContrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, strength, sign: ImageOps.equalize(image),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
}
GEOMETRIC: dict[str, _Operation] = {
    "ShearX": lambda image, strength, sign: _affine(image, (1, sign * 0.3 * strength, 0, 0, 1, 0)),
    "ShearY": lambda image, strength, sign: _affine(image, (1, 0, 0, sign * 0.3 * strength, 1, 0)),
    "TranslateX": lambda image, strength, sign: _affine(
        image, (1, 0, _shift(strength, sign, image.width), 0, 1, 0)
    ),
    "TranslateY": lambda image, strength, sign: _affine(
        image, (1, 0, 0, 0, 1, _shift(strength, sign, image.height))
    ),
    "Rotate": lambda image, strength, sign: image.rotate(
        sign * 30 * strength, Image.Resampling.BILINEAR, fillcolor=_GREY
    ),
}
_ALL = {**COLOUR, **GEOMETRIC}


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    count: int,
    magnitude: int,
    prob: float,
    geometric: bool,
) -> Image.Image:
    """Apply ``count`` random operations of strength ``magnitude``/10 to an RGB image.

    Args:
        image: RGB; keeps its size.
        rng: the only source of chance.
        count: operations drawn, with replacement (n).
        magnitude: 0 to 10 (m).
        prob: chance that a drawn operation is carried out.
        geometric: allow operations that move pixels; false where boxes must stay true.
    """
    names = list(_ALL if geometric else COLOUR)
    for _ in range(count):
        name = names[int(rng.integers(len(names)))]
        sign = 1.0 if rng.random() < 0.5 else -1.0
        if rng.random() < prob:
            image = _ALL[name](image, magnitude / 10, sign)
    return image
