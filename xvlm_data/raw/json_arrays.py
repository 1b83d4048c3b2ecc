"""Reading the large arrays of a JSON file in one pass and bounded memory.

Annotation releases are one JSON document of up to several GB: an array, or an object of arrays.
`raw.json_document` finds the arrays, :class:`ArrayReader` reads the elements of one, or of a part
of one that begins at an element, so that several processes can share a file.

Elements are decoded in typed calls (``msgspec``), so fields nobody asked for, such as polygons,
never become Python objects. The file is cut between elements at the bytes that stand between its
first two, such as ``},{"id":``: they cannot lie inside a string, since a quote ends it, and a cut
at another depth cannot be decoded as an array. Whatever is not decoded is scanned exactly
(:mod:`xvlm_data.raw.json_scan`): one malformed element is set aside with its position; it never
ends the read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, BinaryIO, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from xvlm_data.raw.json_scan import SPACE, Scan
from xvlm_data.raw.json_window import CHUNK, Window
from xvlm_data.storage import AnyPath

T = TypeVar("T")

#: An integer that a column can hold; anything larger is a malformed element.
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

#: Bytes decoded in one call, and in one call where a bad element has been met.
PIECE, CAREFUL_PIECE = 64 << 10, 4 << 10


@dataclass
class Elements(Generic[T]):
    """Some consecutive elements of one array.

    Attributes:
        key: the array's key in the top-level object; "" for a top-level array.
        items: decoded elements.
        indices: ``[N]`` the position of each item in its array (or part of an array).
        malformed: (position, what is wrong, raw text) of elements that could not be decoded.
    """

    key: str
    items: list[T]
    indices: npt.NDArray[np.int64]
    malformed: list[tuple[int, str, bytes]] = field(default_factory=list)


class ArrayReader:
    """The elements of an array from one of them on; iterate over it once.

    Attributes:
        end: after iteration: position after the closing bracket, or of the next element's start.
        closed: after iteration: whether the array ended.
        count: elements read, malformed ones included.
    """

    def __init__(
        self,
        path: AnyPath,
        file: BinaryIO,
        kind: Any,
        start: int,
        *,
        key: str = "",
        stop: int | None = None,
        separator: bytes | None = None,
        chunk: int = CHUNK,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            path: the file's name, for errors.
            file: the open file; it is moved.
            kind: type of the elements.
            start: position of an element, or right after the opening bracket.
            key: of the array, for :class:`Elements`.
            stop: read up to the first separator at or after this position.
            separator: see `raw.json_document.Array`.
            chunk: bytes read, and handed on, at a time.
            on_bytes: called with the number of bytes read.
        """
        self.key, self.kind, self.stop, self.separator = key, kind, stop, separator
        self.end, self.closed, self.count = start, False, 0
        self._window = Window(path, file, start, chunk, on_bytes)
        self._decoder: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[kind])
        self._start = start
        self._careful_until = start

    def __iter__(self) -> Iterator[Elements[Any]]:
        window = self._window
        while not self._finished():
            found: Elements[Any] = Elements(self.key, [], np.zeros(0, np.int64))
            first = self.count
            window.fill()
            while not self._finished() and self._piece(found):
                pass
            indices = np.arange(first, self.count, dtype=np.int64)
            if found.malformed:
                bad = np.array([index for index, _, _ in found.malformed], np.int64)
                indices = np.delete(indices, bad - first)
            found.indices = indices
            if self.count > first:
                yield found
        if not self.closed:
            window.peek(SPACE + b",")
        self.end = window.offset(window.begin)

    def _finished(self) -> bool:
        if self.closed:
            return True
        if self.stop is None:
            return False
        here = self._window.offset(self._window.begin)
        return here > self._start and here - separator_lead(self.separator) >= self.stop

    def _piece(self, found: Elements[Any]) -> bool:
        """Decode some elements; False when more of the file is needed first."""
        window = self._window
        data, begin = window.data, window.begin
        cut = -1
        if self.separator is not None:
            begin = self._element_start()
            careful = window.offset(begin) < self._careful_until
            wanted = begin + (CAREFUL_PIECE if careful else PIECE)
            if self.stop is not None:
                wanted = max(min(wanted, self.stop - window.offset(0)), begin)
            cut = data.find(self.separator, wanted, window.end)
            if cut < 0 and not window.ended and window.end - begin < window.chunk:
                return False
        if cut < 0:
            return self._exact(found)
        before, after = data[begin - 1], data[cut + 1]
        data[begin - 1], data[cut + 1] = ord("["), ord("]")
        try:
            with memoryview(data) as view:
                items = self._decoder.decode(view[begin - 1 : cut + 2])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            items = None
        data[begin - 1], data[cut + 1] = before, after
        if items is None and not careful:
            self._careful_until = window.offset(cut)
            return True
        if items is None:
            piece = bytes(memoryview(data)[begin : cut + 1])
            if _is_one(piece):
                self._add(piece, found)
            else:
                scan = Scan(piece)
                if not scan.whole:
                    return self._exact(found)
                self._one_by_one(scan, found)
        else:
            found.items += items
            self.count += len(items)
        window.begin = cut + separator_lead(self.separator)
        return True

    def _element_start(self) -> int:
        """Past the white space and the comma before the next element."""
        window = self._window
        while window.begin < window.end and window.data[window.begin] in SPACE + b",":
            window.begin += 1
        return window.begin

    def _exact(self, found: Elements[Any]) -> bool:
        """Scan for the end of the array or of the elements that are whole here; decode them."""
        window = self._window
        size = PIECE
        while True:
            text = window.text(size)
            scan = Scan(text)
            end = scan.closing if scan.closing is not None else scan.last_cut()
            body = text[:end].strip(SPACE + b",") if end is not None else b""
            if body:
                self._decode(body, found)
            if scan.closing is not None:
                window.begin += scan.closing + 1
                self.closed = True
                return True
            window.begin += end or 0
            if body:
                return True
            if window.begin + size < window.end:
                size *= 4
                continue
            if window.ended:
                window.cut_off()
            return False

    def _decode(self, body: bytes, found: Elements[Any]) -> None:
        try:
            items = self._decoder.decode(b"[" + body + b"]")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._one_by_one(Scan(body), found)
        else:
            found.items += items
            self.count += len(items)

    def _one_by_one(self, scan: Scan, found: Elements[Any]) -> None:
        body = scan.data
        cuts = [-1, *scan.commas(len(body), 0).tolist(), len(body)]
        for number in range(len(cuts) - 1):
            self._add(body[cuts[number] + 1 : cuts[number + 1]], found)

    def _add(self, text: bytes, found: Elements[Any]) -> None:
        """One element, be it malformed."""
        try:
            found.items.append(decode_one(text, self.kind))
        except (ValueError, RecursionError) as error:
            found.malformed.append((self.count, str(error)[:300], text))
        self.count += 1


def _is_one(text: bytes) -> bool:
    """Whether this is one JSON value and nothing else; it is looked at, not built."""
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def separator_lead(separator: bytes | None) -> int:
    """How far behind a separator's first byte the next element begins."""
    return separator.rindex(b"{") if separator else 0


def find_element(file: BinaryIO, separator: bytes, start: int, stop: int | None) -> int | None:
    """Where the element after the first separator at or after ``start`` begins.

    Args:
        file: the open file; it is moved.
        separator: see `raw.json_document.Array`.
        start: position to search from.
        stop: position to give up at; None for the end of the file.
    """
    file.seek(start)
    data, base = b"", start
    while True:
        more = file.read(PIECE * 16)
        data += more
        place = data.find(separator)
        if place >= 0:
            found = base + place
            inside = stop is None or found < stop
            return found + separator_lead(separator) if inside else None
        if not more or (stop is not None and base >= stop):
            return None
        keep = len(separator) - 1
        base += len(data) - keep
        data = data[len(data) - keep :]


def decode_one(text: bytes, kind: Any) -> Any:
    """One element by itself.

    Raises:
        ValueError: it is not JSON, or not of this kind.
    """
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
