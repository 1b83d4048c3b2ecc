"""The Google release of RefCOCOg: one JSON object of objects, keyed by id, with everything in it.

File: ``google_refexp_{train,val}_201511_coco_aligned_catg.json``. It is read at once: the larger of
the two is some 100 MB, and records are decoded one by one, so that a wrong one costs only itself.
A text is ``raw``, what was typed; the release has no cleaned form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
import numpy as np

from xvlm_data.errors import UserError
from xvlm_data.raw.files import open_raw
from xvlm_data.raw.json_arrays import Int64
from xvlm_data.reading import Records
from xvlm_data.records import pixel_sides
from xvlm_data.sources.base import Request
from xvlm_data.sources.image_paths import TRAIN2014, coco_paths
from xvlm_data.sources.references import Reference, Sentence, write_references, write_sentences
from xvlm_data.storage import AnyPath

T = TypeVar("T")

_MAX_FILE = 2 << 30
_CHUNK = 16 << 20


class _Release(msgspec.Struct):
    images: dict[str, msgspec.Raw]
    annotations: dict[str, msgspec.Raw]
    refexps: dict[str, msgspec.Raw]
    categories: list[msgspec.Raw] = []


class _Image(msgspec.Struct):
    width: int
    height: int


class _Object(msgspec.Struct):
    image_id: Int64
    bbox: tuple[float, float, float, float]
    refexp_ids: list[Int64]
    category_id: int | None = None


class _Expression(msgspec.Struct):
    raw: str


class _Category(msgspec.Struct):
    id: int
    name: str


def read_release(path: AnyPath, images_at: AnyPath, request: Request, records: Records) -> None:
    """Write images, expressions and the objects that they refer to.

    Args:
        path: the release.
        images_at: the folder that COCO's images lie under.
        request: progress, files read.
        records: where to.

    Raises:
        UserError: missing, no JSON, or of another shape.
    """
    with request.reading(path) as advance:
        release = _decode(path, advance)
    images, bad_images = _convert(release.images, _Image)
    _write_images(images, bad_images, records.part(path, "images[{index}]"), images_at, records)
    records.images_complete()
    references, expressions_of = _references(release)
    part = records.part(path, "annotations[{index}]")
    expressions_part = records.part(path, "refexps[{index}]")
    write_references(references, part, expressions_part, records)
    loose = Reference(
        0,
        sentences=expressions_of,
        problem="unknown_annotation",
        detail="no annotation has this expression",
    )
    write_sentences([loose], expressions_part, records)


def _references(release: _Release) -> tuple[list[Reference], list[Sentence]]:
    """The objects with their expressions, and the expressions that no object has."""
    categories = [_one(raw, _Category) for raw in release.categories]
    names = {c.id: c.name for c in categories if isinstance(c, _Category)}
    expressions, wrong = _convert(release.refexps, _Expression)

    def sentence(number: int) -> Sentence:
        if number in expressions:
            text = expressions[number].raw
            return Sentence(number, None, number, text, text)
        return Sentence(number, None, wrong=wrong.get(number, "no such expression"))

    objects, malformed = _convert(release.annotations, _Object)
    references = [
        Reference(
            number,
            image_id=item.image_id,
            ann_id=number,
            category=None if item.category_id is None else names.get(item.category_id),
            bbox=item.bbox,
            sentences=[sentence(expression) for expression in item.refexp_ids],
        )
        for number, item in objects.items()
    ]
    references += [
        Reference(number, problem="malformed", detail=why) for number, why in malformed.items()
    ]
    claimed = {s.index for reference in references for s in reference.sentences}
    return references, [sentence(n) for n in [*expressions, *wrong] if n not in claimed]


def _write_images(
    images: dict[int, _Image], malformed: dict[int, str], part: int, root: AnyPath, records: Records
) -> None:
    records.malformed_images(part, [(number, why, b"") for number, why in malformed.items()])
    if images:
        ids = np.array(list(images), np.int64)
        records.images(
            {
                "key": ids,
                "id": [f"refcocog/{number}" for number in images],
                "paths": coco_paths(ids, root, TRAIN2014),
                "width": pixel_sides([image.width for image in images.values()]),
                "height": pixel_sides([image.height for image in images.values()]),
                "part": np.full(len(ids), part, np.int16),
                "index": ids,
            }
        )


def _decode(path: AnyPath, advance: Callable[[int], None]) -> _Release:
    data = bytearray()
    with open_raw(path) as file:
        while chunk := file.read(_CHUNK):
            data += chunk
            advance(len(chunk))
            if len(data) > _MAX_FILE:
                raise UserError(f"{path}: more than 2 GiB", "is it the right file?")
    try:
        return msgspec.json.decode(data, type=_Release)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{path}: not the Google release of RefCOCOg ({error})", "download it again"
        ) from error


def _one(raw: msgspec.Raw, kind: type[T]) -> T | str:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)[:300]


def _convert(items: dict[str, msgspec.Raw], kind: type[T]) -> tuple[dict[int, T], dict[int, str]]:
    """(values, what is wrong) by id."""
    values: dict[int, T] = {}
    wrong: dict[int, str] = {}
    for place, (key, raw) in enumerate(items.items()):
        value = _one(raw, kind)
        if not (key.isascii() and key.isdigit() and len(key) < 19):
            wrong[-1 - place] = f"{key[:40]!r} is no id"
        elif isinstance(value, str):
            wrong[int(key)] = value
        else:
            values[int(key)] = value
    return values, wrong
