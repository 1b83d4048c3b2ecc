"""Crops, flips and resizes that move boxes exactly as they move pixels.

Boxes are corners (x0, y0, x1, y1) in pixels of the image at hand until they become the model's
(cx, cy, w, h) in [0, 1]. An image has few of them in a batch, so they are plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from xvlm_data.boxes import cxcywh_to_xyxy

Corners: TypeAlias = tuple[float, float, float, float]
#: A rectangle of whole pixels: x0, y0, x1, y1, the last two exclusive.
Crop = tuple[int, int, int, int]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

#: A concept stays with a crop that holds more than this share of its box.
MIN_VISIBLE = 0.5
#: Slack for boxes that passed through float32, in patches (0.003 pixels of a 32-pixel patch).
_PATCH_SLACK = 1e-4


def random_resized_crop(
    rng: np.random.Generator, width: int, height: int, min_scale: float
) -> Crop:
    """A random rectangle of ``min_scale`` to 1 of the area, sides' ratio 3/4 to 4/3 (log-uniform).

    After ten tries that do not fit: the largest centred rectangle of the nearest allowed ratio.
    """
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        scale, shape, right, down = rng.random(4).tolist()
        area = width * height * (min_scale + scale * (1 - min_scale))
        ratio = low * (high / low) ** shape
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(right * (width - w + 1)), int(down * (height - h + 1))
            return x, y, x + w, y + h
    ratio = min(max(width / height, low), high)
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + max(w, 1), y + max(h, 1)


def crop_around(edges: Sequence[float], box: Corners, width: int, height: int) -> Crop:
    """A rectangle that contains the whole of ``box`` (corners, pixels) in the image.

    Args:
        edges: how far left, top, right and bottom lie between the image's sides and the box's own,
            or the other way round for the last two; random ones in [0, 1) make all equally likely.
        box: inside the image.
        width: of the image, pixels.
        height: of the image, pixels.
    """
    x0, y0 = min(max(math.floor(box[0]), 0), width - 1), min(max(math.floor(box[1]), 0), height - 1)
    x1, y1 = math.ceil(box[2]), math.ceil(box[3])
    x1, y1 = min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)
    left, top, right, bottom = edges
    return (
        int(left * (x0 + 1)),
        int(top * (y0 + 1)),
        x1 + int(right * (width + 1 - x1)),
        y1 + int(bottom * (height + 1 - y1)),
    )


def shows(crop: Corners, box: Corners) -> bool:
    """Whether a crop shows more than 50 % of a box's area; both in the same units."""
    x0, y0, x1, y1 = box
    least = MIN_VISIBLE * (x1 - x0) * (y1 - y0)
    width, height = min(x1, crop[2]) - max(x0, crop[0]), min(y1, crop[3]) - max(y0, crop[1])
    return width > 0 and height > 0 and width * height > least


def to_model_boxes(
    boxes: npt.NDArray[np.float64], crops: npt.NDArray[np.integer], flips: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Boxes of images to those of crops, ``[N, 4]`` (cx, cy, w, h) in [0, 1].

    The resize to the model's square needs no more: it leaves relative boxes as they are.

    Args:
        boxes: ``[N, 4]`` corners, pixels; each is cut to its crop, which shows some of it.
        crops: ``[N, 4]`` corners, pixels.
        flips: ``[N]`` whether the crop is mirrored left to right.
    """
    origins, sides = crops[:, :2], crops[:, 2:] - crops[:, :2]
    low = (np.maximum(boxes[:, :2], origins) - origins) / sides
    high = (np.minimum(boxes[:, 2:], crops[:, 2:]) - origins) / sides
    centres = (low + high) / 2
    centres[:, 0] = np.where(flips, 1 - centres[:, 0], centres[:, 0])
    return np.concatenate([centres, high - low], axis=1, dtype=np.float32)


def to_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """``[3, H, W]`` uint8."""
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """``[..., 3, H, W]`` of 0 to 255 to float32 with CLIP's mean and standard deviation."""
    mean, std = _mean_and_std(pixels.device)
    return pixels.to(torch.float32).sub_(mean).div_(std)


@cache  # made on the host, they would cost each batch a copy
def _mean_and_std(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """``[3, 1, 1]`` each, for pixels of 0 to 255."""
    mean, std = (torch.tensor(v, dtype=torch.float32) * 255 for v in (CLIP_MEAN, CLIP_STD))
    return mean.view(3, 1, 1).to(device), std.view(3, 1, 1).to(device)


def eval_pixels(image: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    """The whole image as ``[3, side, side]`` uint8, resized without regard to its proportions."""
    return to_pixels(image.resize((side, side), Image.Resampling.BICUBIC))


def patch_mask(boxes: npt.NDArray[np.floating], grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which vision tokens belong to each box: v_cls always, and the patches it touches.

    Columns run from ⌊x/P⌋ (at most n-1) to ⌈(x+w)/P⌉ (at least one, at most n), rows alike
    (spec: Encoders). An edge within 1e-4 patches of a grid line counts as on it, because boxes
    are float32 and a box that ends on a line must not reach into the next patch.

    Args:
        boxes: ``[B, 4]`` (cx, cy, w, h) in [0, 1].
        grid: patches per column and per row of the image: (rows, columns).

    Returns:
        ``[B, 1 + rows * columns]`` bool; place 0 is v_cls, then row by row from the top left.
    """
    rows, columns = grid
    corners = cxcywh_to_xyxy(boxes.astype(np.float64)).astype(np.float64)
    across = _touched(corners[:, 0], corners[:, 2], columns)
    down = _touched(corners[:, 1], corners[:, 3], rows)
    inside = (down[:, :, None] & across[:, None, :]).reshape(len(boxes), rows * columns)
    return np.concatenate([np.ones((len(boxes), 1), dtype=bool), inside], axis=1)


def _touched(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], count: int
) -> npt.NDArray[np.bool_]:
    """``[B, count]``: the patches along one axis between ``low`` and ``high`` (in [0, 1])."""
    first = np.floor(low * count + _PATCH_SLACK).clip(0, count - 1)
    last = np.ceil(high * count - _PATCH_SLACK).clip(first + 1, count)
    index = np.arange(count)
    return (index >= first[:, None]) & (index < last[:, None])
