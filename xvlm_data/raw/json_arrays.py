"""Reading the large arrays of a JSON file in one pass and bounded memory.

Annotation releases are one JSON document of up to several GB: an array, or an object of arrays.
The file is read in chunks; a vectorised scan finds the last whole element of a chunk, and the chunk
is decoded in one typed call (``msgspec``), so fields nobody asked for, such as polygons, never
become Python objects. One malformed element is set aside with its position; it never ends the read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Generic, NoReturn, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from xvlm_data.errors import UserError
from xvlm_data.raw.files import open_raw

T = TypeVar("T")

#: An integer that a column can hold; anything larger is a malformed element.
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

CHUNK = 16 << 20
#: No element of any release comes near this; a larger one is a damaged or hostile file.
MAX_ELEMENT = 256 << 20

_SPACE = b" \t\r\n"
_DEPTH = np.zeros(256, np.int8)
_DEPTH[[ord("["), ord("{")]] = 1
_DEPTH[[ord("]"), ord("}")]] = -1


@dataclass
class Elements(Generic[T]):
    """Some consecutive elements of one array.

    Attributes:
        key: the array's key in the top-level object; "" for a top-level array.
        items: decoded elements.
        indices: the position of each item in its array.
        malformed: (position, what is wrong, raw text) of elements that could not be decoded.
    """

    key: str
    items: list[T]
    indices: list[int]
    malformed: list[tuple[int, str, bytes]] = field(default_factory=list)


def read_arrays(
    path: Path,
    wanted: Mapping[str, Any],
    *,
    on_bytes: Callable[[int], None] | None = None,
    chunk: int = CHUNK,
) -> Iterator[Elements[Any]]:
    """The elements of the wanted arrays, in file order.

    Args:
        path: the JSON file.
        wanted: element type by key of the top-level object; ``{"": type}`` when the document
            itself is the array. Other keys are skipped.
        on_bytes: called with the number of bytes of each chunk read.
        chunk: bytes read at a time; memory is a small multiple of this.

    Raises:
        UserError: the file is missing, cut off, of another shape, no JSON, or without one of the
            wanted arrays.
    """
    with open_raw(path) as file:
        reader = _Reader(path, file, on_bytes, chunk)
        opening = reader.next_byte()
        if "" in wanted:
            if opening != b"[":
                reader.fail("the document is not a JSON array", "is it the right file?")
            yield from reader.array("", wanted[""])
        else:
            if opening != b"{":
                reader.fail("the document is not a JSON object", "is it the right file?")
            yield from reader.members(wanted)
        reader.expect_end()


class _Reader:
    """A window on the file: ``buffer[start:]`` is read but not consumed, and outside any string."""

    def __init__(
        self, path: Path, file: BinaryIO, on_bytes: Callable[[int], None] | None, chunk: int
    ) -> None:
        self.path, self.file, self.on_bytes, self.chunk = path, file, on_bytes, chunk
        self.buffer = b""
        self.offset = 0  # file position of buffer[0]
        self.ended = False
        self._fill()
        if self.buffer.startswith(b"\xef\xbb\xbf"):
            self._drop(3)

    def fail(self, what: str, fix: str | None = None) -> NoReturn:
        raise UserError(f"{self.path}: {what} (near byte {self.offset})", fix)

    def _fill(self) -> None:
        """Read at least a chunk, and as much again as is waiting: the work stays linear."""
        if len(self.buffer) > MAX_ELEMENT:
            self.fail(f"an element of more than {MAX_ELEMENT >> 20} MiB", "the file is damaged")
        try:
            data = self.file.read(max(self.chunk, len(self.buffer)))
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}", "check the disk") from error
        self.ended = not data
        self.buffer += data
        if self.on_bytes:
            self.on_bytes(len(data))

    def _drop(self, count: int) -> None:
        self.buffer = self.buffer[count:]
        self.offset += count

    def _peek(self) -> bytes:
        """The next byte that is no white space, not consumed."""
        while True:
            stripped = self.buffer.lstrip(_SPACE)
            self._drop(len(self.buffer) - len(stripped))
            if self.buffer:
                return self.buffer[:1]
            if self.ended:
                self._cut_off()
            self._fill()

    def _cut_off(self) -> NoReturn:
        self.fail("cut off: the JSON ends in the middle", "download it again")

    def next_byte(self) -> bytes:
        byte = self._peek()
        self._drop(1)
        return byte

    def expect_end(self) -> None:
        while not self.ended or self.buffer:
            if self.buffer.strip(_SPACE):
                self.fail("text after the end of the JSON document", "the file is damaged")
            self._drop(len(self.buffer))
            self._fill()

    def members(self, wanted: Mapping[str, Any]) -> Iterator[Elements[Any]]:
        seen: set[str] = set()
        if self._peek() == b"}":
            self.fail("an empty JSON object", "is it the right file?")
        while True:
            key = self._key()
            if self._peek() == b"[":
                self.next_byte()
                if key in wanted:
                    seen.add(key)
                yield from self.array(key, wanted.get(key))
            elif key in wanted:
                self.fail(f"{key!r} is not an array", "is it the right file?")
            else:
                self._skip_value()
            separator = self.next_byte()
            if separator == b"}":
                break
            if separator != b",":
                self.fail(f"expected ',' or '}}', found {separator!r}", "the file is damaged")

        if missing := [key for key in wanted if key not in seen]:
            self.fail(f"no {missing[0]!r} array", "is it the right file?")

    def _key(self) -> str:
        if self._peek() != b'"':
            self.fail("expected a key", "the file is damaged")
        end = self._until(lambda quotes, _: int(quotes[1]) + 1 if len(quotes) > 1 else None)
        key = str(json.loads(self.buffer[:end], strict=False))
        self._drop(end)
        if self.next_byte() != b":":
            self.fail(f"expected ':' after {key!r}", "the file is damaged")
        return key

    def _skip_value(self) -> None:
        """Pass over a value of the top-level object that is no array; it must fit in memory."""
        first = self._peek()
        if first == b"{":
            end = self._until(lambda quotes, scan: _first(scan.ends))
        elif first == b'"':
            end = self._until(lambda quotes, _: int(quotes[1]) + 1 if len(quotes) > 1 else None)
        else:
            end = self._until(lambda quotes, _: _scalar_end(self.buffer))
        self._drop(end)

    def _until(self, find: Callable[[npt.NDArray[np.int64], _Scan], int | None]) -> int:
        while True:
            scan = _Scan(self.buffer)
            end = find(scan.quotes, scan)
            if end is not None:
                return end
            if self.ended:
                self._cut_off()
            self._fill()

    def array(self, key: str, kind: Any) -> Iterator[Elements[Any]]:
        """Elements up to and including the closing bracket; ``kind`` None skips them."""
        decoder = msgspec.json.Decoder(list[kind]) if kind is not None else None
        index = 0
        while True:
            scan = _Scan(self.buffer)
            end = scan.closing if scan.closing is not None else scan.last_cut()
            body = self.buffer[:end].strip(_SPACE + b",") if end is not None else b""
            if body and decoder is not None:
                elements = _decode(key, kind, decoder, body, index)
                index += len(elements.items) + len(elements.malformed)
                yield elements
            if scan.closing is not None:
                self._drop(scan.closing + 1)
                return
            self._drop(end or 0)
            if self.ended:
                self._cut_off()
            self._fill()


class _Scan:
    """The structure of a piece of JSON that starts outside any string, at depth 0.

    Attributes:
        quotes: positions of the quotes that open and close strings.
        ends: positions after each bracket that comes back to depth 0.
        closing: position of the bracket that closes the surrounding array, if it is here.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        view = np.frombuffer(data, np.uint8)
        self.quotes = _string_quotes(data, view)
        places = np.flatnonzero(_DEPTH[view])
        places = places[self._outside(places)]
        depth = np.cumsum(_DEPTH[view[places]], dtype=np.int64)
        below = np.flatnonzero(depth < 0)
        self.closing = int(places[below[0]]) if len(below) else None
        if self.closing is not None:
            places, depth = places[: below[0]], depth[: below[0]]
        self._places, self._depth = places, depth
        self.ends = places[depth == 0] + 1

    def _outside(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.searchsorted(self.quotes, places) % 2 == 0

    def last_cut(self) -> int | None:
        """Where the data can be cut so that only whole elements lie before."""
        commas = self.commas(self.data.rfind(b",", int(self.ends[-1]) if len(self.ends) else 0) + 1)
        if len(commas):
            return int(commas[-1])
        return int(self.ends[-1]) if len(self.ends) else None

    def commas(self, stop: int, start: int | None = None) -> npt.NDArray[np.int64]:
        """Positions of the commas between elements, from the last bracketed element (or start)."""
        begin = start if start is not None else (int(self.ends[-1]) if len(self.ends) else 0)
        found = begin + np.flatnonzero(np.frombuffer(self.data[begin:stop], np.uint8) == 44)
        found = found[self._outside(found)]
        level = np.searchsorted(self._places, found)
        depth = np.concatenate([[0], self._depth])[level]
        return found[depth == 0]


def _string_quotes(data: bytes, view: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    quotes = np.flatnonzero(view == 34)
    if b"\\" not in data or not len(quotes):
        return quotes
    # A quote is escaped when an odd number of backslashes stands right before it.
    suspects = np.flatnonzero((view[quotes - 1] == 92) & (quotes > 0))
    escaped = []
    for suspect in suspects:
        place = int(quotes[suspect]) - 1
        first = place
        while first > 0 and data[first - 1] == 92:
            first -= 1
        if (place - first) % 2 == 0:
            escaped.append(suspect)
    return np.delete(quotes, escaped)


def _first(ends: npt.NDArray[np.int64]) -> int | None:
    return int(ends[0]) if len(ends) else None


def _scalar_end(buffer: bytes) -> int | None:
    ends = [place for mark in b",}" if (place := buffer.find(bytes([mark]))) >= 0]
    return min(ends) if ends else None


def _decode(
    key: str, kind: Any, decoder: msgspec.json.Decoder[list[Any]], body: bytes, first: int
) -> Elements[Any]:
    try:
        items = decoder.decode(b"[" + body + b"]")
        return Elements(key, items, list(range(first, first + len(items))))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _decode_one_by_one(key, kind, body, first)


def _decode_one_by_one(key: str, kind: Any, body: bytes, first: int) -> Elements[Any]:
    scan = _Scan(body)
    cuts = [-1, *scan.commas(len(body), 0).tolist(), len(body)]
    result: Elements[Any] = Elements(key, [], [])
    for number in range(len(cuts) - 1):
        text = body[cuts[number] + 1 : cuts[number + 1]]
        try:
            item = _decode_one(text, kind)
        except (ValueError, RecursionError) as error:
            result.malformed.append((first + number, str(error)[:300], text))
        else:
            result.items.append(item)
            result.indices.append(first + number)
    return result


def _decode_one(text: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as strict:
        # Python's own writer emits NaN and Infinity, which JSON forbids; the box rules name them.
        try:
            value = json.loads(text)
            json.dumps(value, ensure_ascii=False).encode()  # lone surrogates are no text
        except ValueError:
            raise ValueError(str(strict)) from strict
        return msgspec.convert(value, kind)
