"""Drawing a scene: its outlines as polygons, its pixels, its JPEG."""

from __future__ import annotations

import colorsys
import math
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from xvlm_data.sample.scene import Box, Scene, make_scene

if TYPE_CHECKING:
    from xvlm_data.sample.release import Picture

Points = list[tuple[float, float]]
Pixels = npt.NDArray[np.float32]

_RGB = {
    "red": (215, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (250, 225, 40),
    "green": (25, 150, 50),
    "blue": (35, 75, 225),
    "purple": (140, 40, 175),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}
_SUPERSAMPLING = 4
_QUALITY = 90


@cache
def _unit_outlines(shape: str) -> tuple[tuple[tuple[float, float], ...], ...]:
    """The polygons of a shape, scaled so that their common box is the unit square."""

    def arc(start: float, stop: float, radius: float, steps: int) -> Points:
        angles = [start + (stop - start) * i / steps for i in range(steps + 1)]
        return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]

    half = math.pi / 2
    if shape == "circle":
        polygons = [arc(0, 2 * math.pi, 1, 32)[:-1]]
    elif shape == "square":
        polygons = [[(-1, -1), (1, -1), (1, 1), (-1, 1)]]
    elif shape == "triangle":
        polygons = [[(0, -1), (1, 1), (-1, 1)]]
    elif shape == "diamond":
        polygons = [[(0, -1), (1, 0), (0, 1), (-1, 0)]]
    elif shape == "star":
        corners = [(1 if i % 2 == 0 else 0.45, -half + i * math.pi / 5) for i in range(10)]
        polygons = [[(r * math.cos(a), r * math.sin(a)) for r, a in corners]]
    elif shape == "ring":
        # Polygons of COCO have no holes: a ring is two halves.
        polygons = [
            arc(start, start + math.pi, 1, 16) + arc(start + math.pi, start, 0.55, 16)
            for start in (half, -half)
        ]
    elif shape == "cross":
        b = 0.34  # half the width of an arm
        quarter = [(-b, -1.0), (b, -1.0), (b, -b)]
        turned = [(1.0, -b), (1.0, b), (b, b)]
        polygons = [[*quarter, *turned, *((-x, -y) for x, y in (*quarter, *turned))]]
    elif shape == "heart":
        turns = [2 * math.pi * i / 40 for i in range(40)]
        polygons = [
            [
                (
                    16 * math.sin(t) ** 3,
                    -13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t),
                )
                for t in turns
            ]
        ]
    else:
        raise ValueError(f"no such shape: {shape}")
    xs, ys = zip(*(point for polygon in polygons for point in polygon), strict=True)
    x0, y0, w, h = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    return tuple(tuple(((x - x0) / w, (y - y0) / h) for x, y in polygon) for polygon in polygons)


def outlines(shape: str, box: Box) -> list[Points]:
    """The polygons that fill ``box`` with ``shape``, in pixels; they touch all its four sides."""
    return [
        [(box.x + u * box.w, box.y + v * box.h) for u, v in polygon]
        for polygon in _unit_outlines(shape)
    ]


def binary_mask(
    shape: str, boxes: tuple[Box, ...], width: int, height: int
) -> npt.NDArray[np.bool_]:
    """``[height, width]``: the pixels that shapes at these boxes cover."""
    mask = Image.new("1", (width, height))
    draw = ImageDraw.Draw(mask)
    for box in boxes:
        for polygon in outlines(shape, box):
            draw.polygon(polygon, fill=1)
    return np.asarray(mask)


def render(scene: Scene) -> Image.Image:
    """The scene as RGB pixels; the same for the same scene, always."""
    rng = np.random.Generator(np.random.PCG64(scene.key.random("texture").getrandbits(64)))
    pixels = _background(rng, scene)
    if scene.crowd is not None:
        for member in scene.crowd.members:
            _paint(pixels, rng, scene.crowd.shape, scene.crowd.colour, False, member)
    for thing in scene.things:
        _paint(pixels, rng, thing.shape, thing.colour, thing.striped, thing.box)
    pixels += rng.integers(-7, 8, pixels.shape, dtype=np.int8)  # grain over everything
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_picture(picture: Picture) -> None:
    """Renders one picture into its file (a task of the worker pool)."""
    buffer = BytesIO()
    render(make_scene(picture.key)).save(buffer, format="JPEG", quality=_QUALITY)
    picture.path.write_bytes(buffer.getvalue())


def _background(rng: np.random.Generator, scene: Scene) -> Pixels:
    """``[height, width, 3]``: two muted tints in the pattern that the scene names."""
    width, height = scene.width, scene.height
    hue, saturation = rng.random(), rng.uniform(0.05, 0.22)
    value = rng.uniform(0.42, 0.62)
    first, second = (
        np.array(colorsys.hsv_to_rgb(hue, saturation, v), np.float32) * 255
        for v in (value, value + rng.uniform(0.13, 0.2))
    )
    angle = rng.uniform(0, math.pi)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    along = x * math.cos(angle) + y * math.sin(angle)
    if scene.background == "striped":
        blend = (along / rng.uniform(8, 14) % 2 < 1).astype(np.float32)
    elif scene.background == "checkered":
        cell = rng.uniform(10, 18)
        blend = ((x // cell + y // cell) % 2).astype(np.float32)
    elif scene.background == "speckled":
        dots = Image.fromarray(
            (rng.random((height // 4 + 1, width // 4 + 1)) < 0.3).astype(np.uint8)
        )
        blend = np.asarray(dots.resize((width, height), Image.Resampling.NEAREST), np.float32)
    else:
        blend = (along - along.min()) / (along.max() - along.min())
    return first + blend[..., None] * (second - first)


def _paint(
    pixels: Pixels, rng: np.random.Generator, shape: str, colour: str, striped: bool, box: Box
) -> None:
    """Draws one shape with smooth edges into ``pixels``."""
    height, width = pixels.shape[:2]
    x0, y0 = max(math.floor(box.x), 0), max(math.floor(box.y), 0)
    x1, y1 = min(math.ceil(box.x + box.w), width), min(math.ceil(box.y + box.h), height)
    k = _SUPERSAMPLING
    canvas = Image.new("L", ((x1 - x0) * k, (y1 - y0) * k))
    draw = ImageDraw.Draw(canvas)
    for polygon in outlines(shape, box):
        # Pillow's pixel (0, 0) is centred on the point (0, 0), ours on (0.5, 0.5).
        draw.polygon([((x - x0) * k - 0.5, (y - y0) * k - 0.5) for x, y in polygon], fill=255)
    alpha = np.asarray(canvas.reduce(k), np.float32)[..., None] / 255
    rgb = np.array(_RGB[colour], np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
    fill: Pixels = rgb[None, None]
    if striped:
        shade = rgb * 0.45 if colour != "black" else rgb + 110
        columns = np.arange(x1 - x0) // max(3, round(box.w / 9)) % 2
        fill = np.where(columns[None, :, None] == 0, rgb, shade).astype(np.float32)
    patch = pixels[y0:y1, x0:x1]
    patch += alpha * (fill - patch)
