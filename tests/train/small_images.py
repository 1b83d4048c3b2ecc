"""Small images that tests transform."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from xvlm_train.data.augment import (
    Pixels,
)


def with_box(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A black image with a white rectangle; corners as (x0, y0, x1, y1), the last exclusive."""
    image = Image.new("RGB", (width, height))
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    return image


def box_in(image: Image.Image, threshold: float = 0.5) -> tuple[float, float, float, float]:
    """Corners of what is white in an image."""
    white = np.asarray(image.convert("L"), dtype=np.float64) / 255
    columns, rows = white.max(axis=0), white.max(axis=1)
    x0, x1 = np.flatnonzero(columns >= threshold)[[0, -1]]
    y0, y1 = np.flatnonzero(rows >= threshold)[[0, -1]]
    return float(x0), float(y0), float(x1 + 1), float(y1 + 1)


def stored(image: Image.Image, kind: str) -> dict[str, object]:
    """The ``image`` cell of a row; JPEG without colour subsampling, so that edges stay sharp."""
    buffer = io.BytesIO()
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def photograph(width: int = 320, height: int = 240) -> Image.Image:
    """Smooth, with some texture and an edge."""
    rng = np.random.default_rng(7)
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).astype(np.int64) + rng.integers(-8, 9, (height, width, 1))
    pixels[:, width // 3] = 255
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def noise(side: int = 64) -> Pixels:
    """Of little contrast, so that every operation but Identity changes it."""
    return np.random.default_rng(0).integers(40, 140, (side, side, 3), dtype=np.uint8)
