"""Reading tar archives in bounded memory, whatever their headers say.

``tarfile`` reads what stands before a member whole, such as long names and pax headers of any size,
goes where sizes lead, be it backwards, and takes a damaged header for the end of the archive. So it
is given a stream that allows it so much and no more; what is compressed is unpacked piece by piece.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from xvlm_data.errors import UserError

#: Bytes of headers before a member, and of those for all members; honest ones have some hundred.
MAX_HEADERS = 1 << 20
_SKIP = 1 << 20
#: No archive is this long, and no file can be told to go further.
_FARTHEST = 1 << 62

#: What ``tarfile`` and the unpackers raise on broken input: most of it is not documented.
_DAMAGED = (
    tarfile.TarError,
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    ArithmeticError,
    LookupError,
    RecursionError,  # one header that belongs to the next, a thousand times
)


class TarReader:
    """The members of an archive, in order; a context manager, to be iterated over once."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            UserError: it is no archive, or damaged, as from every other method.
        """
        self._path = path
        self._files = ExitStack()
        try:
            with self._told():
                file = self._files.enter_context(path.open("rb"))
                unpacked = self._files.enter_context(_unpacked(file))
                self._stream = _Stream(unpacked, seekable=unpacked is file)
                self._archive = tarfile.TarFile(fileobj=cast(BinaryIO, self._stream))
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> TarReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        while True:
            with self._told():
                member = self._next()
            if member is None:
                return
            yield member

    def _next(self) -> tarfile.TarInfo | None:
        self._stream.allowed = MAX_HEADERS
        member = self._archive.next()
        if member is None and any(self._stream.last):
            raise tarfile.ReadError(f"no header before byte {self._stream.tell():,}")
        self._archive.members = []  # type: ignore[attr-defined]  # or it remembers every one
        lasting = self._archive.pax_headers.items()
        if sum(len(key) + len(value) for key, value in lasting) > MAX_HEADERS:
            raise tarfile.ReadError(f"more than {MAX_HEADERS >> 20} MiB of headers for all members")
        return member

    def read(self, member: tarfile.TarInfo) -> bytes:
        """The content of a regular member, the one that iteration has come to.

        It is read whole, so look at its size before.
        """
        with self._told():
            self._stream.seek(member.offset_data)
            self._stream.allowed = member.size
            data = self._stream.read(member.size)
            if len(data) < member.size:
                raise EOFError("it ends early")
            return data

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGED as error:
            raise UserError(
                f"{self._path}: not a readable archive ({error})",
                "copy it again, or leave it out",
            ) from error


def _unpacked(file: BinaryIO) -> BinaryIO:
    """The file itself, or what it is when it is unpacked; never more of it at once than is read."""
    head = file.read(10)
    file.seek(0)
    found: object = file
    if head.startswith(b"\x1f\x8b\x08"):
        found = gzip.GzipFile(fileobj=file)
    elif head.startswith(b"BZh") and head[4:] == b"1AY&SY":
        found = bz2.BZ2File(file)
    elif head.startswith((b"\xfd7zXZ\0", b"\x5d\0\0\x80")):
        found = lzma.LZMAFile(file)  # noqa: SIM115 - closed by the reader
    return cast(BinaryIO, found)


class _Stream:
    """What ``tarfile`` reads from: forwards, and up to ``allowed`` bytes."""

    def __init__(self, file: BinaryIO, *, seekable: bool) -> None:
        self._file, self._seekable = file, seekable
        self._place = 0
        self.allowed = MAX_HEADERS
        self.last = b""

    def tell(self) -> int:
        return self._place

    def read(self, size: int) -> bytes:
        if size < 0:
            raise tarfile.ReadError(f"a size below 0 before byte {self._place:,}")
        if size > self.allowed:
            raise tarfile.ReadError(
                f"more than {MAX_HEADERS >> 20} MiB of headers at byte {self._place:,}"
            )
        self.last = self._file.read(size)
        self.allowed -= size
        self._place += len(self.last)
        return self.last

    def seek(self, place: int) -> None:
        if not self._place <= place < _FARTHEST:
            raise tarfile.ReadError(f"a size that leads astray before byte {self._place:,}")
        if self._seekable:
            self._file.seek(place)
            self._place = place
            return
        while self._place < place:
            skipped = len(self._file.read(min(place - self._place, _SKIP)))
            if not skipped:
                return  # what is read next is missing
            self._place += skipped
