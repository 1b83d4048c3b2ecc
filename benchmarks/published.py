"""The published image pipeline, written anew after its description: what a researcher runs today.

Pillow decodes the whole image; a random crop and bicubic resize by Pillow; RandAugment(2, 7) on
NumPy arrays with OpenCV; then float conversion and normalisation, image by image, on the CPU.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision import transforms

from xvlm_train.data.transforms import CLIP_MEAN, CLIP_STD, Corners, crop_around

_Pixels = npt.NDArray[np.uint8]
_FILL = (128, 128, 128)


def _per_channel(image: _Pixels, table_of: Callable[[_Pixels], npt.NDArray[Any]]) -> _Pixels:
    channels = [table_of(c)[c] for c in (np.asarray(c, dtype=np.uint8) for c in cv2.split(image))]
    return np.asarray(cv2.merge(channels))


def _stretch(channel: _Pixels) -> npt.NDArray[Any]:
    low, high = int(channel.min()), int(channel.max())
    if high <= low:
        return np.arange(256, dtype=np.uint8)
    return ((np.arange(256) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)


def _equal(channel: _Pixels) -> npt.NDArray[Any]:
    counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel()
    step = counts[counts != 0][:-1].sum() // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    below = np.concatenate([[step // 2], counts[:-1]])
    return (np.cumsum(below) // step).clip(0, 255).astype(np.uint8)


def _brightness(image: _Pixels, factor: float) -> _Pixels:
    table = (np.arange(256, dtype=np.float32) * factor).clip(0, 255).astype(np.uint8)
    return np.asarray(table[image])


def _sharpness(image: _Pixels, factor: float) -> _Pixels:
    kernel = np.ones((3, 3), dtype=np.float32)
    kernel[1, 1] = 5
    smooth = cv2.filter2D(image, -1, kernel / 13).astype(np.float32)[1:-1, 1:-1]
    out = image.astype(np.float32)
    out[1:-1, 1:-1] = smooth + factor * (out[1:-1, 1:-1] - smooth)
    return out.clip(0, 255).astype(np.uint8)


def _affine(image: _Pixels, matrix: Any) -> _Pixels:
    size = (image.shape[1], image.shape[0])
    moved = cv2.warpAffine(image, np.asarray(matrix, dtype=np.float32), size, borderValue=_FILL)
    return np.asarray(moved, dtype=np.uint8)


_COLOUR: dict[str, Callable[[_Pixels, float], _Pixels]] = {
    "Identity": lambda image, sign: image,
    "AutoContrast": lambda image, sign: _per_channel(image, _stretch),
    "Equalize": lambda image, sign: _per_channel(image, _equal),
    "Brightness": lambda image, sign: _brightness(image, 0.7 * 1.8 + 0.1),
    "Sharpness": lambda image, sign: _sharpness(image, 0.7 * 1.8 + 0.1),
}
_ALL = {
    **_COLOUR,
    "ShearX": lambda image, sign: _affine(image, [[1, 0.21 * sign, 0], [0, 1, 0]]),
    "ShearY": lambda image, sign: _affine(image, [[1, 0, 0], [0.21 * sign, 1, 0]]),
    "TranslateX": lambda image, sign: _affine(image, [[1, 0, -7 * sign], [0, 1, 0]]),
    "TranslateY": lambda image, sign: _affine(image, [[1, 0, 0], [0, 1, -7 * sign]]),
    "Rotate": lambda image, sign: _affine(
        image,
        cv2.getRotationMatrix2D((image.shape[1] / 2, image.shape[0] / 2), 21 * sign, 1),
    ),
}


def _augment(image: Image.Image, geometric: bool, rng: np.random.Generator) -> _Pixels:
    pixels = np.array(image)
    operations = _ALL if geometric else _COLOUR
    for name in rng.choice(list(operations), 2):
        if rng.random() > 0.5:
            continue
        pixels = operations[name](pixels, 1.0 if rng.random() > 0.5 else -1.0)
    return pixels


_to_float = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize(list(CLIP_MEAN), list(CLIP_STD))]
)
_crop = transforms.RandomResizedCrop(
    224, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
)
_flip = transforms.RandomHorizontalFlip()


def opened(data: bytes) -> Image.Image:
    """Decode."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def image_text(image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
    """A random resized crop of the image, ``[3, 224, 224]`` float32."""
    cropped = _flip(_crop(image))
    return torch.as_tensor(_to_float(_augment(cropped, geometric=True, rng=rng)))


def multi_grained(image: Image.Image, box: Corners, rng: np.random.Generator) -> torch.Tensor:
    """A random crop around a box (corners, pixels), ``[3, 224, 224]`` float32."""
    crop = crop_around(rng.random(4).tolist(), box, *image.size)
    cropped = _flip(image.crop(crop)).resize((224, 224), Image.Resampling.BICUBIC)
    return torch.as_tensor(_to_float(_augment(cropped, geometric=False, rng=rng)))
