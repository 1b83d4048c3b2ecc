"""Rows as a page shows them: which ones, what of them, and their pictures made small."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from xvlm_data.images.decode import ImageError, Limits, load_row_image
from xvlm_data.inspect.concepts import flatten_concepts, spread
from xvlm_data.inspect.suspicious import find
from xvlm_data.manifest import Manifest

#: What a page shows of one row at most; it says how much it leaves out.
MAX_CONCEPTS, MAX_TEXT, MAX_ATTRIBUTES = 200, 600, 20

#: Columns that a page shows, besides the image.
SHOWN = ("id", "source", "split", "width", "height", "caption", "concepts")

#: Sides of small pictures, from the best to the smallest, and the quality of their WebP.
SIDES = (512, 384, 288, 208)
QUALITY = 76

#: Row groups are read as a whole, so rows of a gallery come from so many and no more.
_GROUPS = 32
_IMAGE_BATCH = 64
_LIMITS = Limits()


def choose_rows(manifest: Manifest, number: int) -> list[int]:
    """At most ``number`` rows, spread evenly over at most ``_GROUPS`` evenly spread row groups."""
    sizes = [size for shard in manifest.shards for size in shard.row_groups]
    starts = np.cumsum([0, *sizes])
    chosen = spread(len(sizes), _GROUPS)
    total = sum(sizes[group] for group in chosen)
    rows: list[int] = []
    before = 0
    places = spread(total, number)
    for group in chosen:
        here = [place - before for place in places if before <= place < before + sizes[group]]
        rows += [int(starts[group]) + place for place in here]
        before += sizes[group]
    return rows


def read_tables(
    manifest: Manifest, rows: Iterable[int], columns: Sequence[str] | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """(number, one-row table) of rows in ascending order, in bounded memory.

    Raises:
        ManifestError: a file is damaged.
    """
    wanted = sorted(set(rows))
    first = 0
    for number, shard in enumerate(manifest.shards):
        for group, size in enumerate(shard.row_groups):
            here = [row for row in wanted if first <= row < first + size]
            if here:
                groups = [[group] if i == number else [] for i in range(len(manifest.shards))]
                start = first
                for batch in manifest.batches(columns, _IMAGE_BATCH, groups):
                    while here and here[0] < start + batch.num_rows:
                        row = here.pop(0)
                        yield row, pa.Table.from_batches([batch.slice(row - start, 1)])
                    if not here:
                        break
                    start += batch.num_rows
            first += size


def describe(row: int, table: pa.Table) -> dict[str, Any]:
    """A row for a page: plain JSON values, cut where they are beyond all measure.

    ``concepts`` are lists [granularity, box or null, text, attributes, kinds of suspicion].
    """
    record = table.select(SHOWN).to_pylist()[0]
    flags = _flags(table)
    given = record["concepts"] or []
    concepts = []
    for i in spread(len(given), MAX_CONCEPTS):
        concept = given[i] or {}
        box = concept.get("box")
        usable = box if box and len(box) == 4 and all(map(_finite, box)) else None
        attributes = [_cut(a) for a in concept.get("attributes") or [] if a]
        concepts.append(
            [
                concept.get("granularity") or "",
                usable and [round(float(side), 5) for side in usable],
                _cut(concept.get("text")),
                attributes[:MAX_ATTRIBUTES],
                flags[i],
            ]
        )
    return {
        "row": row,
        "id": _cut(record["id"]),
        "source": _cut(record["source"]),
        "split": _cut(record["split"]),
        "width": record["width"],
        "height": record["height"],
        "caption": None if record["caption"] is None else _cut(record["caption"]),
        "concepts": concepts,
        "hidden": len(given) - len(concepts),
    }


def _flags(table: pa.Table) -> list[list[str]]:
    concepts = flatten_concepts(table.combine_chunks().to_batches()[0])
    flags: list[list[str]] = [[] for _ in range(len(concepts.row))]
    for kind, mask in find(concepts).items():
        for i in np.flatnonzero(mask).tolist():
            flags[i].append(kind)
    return flags


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _cut(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\N{HORIZONTAL ELLIPSIS}"


def small_picture(image: Image.Image, side: int) -> bytes:
    """A picture as WebP whose longest side is at most ``side``."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    buffer = io.BytesIO()
    small.info = {}
    small.save(buffer, "WEBP", quality=QUALITY, method=2)
    return buffer.getvalue()


def load_picture(table: pa.Table) -> Image.Image | str:
    """The image of a one-row table, or in words why there is none."""
    cell = table["image"][0].as_py() or {}
    try:
        return load_row_image(
            cell, table["width"][0].as_py(), table["height"][0].as_py(), limits=_LIMITS
        )
    except ImageError as error:
        return error.what


@dataclass
class _Shown:
    row: dict[str, Any]
    picture: Image.Image | None


def gallery(
    manifest: Manifest,
    rows: Sequence[int],
    budget: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Rows with their pictures as ``data:`` URLs, in ascending order.

    Args:
        manifest: an opened manifest.
        rows: their numbers.
        budget: bytes that all pictures together may take; they are made smaller to fit, and what
            does not fit even so has none.
        advance: told each row, for a progress bar.
        advance: told each row, for a progress bar.

    Returns:
        As :func:`describe`, with ``image`` (a ``data:`` URL or null) and ``problem`` (why not).
    """
    shown: list[_Shown] = []
    with ThreadPoolExecutor(2) as pool:
        for row, table in read_tables(manifest, rows):
            advance(1)
            picture = load_picture(table)
            record = describe(row, table) | {"image": None, "problem": None}
            if isinstance(picture, str):
                record["problem"] = _cut(picture)
                shown.append(_Shown(record, None))
                continue
            # Kept no larger than they are ever shown: originals of a whole gallery are gigabytes.
            picture.thumbnail((SIDES[0], SIDES[0]), Image.Resampling.LANCZOS, reducing_gap=3)
            shown.append(_Shown(record, picture))
        have = [one for one in shown if one.picture is not None]
        for side in SIDES:
            encoded = list(pool.map(lambda one: _data_url(one.picture, side), have))  # noqa: B023
            if sum(map(len, encoded)) <= budget:
                break
    spent = 0
    for one, url in zip(have, encoded if have else [], strict=True):
        spent += len(url)
        if spent <= budget:
            one.row["image"] = url
        else:
            one.row["problem"] = "no room for the picture in this page; give fewer --pictures"
    return [one.row for one in shown]


def _data_url(picture: Image.Image | None, side: int) -> str:
    assert picture is not None
    return "data:image/webp;base64," + base64.b64encode(small_picture(picture, side)).decode()
