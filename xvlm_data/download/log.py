"""What became of the rows of a shard so far, on disk.

Rows finish in any order, and a shard is written in the order of its rows; in between their bytes
lie here, not in memory. A killed run finds here what it need not ask for again.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

from xvlm_data.download.reasons import TRANSIENT, Failure

#: Row, width, height, length of the payload; width 0: the payload tells a failure. Then the
#: checksum of these and of the payload.
_HEAD = struct.Struct("<IIIQ")
_CHECK = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Stored:
    """An image in the log: where its bytes lie, and its size in pixels."""

    offset: int
    length: int
    size: tuple[int, int]


Outcome = Stored | Failure


class ShardLog:
    """An append-only file of outcomes; safe to use from several threads.

    Attributes:
        outcomes: by row of the shard.
    """

    def __init__(self, path: Path) -> None:
        """Open, and take over what an earlier run left: all but what is torn, and all images but
        only those failures that would not pass.
        """
        self.outcomes: dict[int, Outcome] = {}
        self._path, self._lock = path, threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._end = self._recover(os.fstat(self._descriptor).st_size)

    def _recover(self, size: int) -> int:
        end = 0
        while end + _HEAD.size + _CHECK.size <= size:
            head, check = self._read(end, _HEAD.size), self._read(end + _HEAD.size, _CHECK.size)
            row, width, height, length = _HEAD.unpack(head)
            start = end + _HEAD.size + _CHECK.size
            if start + length > size:
                break
            payload = self._read(start, length)
            if _check(head, payload) != check:
                break
            if width:
                self.outcomes[row] = Stored(start, length, (width, height))
            else:
                failure = Failure(*json.loads(payload))
                if failure.reason not in TRANSIENT:
                    self.outcomes[row] = failure
            end = start + length
        return end

    def add_image(self, row: int, data: bytes, size: tuple[int, int]) -> None:
        """Keep an image of a row.

        Raises:
            OSError: the disk is full.
        """
        start = self._append(row, size, data)
        self.outcomes[row] = Stored(start, len(data), size)

    def add_failure(self, row: int, failure: Failure) -> None:
        """Note why a row has no image."""
        self._append(row, (0, 0), json.dumps([failure.reason, failure.message]).encode())
        self.outcomes[row] = failure

    def _append(self, row: int, size: tuple[int, int], payload: bytes) -> int:
        head = _HEAD.pack(row, *size, len(payload))
        block = memoryview(b"".join((head, _check(head, payload), payload)))
        with self._lock:
            written = 0
            while written < len(block):
                written += os.pwrite(self._descriptor, block[written:], self._end + written)
            # A write that fails half-way leaves the end where it was.
            self._end += written
            return self._end - len(payload)

    def read(self, stored: Stored) -> bytes:
        """The bytes of an image."""
        return self._read(stored.offset, stored.length)

    def _read(self, offset: int, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not piece:
                raise OSError(f"{self._path}: shorter than it was")
            data = data + piece if data else piece
        return data

    def close(self) -> None:
        """Close the file; it stays."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """Close and remove the file: all of it is in the shard."""
        self.close()
        self._path.unlink(missing_ok=True)


def _check(head: bytes, payload: bytes) -> bytes:
    return _CHECK.pack(zlib.crc32(payload, zlib.crc32(head)))
