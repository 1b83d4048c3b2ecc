"""A moving window on a JSON file: what is read but not consumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, NoReturn

from xvlm_data.errors import UserError
from xvlm_data.raw.json_scan import SPACE
from xvlm_data.storage import AnyPath

#: Bytes read at a time.
CHUNK = 512 << 10
#: No element of any release comes near this; a larger one is a damaged or hostile file.
MAX_ELEMENT = 256 << 20


class Window:
    """``data[begin:end]`` is read but not consumed; ``offset(begin)`` is where it is in the file.

    One spare byte lies before ``begin`` and after ``end``, so that a piece can be put in brackets
    where it is.
    """

    def __init__(
        self,
        path: AnyPath,
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
        """Raise UserError with the place."""
        raise UserError(f"{self.path}: {what} (near byte {self.offset(self.begin)})", fix)

    def cut_off(self) -> NoReturn:
        """Raise UserError: the file ends too early."""
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
        """As :meth:`need`, consumed."""
        byte = self.need()
        self.begin += 1
        return byte
