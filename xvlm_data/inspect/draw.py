"""Drawing boxes and texts on images, so that people see what a manifest says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from xvlm_data.boxes import cxcywh_to_xyxy
from xvlm_data.errors import UserError
from xvlm_data.images.decode import ImageError, load_row_image
from xvlm_data.inspect.concepts import locate, spread
from xvlm_data.manifest import Manifest
from xvlm_data.schema import IMAGE, OBJECT, REGION

COLOURS = {REGION: "#e6550d", OBJECT: "#1f77b4"}
OTHER_COLOUR = "#7f7f7f"

#: Pictures are scaled to a longest side within these, in pixels, so that labels can be read.
LEGIBLE_SIDES = (640, 2048)
LABEL_LENGTH = 40
STRIP_LINES = 12
ELLIPSIS = "..."  # Pillow's own font has few signs beyond Latin's
BOXES_SHOWN = 24
CAPTIONS_SHOWN = 5

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]


def legible(image: Image.Image) -> Image.Image:
    """``image`` scaled, keeping its shape, so that its longest side is within LEGIBLE_SIDES."""
    longest = max(image.size)
    factor = float(np.clip(longest, *LEGIBLE_SIDES)) / longest
    if factor == 1:
        return image
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def draw_boxes(
    image: Image.Image,
    boxes: npt.ArrayLike,
    labels: Sequence[str],
    colours: Sequence[str],
    dashed: Sequence[bool] | bool = False,
) -> Image.Image:
    """A copy of an image with boxes and their labels on it.

    Args:
        image: any mode; small ones come back enlarged, see :func:`legible`.
        boxes: ``[N, 4]`` (cx, cy, w, h) in [0, 1]; boxes that are not finite are not drawn.
        labels: N texts, each shortened to fit; an empty one draws the box alone.
        colours: N colours, as Pillow names them.
        dashed: whether lines are dashed, for all boxes or for each.
    """
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    broken = [dashed] * len(array) if isinstance(dashed, bool) else list(dashed)
    canvas = legible(image.convert("RGB"))  # convert() always copies
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(max(canvas.size) / 320))
    font = _font(canvas.size)
    corners = cxcywh_to_xyxy(array) * np.array([canvas.width, canvas.height] * 2)
    # Large boxes first: a small one stays visible on top of what holds it.
    order = [i for i in np.argsort(-array[:, 2] * array[:, 3]) if np.isfinite(corners[i]).all()]
    frames = {i: _frame(corners[i], canvas.size) for i in order}
    for i in order:
        _rectangle(draw, frames[i], colours[i], line, broken[i])
    taken: list[Rectangle] = []
    for i in order:
        if labels[i]:
            _label(draw, frames[i], labels[i], colours[i], font, taken)
    return canvas


def draw_concepts(
    image: Image.Image, concepts: Sequence[dict[str, Any]], title: str = ""
) -> Image.Image:
    """A row of a manifest as a picture: boxes on the image, whole-image texts in a strip below.

    Of more than BOXES_SHOWN boxes an even choice is drawn, and the strip tells how many are not.

    Args:
        image: the row's image.
        concepts: as in the manifest: dicts with box, text, attributes and granularity.
        title: first line of the strip, for instance the id.
    """
    boxed = [c for c in concepts if c["granularity"] != IMAGE and c["box"] is not None]
    captions = [c["text"] or "" for c in concepts if c["granularity"] == IMAGE]
    shown = [boxed[i] for i in spread(len(boxed), BOXES_SHOWN)]  # some of each granularity
    picture = draw_boxes(
        image,
        [c["box"] for c in shown],
        [_concept_label(c) for c in shown],
        [COLOURS.get(c["granularity"], OTHER_COLOUR) for c in shown],
    )
    lines = [title] if title else []
    lines += [f"- {text}" for text in captions[:CAPTIONS_SHOWN]]
    hidden = len(boxed) - len(shown), len(captions) - len(captions[:CAPTIONS_SHOWN])
    if any(hidden):
        lines.append(f"not shown: {hidden[0]} boxes, {hidden[1]} captions")
    return _with_strip(picture, lines)


def draw_rows(manifest: Manifest, number: int, out: Path) -> list[Path]:
    """Draw evenly spread rows, always the same ones, as PNG files into a folder.

    Returns:
        The files written, ``<row of the manifest>-<id made safe>.png``.

    Raises:
        UserError: an image is missing or broken, or the folder cannot be written.
        ManifestError: a file of the manifest is damaged.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot make this folder ({error.strerror})", "choose another for --draw"
        ) from error
    rows = spread(len(manifest), number)
    return [
        _draw_row(manifest, row, record, out)
        for row, record in zip(rows, read_rows(manifest, rows), strict=True)
    ]


def _draw_row(manifest: Manifest, row: int, record: dict[str, Any], out: Path) -> Path:
    try:
        image = load_row_image(record["image"] or {}, record["width"], record["height"])
    except ImageError as error:
        url, place = locate(manifest, row)
        raise UserError(
            f"{url} row {place} ({record['id']}): {error.what}",
            error.fix or "give the folder of the images with --image-root, or run --validate",
        ) from error
    title = f"{record['id']}  {image.width} x {image.height}"
    path = out / f"{row:08d}-{safe_name(record['id'] or '')}.png"
    partial = path.with_suffix(".png.part")
    try:
        draw_concepts(image, record["concepts"] or [], title).save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot write ({error.strerror or error})", "choose another folder for --draw"
        ) from error
    return path


def read_rows(manifest: Manifest, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rows of a manifest as plain dicts; ``rows`` ascend, so each row group is read once."""
    wanted = list(rows)
    first = 0
    for number, shard in enumerate(manifest.shards):
        for group, size in enumerate(shard.row_groups):
            here = [row - first for row in wanted if first <= row < first + size]
            if here:
                table = manifest.read_row_group(number, group)
                yield from (table.slice(row, 1).to_pylist()[0] for row in here)
            first += size


def safe_name(text: str) -> str:
    """A file name without separators, dots in front, or anything a shell minds."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:80] or "row"


def _concept_label(concept: dict[str, Any]) -> str:
    attributes = concept.get("attributes") or []
    return " ".join([*(a for a in attributes if a), concept["text"] or ""]).strip()


def _font(size: tuple[int, int]) -> Font:
    return ImageFont.load_default(size=max(13, round(max(size) / 48)))


def _frame(corners: npt.NDArray[np.float64], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixel corners within the picture, at least one pixel wide and high."""
    x0, y0 = (int(np.clip(round(corners[i]), 0, size[i] - 1)) for i in (0, 1))
    x1, y1 = (int(np.clip(round(corners[i + 2]) - 1, 0, size[i] - 1)) for i in (0, 1))
    return x0, y0, max(x0, x1), max(y0, y1)


def _rectangle(
    draw: ImageDraw.ImageDraw,
    frame: tuple[int, int, int, int],
    colour: str,
    line: int,
    dashed: bool,
) -> None:
    if not dashed:
        draw.rectangle(frame, outline=colour, width=line)
        return
    x0, y0, x1, y1 = frame
    dash = 4 * line
    for x in range(x0, x1 + 1, 2 * dash):
        for y in (y0, y1 - line + 1):
            draw.rectangle((x, y, min(x + dash, x1), max(y, y + line - 1)), fill=colour)
    for y in range(y0, y1 + 1, 2 * dash):
        for x in (x0, x1 - line + 1):
            draw.rectangle((x, y, max(x, x + line - 1), min(y + dash, y1)), fill=colour)


def _label(
    draw: ImageDraw.ImageDraw,
    frame: tuple[int, int, int, int],
    text: str,
    colour: str,
    font: Font,
    taken: list[Rectangle],
) -> None:
    """Write a label at the first place by its box where no other label lies."""
    text = _printable(text)
    text = (
        text if len(text) <= LABEL_LENGTH else text[: LABEL_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )
    pad = 2
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x0, y0, x1, y1 = frame
    places = [
        (x0, y0 - height),  # above the box
        (x0, y0),
        (x0, y1 + 1),  # below it
        (x0, y1 - height + 1),
        (x1 - width + 1, y0 - height),
        (x1 - width + 1, y0),
        (x1 - width + 1, y1 + 1),
        *((x0, y) for y in range(y0, y1, round(height))),
    ]
    limits = draw.im.size
    fitted = [_inside(x, y, width, height, limits) for x, y in places]
    place = next((r for r in fitted if not any(_overlap(r, other) for other in taken)), fitted[0])
    taken.append(place)
    draw.rectangle(place, fill=colour)
    draw.text((place[0] + pad - left, place[1] + pad - top), text, fill="white", font=font)


def _inside(x: float, y: float, width: float, height: float, size: tuple[int, int]) -> Rectangle:
    x = max(0, min(x, size[0] - width))
    y = max(0, min(y, size[1] - height))
    return x, y, x + width - 1, y + height - 1


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _with_strip(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The picture above a strip of text, wrapped to its width."""
    font = _font(picture.size)
    margin = 6
    width = max(picture.width, LEGIBLE_SIDES[0] // 2)
    wrapped = [
        piece for line in lines for piece in _wrap(_printable(line), font, width - 2 * margin)
    ]
    if not wrapped:
        return picture
    box = font.getbbox("Ag|")
    step = round((box[3] - box[1]) * 1.4)
    strip = Image.new("RGB", (width, picture.height + step * len(wrapped) + 2 * margin), "white")
    strip.paste(picture, (0, 0))
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(wrapped):
        draw.text((margin, picture.height + margin + number * step), line, fill="black", font=font)
    return strip


def _wrap(text: str, font: Font, width: float) -> list[str]:
    """Lines no wider than ``width`` pixels, at most STRIP_LINES of them."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines += _cut(word[:1000], font, width)
        if len(lines) > STRIP_LINES:
            return [*lines[:STRIP_LINES], ELLIPSIS]
    return [line for line in lines if line]


def _cut(word: str, font: Font, width: float) -> list[str]:
    """A word in pieces no wider than ``width``; most words are one piece."""
    pieces = [""]
    for char in word:
        if pieces[-1] and font.getlength(pieces[-1] + char) > width:
            pieces.append("")
        pieces[-1] += char
    return pieces


def _printable(text: str) -> str:
    """Control characters and line breaks as spaces: a label is one line."""
    return "".join(char if char.isprintable() else " " for char in text)
