"""Reading line-oriented lists (TSV, one value a line) without quoting, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from xvlm_data.errors import UserError
from xvlm_data.raw.files import open_raw

CHUNK = 8 << 20
#: The longest official caption has some thousand characters; a longer line is a damaged file.
MAX_LINE = 16 << 20


def read_lines(
    path: Path, *, on_bytes: Callable[[int], None] | None = None, chunk: int = CHUNK
) -> Iterator[tuple[int, list[bytes]]]:
    """Blocks of lines, as (number of the first line from 0, lines without their ends).

    A trailing carriage return is dropped. Nothing else is: quotes, tabs and empty lines stay.

    Raises:
        UserError: missing, unreadable, not the data, or a line of more than 16 MiB.
    """
    number, rest = 0, b""
    with open_raw(path) as file:
        while data := file.read(chunk):
            if on_bytes:
                on_bytes(len(data))
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            if len(rest) > MAX_LINE:
                raise UserError(f"{path}: line {number + len(lines) + 1} is longer than 16 MiB")
            if lines:
                yield number, [line.removesuffix(b"\r") for line in lines]
                number += len(lines)
    if rest:
        yield number, [rest.removesuffix(b"\r")]
