"""Reading large CSV files with a header in blocks of columns, in bounded memory.

The file is cut at line ends into chunks, and each chunk is parsed in one call (``pyarrow.csv``), so
that one bad line costs one line, and its number is known. Fields are texts; :func:`to_floats` makes
numbers of them where they are numbers.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from xvlm_data.errors import UserError
from xvlm_data.raw.files import open_raw
from xvlm_data.raw.lines import MAX_LINE

CHUNK = 16 << 20
_BOM = b"\xef\xbb\xbf"
#: What pyarrow reads as a number.
_NUMBER = r"(?i)^[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)$"


@dataclass
class CsvBlock:
    """Consecutive lines of a CSV file.

    Attributes:
        columns: N texts by column name; an optional column that the file lacks is not there.
        lines: ``[N]`` the number of each line, from 0; the header is line 0.
        malformed: (line, what is wrong, raw text) of lines that have not as many fields as the
            header. Empty lines are no records.
    """

    columns: dict[str, pa.Array]
    lines: npt.NDArray[np.int64]
    malformed: list[tuple[int, str, bytes]] = field(default_factory=list)


def read_csv_blocks(
    path: Path,
    wanted: Sequence[str],
    optional: Sequence[str] = (),
    *,
    on_bytes: Callable[[int], None] | None = None,
    chunk: int = CHUNK,
) -> Iterator[CsvBlock]:
    """The wanted columns of a comma-separated file, by the names in its header.

    Args:
        path: the file, in UTF-8; what is none becomes U+FFFD.
        wanted: columns that have to be there.
        optional: columns to read where the file has them.
        on_bytes: called with the number of bytes of each chunk read.
        chunk: bytes read at a time; memory is a small multiple of this.

    Raises:
        UserError: missing, not the data, a wanted column is missing, or a line of over 16 MiB.
    """
    with open_raw(path) as file:
        header = file.readline(MAX_LINE)
        if on_bytes:
            on_bytes(len(header))
        names = _names(header)
        places = {name: names.index(name) for name in (*wanted, *optional) if name in names}
        if missing := [name for name in wanted if name not in places]:
            raise UserError(
                f"{path}: no {missing[0]} column (its first line is "
                f"{header[:120].decode('utf-8', 'replace').strip()!r})",
                "is it the right file?",
            )
        parser = _Parser(len(names), places, quoted=b'"' in header)
        line = 1
        for data in _chunks(path, file, on_bytes, chunk):
            block, count = parser(data, line)
            line += count
            yield block


def to_floats(texts: pa.Array) -> pa.Array:
    """float64 of each text, null where it is no number; NaN and infinities are numbers."""
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        trimmed = pc.utf8_trim_whitespace(texts)
        valid = pc.match_substring_regex(trimmed, _NUMBER)
        return pc.if_else(valid, trimmed, None).cast(pa.float64())


def _names(header: bytes) -> list[str]:
    text = header.removeprefix(_BOM).decode("utf-8", "replace").strip("\r\n")
    return [name.strip() for name in next(csv.reader([text]), [])]


def _chunks(
    path: Path, file: BinaryIO, on_bytes: Callable[[int], None] | None, size: int
) -> Iterator[bytes]:
    """Pieces of whole lines."""
    rest = b""
    while True:
        try:
            data = file.read(size)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}", "check the disk") from error
        if not data:
            break
        if on_bytes:
            on_bytes(len(data))
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = data[end:]
        else:
            rest += data
        if len(rest) > MAX_LINE:
            raise UserError(f"{path}: a line longer than 16 MiB", "the file is damaged")
    if rest:
        yield rest


class _Parser:
    """Parses chunks of one file."""

    def __init__(self, width: int, places: dict[str, int], *, quoted: bool) -> None:
        # Columns go by position: a header may name two of them alike.
        self._columns = [str(place) for place in range(width)]
        self._places = places
        self._quoted = quoted
        self._convert = pacsv.ConvertOptions(
            include_columns=[str(place) for place in places.values()],
            column_types=dict.fromkeys(self._columns, pa.string()),
            strings_can_be_null=False,
        )

    def __call__(self, data: bytes, first: int) -> tuple[CsvBlock, int]:
        """(the block, how many lines it has) of a chunk whose first line has number ``first``."""
        data = _clean(data)
        table, bad = self._parse(data, self._quoted)
        if self._quoted and len(table) + len(bad) != len(data.splitlines()):
            # A stray quote swallowed the lines that follow it.
            data = data.replace(b'"', b"")
            table, bad = self._parse(data, quoted=False)
        count = len(table) + len(bad)
        lines = np.delete(np.arange(count, dtype=np.int64), [row.number - 1 for row in bad])
        columns = {name: table[str(place)].combine_chunks() for name, place in self._places.items()}
        malformed = [
            (
                first + row.number - 1,
                f"{row.actual_columns} columns where {row.expected_columns} should be",
                row.text.encode(),
            )
            for row in bad
        ]
        full = _full_lines(data, lines, columns)
        if full is not None:
            lines = lines[full]
            columns = {name: column.filter(pa.array(full)) for name, column in columns.items()}
        return CsvBlock(columns, lines + first, malformed), count

    def _parse(self, data: bytes, quoted: bool) -> tuple[pa.Table, list[Any]]:
        bad: list[Any] = []

        def set_aside(row: Any) -> str:
            bad.append(row)
            return "skip"

        table = pacsv.read_csv(
            pa.BufferReader(data),
            # One block: rows are numbered within it, and no line straddles two.
            pacsv.ReadOptions(
                block_size=len(data) + 1, use_threads=False, column_names=self._columns
            ),
            pacsv.ParseOptions(
                quote_char='"' if quoted else False,
                ignore_empty_lines=False,
                invalid_row_handler=set_aside,
            ),
            self._convert,
        )
        return table, bad


def _clean(data: bytes) -> bytes:
    """UTF-8 in which only line feeds end lines: what pyarrow numbers lines by, and can read."""
    if not data.isascii():
        data = data.decode("utf-8", "replace").encode()
    if data.count(b"\r") != data.count(b"\r\n"):
        data = re.sub(rb"\r(?!\n)", b" ", data)
    return data


def _full_lines(
    data: bytes, lines: npt.NDArray[np.int64], columns: dict[str, pa.Array]
) -> npt.NDArray[np.bool_] | None:
    """Which rows are of lines that are not empty; None where all are."""
    first = next(iter(columns.values()))
    if not pc.any(pc.equal(first, "")).as_py():
        return None
    texts = data.split(b"\n")
    return np.array([texts[line] not in (b"", b"\r") for line in lines.tolist()], dtype=bool)
