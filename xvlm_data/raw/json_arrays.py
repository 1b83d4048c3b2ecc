"""Reading the large arrays of a JSON file in one pass and bounded memory.

Annotation releases are one JSON document of up to several GB: an array, or an object of arrays.
:class:`JsonDocument` finds the arrays, :class:`ArrayReader` reads the elements of one, or of a part
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
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Generic, NoReturn, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from xvlm_data.errors import UserError
from xvlm_data.raw.files import open_raw
from xvlm_data.raw.json_scan import SPACE, Scan

T = TypeVar("T")

#: An integer that a column can hold; anything larger is a malformed element.
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

#: Bytes read, and handed on as one :class:`Elements`, at a time.
CHUNK = 4 << 20
#: Bytes decoded in one call: small enough that one bad element costs little to find.
PIECE = 16 << 10
#: No element of any release comes near this; a larger one is a damaged or hostile file.
MAX_ELEMENT = 256 << 20


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


def read_arrays(
    path: Path,
    wanted: Mapping[str, Any],
    *,
    on_bytes: Callable[[int], None] | None = None,
    chunk: int = CHUNK,
    early: bool = False,
) -> Iterator[Elements[Any]]:
    """The elements of the wanted arrays, in file order.

    Args:
        path: the JSON file.
        wanted: element type by key of the top-level object; ``{"": type}`` when the document
            itself is the array. Other keys are skipped.
        on_bytes: called with the number of bytes of each chunk read.
        chunk: bytes read at a time; memory is a small multiple of this.
        early: stop after the last of the wanted arrays, without looking at the rest of the file.

    Raises:
        UserError: the file is missing, cut off, of another shape, no JSON, or without one of the
            wanted arrays.
    """
    document = JsonDocument(path, wanted, on_bytes, chunk, early=early)
    with document:
        for array in document:
            reader = document.reader(array, wanted[array.key])
            yield from reader
            array.end = reader.end


class _Window:
    """``data[begin:end]`` is read but not consumed; ``offset(begin)`` is where it is in the file.

    One spare byte lies before ``begin`` and after ``end``, so that a piece can be put in brackets
    where it is.
    """

    def __init__(
        self,
        path: Path,
        file: BinaryIO,
        start: int,
        chunk: int,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self.path, self.file, self.chunk, self.on_bytes = path, file, chunk, on_bytes
        self.data = bytearray(chunk + 2)
        self.begin = self.end = 1
        self.ended = False
        self.jump(start)

    def jump(self, offset: int) -> None:
        """Go on at another place of the file."""
        self.file.seek(offset)
        self._base = offset - 1
        self.begin = self.end = 1
        self.ended = False

    def offset(self, place: int) -> int:
        """Position in the file of a place in ``data``."""
        return self._base + place

    def fail(self, what: str, fix: str | None = None) -> NoReturn:
        raise UserError(f"{self.path}: {what} (near byte {self.offset(self.begin)})", fix)

    def cut_off(self) -> NoReturn:
        self.fail("cut off: the JSON ends in the middle", "download it again")

    def fill(self) -> None:
        """Read on, and as much again as is waiting: the work stays linear."""
        waiting = self.end - self.begin
        if waiting > MAX_ELEMENT:
            self.fail(f"an element of more than {MAX_ELEMENT >> 20} MiB", "the file is damaged")
        size = max(self.chunk, waiting)
        data = self.data
        if len(data) < 1 + waiting + size + 1:
            data = bytearray(1 + waiting + size + 1)
        data[1 : 1 + waiting] = self.data[self.begin : self.end]
        self._base += self.begin - 1
        self.data, self.begin = data, 1
        try:
            with memoryview(data) as view:
                count = self.file.readinto(view[1 + waiting : 1 + waiting + size])  # type: ignore[attr-defined]
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}", "check the disk") from error
        self.end = 1 + waiting + count
        self.ended = not count
        if self.on_bytes:
            self.on_bytes(count)

    def text(self, size: int | None = None) -> bytes:
        """A copy of what is waiting."""
        stop = self.end if size is None else min(self.end, self.begin + size)
        return bytes(memoryview(self.data)[self.begin : stop])

    def peek(self, skip: bytes = SPACE) -> bytes:
        """The next byte that is none of ``skip``, not consumed; empty at the end of the file."""
        while True:
            while self.begin < self.end:
                if self.data[self.begin] not in skip:
                    return bytes((self.data[self.begin],))
                self.begin += 1
            if self.ended:
                return b""
            self.fill()

    def need(self) -> bytes:
        """As :meth:`peek`, where the document must go on."""
        byte = self.peek()
        if not byte:
            self.cut_off()
        return byte

    def next_byte(self) -> bytes:
        byte = self.need()
        self.begin += 1
        return byte


@dataclass
class Array:
    """An array of the document: where its first element begins, and where it ends.

    Attributes:
        key: its key in the top-level object; "" for a top-level array.
        start: position in the file right after the opening bracket.
        end: position right after the closing bracket, once somebody knows it.
        separator: the bytes between two elements, up to the first key of the second.
    """

    key: str
    start: int
    end: int | None = None
    separator: bytes | None = None


class JsonDocument:
    """The arrays of a document in file order, found without decoding what lies between them.

    Whoever reads an array sets its ``end``; otherwise it is skipped by scanning it. Arrays whose
    end is known from an earlier pass are jumped over.
    """

    def __init__(
        self,
        path: Path,
        wanted: Mapping[str, Any],
        on_bytes: Callable[[int], None] | None = None,
        chunk: int = CHUNK,
        known: dict[str, Array] | None = None,
        early: bool = False,
    ) -> None:
        """Open a document.

        Args:
            path: the JSON file.
            wanted: the keys that iteration gives; ``{"": …}`` for a document that is an array.
            on_bytes: called with the number of bytes read.
            chunk: bytes read at a time.
            known: arrays found by an earlier pass over the same file; extended by this one.
            early: stop once all wanted arrays were given, without looking at the rest.
        """
        self.path, self.wanted, self.chunk = path, wanted, chunk
        self.known = {} if known is None else known
        self._early = early
        self._on_bytes = on_bytes
        self._file = open_raw(path)
        self.window = _Window(path, self._file, 0, min(chunk, PIECE), on_bytes)
        self.window.fill()
        if self.window.text(3) == b"\xef\xbb\xbf":
            self.window.begin += 3

    def __enter__(self) -> JsonDocument:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Array]:
        window = self.window
        opening = window.next_byte()
        if "" in self.wanted:
            if opening != b"[":
                window.fail("the document is not a JSON array", "is it the right file?")
            yield from self._array("")
        else:
            if opening != b"{":
                window.fail("the document is not a JSON object", "is it the right file?")
            yield from self._members()
        if not self._early and window.peek():
            window.fail("text after the end of the JSON document", "the file is damaged")

    def reader(self, array: Array, kind: Any) -> ArrayReader:
        """A reader of a whole array of this document."""
        return ArrayReader(
            self.path,
            self._file,
            kind,
            array.start,
            key=array.key,
            separator=array.separator,
            chunk=self.chunk,
            on_bytes=self._on_bytes,
        )

    def _array(self, key: str) -> Iterator[Array]:
        window = self.window
        array = self.known.setdefault(key, Array(key, window.offset(window.begin)))
        if key in self.wanted:
            if array.separator is None:
                array.separator = self._separator(array.start)
            yield array
        if array.end is None:
            window.jump(array.start)
            array.end = self._skip_array()
        window.jump(array.end)

    def _members(self) -> Iterator[Array]:
        window, seen = self.window, set()
        if window.need() == b"}":
            window.fail("an empty JSON object", "is it the right file?")
        while True:
            key = self._key()
            if window.need() == b"[":
                window.begin += 1
                if key in seen:
                    window.fail(f"a second {key!r}", "the file is damaged")
                seen.add(key)
                yield from self._array(key)
                if self._early and seen.issuperset(self.wanted):
                    return
            elif key in self.wanted:
                window.fail(f"{key!r} is not an array", "is it the right file?")
            else:
                self._skip_value()
            separator = window.next_byte()
            if separator == b"}":
                break
            if separator != b",":
                window.fail(f"expected ',' or '}}', found {separator!r}", "the file is damaged")
        if missing := [key for key in self.wanted if key not in seen]:
            window.fail(f"no {missing[0]!r} array", "is it the right file?")

    def _key(self) -> str:
        if self.window.need() != b'"':
            self.window.fail("expected a key", "the file is damaged")
        end = self._until(_string_end)
        key = str(json.loads(self.window.text(end), strict=False))
        self.window.begin += end
        if self.window.next_byte() != b":":
            self.window.fail(f"expected ':' after {key!r}", "the file is damaged")
        return key

    def _skip_value(self) -> None:
        """Pass over a value of the top-level object that is no array; it must fit in memory."""
        first = self.window.need()
        if first == b"{":
            find: Callable[[Scan], int | None] = _bracket_end
        elif first == b'"':
            find = _string_end
        else:
            find = _scalar_end
        end = self._until(find)  # which may move the window
        self.window.begin += end

    def _until(self, find: Callable[[Scan], int | None]) -> int:
        while True:
            end = find(Scan(self.window.text()))
            if end is not None:
                return end
            if self.window.ended:
                self.window.cut_off()
            self.window.fill()

    def _skip_array(self) -> int:
        window = _Window(self.path, self._file, self.window.offset(self.window.begin), self.chunk)
        while True:
            scan = Scan(window.text())
            if scan.closing is not None:
                return window.offset(window.begin + scan.closing + 1)
            window.begin += scan.last_cut() or 0
            if window.ended:
                window.cut_off()
            window.fill()

    def _separator(self, start: int) -> bytes | None:
        """What stands between the first two elements, if both are objects with keys."""
        window = _Window(self.path, self._file, start, PIECE)
        while True:
            window.fill()
            text = window.text()
            scan = Scan(text)
            if len(scan.ends):
                first = int(scan.ends[0]) - 1
                if text[: first + 1].lstrip(SPACE)[:1] != b"{":
                    return None
                found = re.compile(rb'\}\s*,\s*\{\s*"[^"\\]*"\s*:').match(text, first)
                if found:
                    return found[0]
            if window.ended or scan.closing is not None or len(scan.ends) > 1:
                return None


class ArrayReader:
    """The elements of an array from one of them on; iterate over it once.

    Attributes:
        end: after iteration: position after the closing bracket, or of the next element's start.
        closed: after iteration: whether the array ended.
        count: elements read, malformed ones included.
    """

    def __init__(
        self,
        path: Path,
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
            separator: see :class:`Array`.
            chunk: bytes read, and handed on, at a time.
            on_bytes: called with the number of bytes read.
        """
        self.key, self.kind, self.stop, self.separator = key, kind, stop, separator
        self.end, self.closed, self.count = start, False, 0
        self._window = _Window(path, file, start, chunk, on_bytes)
        self._decoder: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(list[kind])
        self._start = start

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
            wanted = begin + PIECE
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
        if items is None:
            piece = bytes(memoryview(data)[begin : cut + 1])
            if not Scan(piece).whole:
                return self._exact(found)
            self._one_by_one(piece, found)
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
        size = 4 * PIECE
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
            self._one_by_one(body, found)
        else:
            found.items += items
            self.count += len(items)

    def _one_by_one(self, body: bytes, found: Elements[Any]) -> None:
        scan = Scan(body)
        cuts = [-1, *scan.commas(len(body), 0).tolist(), len(body)]
        for number in range(len(cuts) - 1):
            text = body[cuts[number] + 1 : cuts[number + 1]]
            try:
                found.items.append(decode_one(text, self.kind))
            except (ValueError, RecursionError) as error:
                found.malformed.append((self.count, str(error)[:300], text))
            self.count += 1


def separator_lead(separator: bytes | None) -> int:
    """How far behind a separator's first byte the next element begins."""
    return separator.rindex(b"{") if separator else 0


def find_element(file: BinaryIO, separator: bytes, start: int, stop: int | None) -> int | None:
    """Where the element after the first separator at or after ``start`` begins.

    Args:
        file: the open file; it is moved.
        separator: see :class:`Array`.
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


def _string_end(scan: Scan) -> int | None:
    return int(scan.quotes[1]) + 1 if len(scan.quotes) > 1 else None


def _bracket_end(scan: Scan) -> int | None:
    return int(scan.ends[0]) if len(scan.ends) else None


def _scalar_end(scan: Scan) -> int | None:
    ends = [place for mark in b",}" if (place := scan.data.find(bytes([mark]))) >= 0]
    return min(ends) if ends else None


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
