"""Visual Genome's JSON: its elements as types, and what is saved of those that are spoilt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import msgspec

from xvlm_data.raw.json_arrays import Int64, decode_one
from xvlm_data.records import ABSENT, Sink


class Image(msgspec.Struct, gc=False):
    """An element of ``image_data.json``."""

    width: int
    height: int
    url: str
    image_id: Int64 | None = None
    id: Int64 | None = None
    coco_id: Int64 | None = None
    flickr_id: Int64 | None = None


class Region(msgspec.Struct, gc=False):
    """A phrase and its box."""

    x: float
    y: float
    width: float
    height: float
    phrase: str
    region_id: Int64 | None = ABSENT
    id: Int64 | None = ABSENT


class Object(msgspec.Struct, gc=False):
    """An element of ``objects`` or of ``attributes``; the latter repeats box and names."""

    x: float
    y: float
    w: float
    h: float
    names: tuple[str, ...] = ()
    object_names: tuple[str, ...] = ()
    attributes: list[str] | None = None
    object_id: Int64 | None = ABSENT
    id: Int64 | None = ABSENT
    merged_object_ids: tuple[Int64, ...] = ()


class Described(msgspec.Struct, gc=False):
    """What an element of ``attributes`` adds to an object that ``objects`` has."""

    attributes: list[str] | None = None
    object_id: Int64 | None = ABSENT
    id: Int64 | None = ABSENT


class Owner(msgspec.Struct, gc=False):
    """An image that owns a list of items, by either of the names that releases use."""

    image_id: Int64 | None = ABSENT
    id: Int64 | None = ABSENT


class Regions(Owner, gc=False):
    """An element of ``region_descriptions.json``."""

    regions: list[Region] = []


class Objects(Owner, gc=False):
    """An element of ``objects.json``."""

    objects: list[Object] = []


class Attributes(Owner, gc=False):
    """An element of ``attributes.json``, where it is all there is of objects."""

    attributes: list[Object] = []


class Descriptions(Owner, gc=False):
    """An element of ``attributes.json`` beside ``objects.json``."""

    attributes: list[Described] = []


class _Loose(Owner, gc=False):
    regions: list[Any] = []
    objects: list[Any] = []
    attributes: list[Any] = []


class _Undecoded(Owner, gc=False):
    regions: list[msgspec.Raw] = []
    objects: list[msgspec.Raw] = []
    attributes: list[msgspec.Raw] = []


def either(first: int | None, second: int | None) -> int:
    """The number that is there, of two names for it; ABSENT where neither is."""
    if first is not None and first != ABSENT:
        return first
    return ABSENT if second is None else second


class Salvaged(NamedTuple):
    """An image some of whose items are malformed."""

    element: int
    image: int
    items: list[Any]
    """Empty ones where they are malformed."""
    problems: dict[int, str]
    """What is wrong with these, by their places."""


def salvage(
    malformed: Sequence[tuple[int, str, bytes]],
    key: str,
    item: Any,
    kind: int,
    part: int,
    sink: Sink,
) -> list[Salvaged]:
    """Images of which an item is malformed; those that are no images at all are recorded."""
    rows = []
    for index, why, text in malformed:
        try:
            owner, convert = _loosely(text, item)
        except (ValueError, RecursionError):
            sink.malformed(kind, part, [(index, why, text)])
            continue
        one = Salvaged(index, either(owner.image_id, owner.id), [], {})
        for sub, value in enumerate(getattr(owner, key)):
            try:
                one.items.append(convert(value))
            except ValueError as error:
                one.items.append(_EMPTY[item])
                one.problems[sub] = str(error)
        rows.append(one)
    return rows


def _loosely(text: bytes, item: Any) -> tuple[Any, Callable[[Any], Any]]:
    """An image whose items are not decoded yet, and what decodes one.

    Raises:
        ValueError: it is no JSON, or not even the image is right.
    """
    try:
        return _UNDECODED.decode(text), _decoder(item).decode
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError):  # NaN, say
        return decode_one(text, _Loose), partial(msgspec.convert, type=item)


_NAN = float("nan")
_EMPTY: dict[Any, Any] = {
    Region: Region(_NAN, _NAN, _NAN, _NAN, ""),
    Object: Object(_NAN, _NAN, _NAN, _NAN),
    Described: Described(),
}
_UNDECODED = msgspec.json.Decoder(_Undecoded)


@cache
def _decoder(item: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(item)
