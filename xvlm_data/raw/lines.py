"""Reading line-oriented lists (TSV, one value a line) without quoting, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from xvlm_data.errors import UserError
from xvlm_data.raw.files import BOM, open_raw

CHUNK = 4 << 20
#: The longest official caption has some thousand characters; a longer line is a damaged file.
MAX_LINE = 16 << 20


def read_lines(
    path: Path,
    *,
    start: int = 0,
    stop: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
    chunk: int = CHUNK,
) -> Iterator[tuple[int, list[bytes]]]:
    """Blocks of lines, as (number of the first line from 0, lines without their ends).

    A trailing carriage return is dropped, and a byte order mark at the start of the file. Nothing
    else is: quotes, tabs and empty lines stay.

    Args:
        path: the file.
        start: the lines that begin at or after this byte, counted from 0 there.
        stop: and before this one; None for all.
        on_bytes: called with the number of bytes of each chunk read.
        chunk: bytes read at a time.

    Raises:
        UserError: missing, unreadable, not the data, or a line of more than 16 MiB.
    """
    number, rest = 0, b""
    with open_raw(path) as file:
        if start:
            file.seek(start - 1)
            start += len(file.readline(MAX_LINE)) - 1
        elif file.read(len(BOM)) == BOM:
            start = len(BOM)
            stop = max(stop, start + 1) if stop else stop  # the first line begins at byte 0
        else:
            file.seek(0)
        while (stop is None or start < stop) and (data := file.read(chunk)):
            if on_bytes:
                on_bytes(len(data))
            data = rest + data
            end = data.rfind(b"\n") + 1
            if stop is not None and start + end > stop:
                # Up to and including the line in which the last byte before ``stop`` lies.
                end = data.find(b"\n", max(stop - start - 1, 0)) + 1
            if not end:
                if len(data) > MAX_LINE:
                    raise UserError(
                        f"{path}: a line longer than 16 MiB (near byte {start})",
                        "is it the official file? download it again",
                    )
                rest = data
                continue
            lines = data[: end - 1].split(b"\n")
            rest, start = data[end:], start + end
            yield number, [line.removesuffix(b"\r") for line in lines]
            number += len(lines)
        if rest and (stop is None or start < stop):
            yield number, [rest.removesuffix(b"\r")]
