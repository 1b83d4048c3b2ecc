"""The arrays of a JSON document, found without decoding what lies between them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xvlm_data.raw.files import open_raw
from xvlm_data.raw.json_arrays import PIECE, ArrayReader, Elements
from xvlm_data.raw.json_scan import SPACE, Scan
from xvlm_data.raw.json_window import CHUNK, Window
from xvlm_data.storage import AnyPath


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
        path: AnyPath,
        wanted: Mapping[str, Any],
        on_bytes: Callable[[int], None] | None = None,
        chunk: int = CHUNK,
        known: dict[str, Array] | None = None,
        early: bool = False,
        optional: Collection[str] = (),
    ) -> None:
        """Open a document.

        Args:
            path: the JSON file.
            wanted: the keys that iteration gives; ``{"": …}`` for a document that is an array.
            on_bytes: called with the number of bytes read.
            chunk: bytes read at a time.
            known: arrays found by an earlier pass over the same file; extended by this one.
            early: stop once all wanted arrays were given, without looking at the rest.
            optional: those of the wanted keys that may be absent.
        """
        self.path, self.wanted, self.chunk = path, wanted, chunk
        self.known = {} if known is None else known
        self._early = early
        self._needed = [key for key in wanted if key not in optional]
        self._on_bytes = on_bytes
        self._file = open_raw(path)
        self.window = Window(path, self._file, 0, min(chunk, PIECE), on_bytes)
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
        if missing := [key for key in self._needed if key not in seen]:
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
        window = Window(self.path, self._file, self.window.offset(self.window.begin), self.chunk)
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
        window = Window(self.path, self._file, start, PIECE)
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


def read_arrays(
    path: AnyPath,
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


def _string_end(scan: Scan) -> int | None:
    return int(scan.quotes[1]) + 1 if len(scan.quotes) > 1 else None


def _bracket_end(scan: Scan) -> int | None:
    return int(scan.ends[0]) if len(scan.ends) else None


def _scalar_end(scan: Scan) -> int | None:
    ends = [place for mark in b",}" if (place := scan.data.find(bytes([mark]))) >= 0]
    return min(ends) if ends else None
