"""Lines of large CSV files with a header into columns.

Many lines are parsed in one call (``pyarrow.csv``), and yet one bad line costs one line, and its
number is known. Fields are texts; :func:`to_floats` makes numbers of them where they are numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from xvlm_data.errors import UserError
from xvlm_data.raw.files import BOM, open_raw
from xvlm_data.raw.lines import MAX_LINE
from xvlm_data.storage import AnyPath

#: What pyarrow reads as a number.
_NUMBER = r"(?i)^[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)$"


@dataclass(frozen=True)
class CsvHeader:
    """The first line of a file.

    Attributes:
        line: as `raw.lines.read_lines` gives it.
        width: how many columns there are.
        places: of the columns to read, by name; an optional one that is not there is absent.
    """

    line: bytes
    width: int
    places: dict[str, int]


@dataclass
class CsvBlock:
    """Consecutive lines of a file.

    Attributes:
        columns: N texts by column name.
        lines: ``[N]`` the number of each line.
        malformed: (line, what is wrong, raw text) of lines that have not as many fields as the
            header. Empty lines, and the header, are no records.
    """

    columns: dict[str, pa.Array]
    lines: npt.NDArray[np.int64]
    malformed: list[tuple[int, str, bytes]]


def read_header(path: AnyPath, wanted: Sequence[str], optional: Sequence[str] = ()) -> CsvHeader:
    """Find columns of a comma-separated file by name.

    Args:
        path: the file.
        wanted: columns that have to be there.
        optional: columns to read where the file has them.

    Raises:
        UserError: missing, not the data, or a wanted column is missing.
    """
    with open_raw(path) as file:
        line = file.readline(MAX_LINE).rstrip(b"\r\n").removeprefix(BOM)
    text = line.decode("utf-8", "replace")
    try:
        names = [name.strip() for name in next(csv.reader([text]), [])]
    except csv.Error:
        names = []
    places = {name: names.index(name) for name in (*wanted, *optional) if name in names}
    if missing := [name for name in wanted if name not in places]:
        raise UserError(
            f"{path}: no {missing[0]} column (its first line is {text[:120]!r})",
            "is it the right file?",
        )
    return CsvHeader(line, len(names), places)


def parse_lines(header: CsvHeader, first: int, lines: list[bytes]) -> CsvBlock:
    """Columns of some lines, in UTF-8; what is none becomes U+FFFD.

    Args:
        header: of their file.
        first: the number of the first of them.
        lines: without their ends; the header is left out where it is the first.
    """
    # It is line 0 of its file, but workers count lines from where they begin.
    if first == 0 and lines and lines[0] == header.line:
        first, lines = 1, lines[1:]
    numbers = np.arange(first, first + len(lines), dtype=np.int64)
    if b"" in lines:
        numbers = numbers[[line != b"" for line in lines]]
        lines = [line for line in lines if line]
    if not lines:
        columns = dict.fromkeys(header.places, pa.array([], pa.string()))
        return CsvBlock(columns, numbers, [])
    data = _clean(b"\n".join(lines))
    table, bad = _parse(header, data, quoted=b'"' in header.line)
    if len(table) + len(bad) != len(lines):  # a stray quote swallowed the lines that follow it
        table, bad = _parse(header, data.replace(b'"', b""), quoted=False)
    malformed = [
        (
            int(numbers[row.number - 1]),
            f"{row.actual_columns} columns where {row.expected_columns} should be",
            row.text.encode(),
        )
        for row in bad
    ]
    columns = {name: table[str(place)].combine_chunks() for name, place in header.places.items()}
    return CsvBlock(columns, np.delete(numbers, [row.number - 1 for row in bad]), malformed)


def _parse(header: CsvHeader, data: bytes, *, quoted: bool) -> tuple[pa.Table, list[Any]]:
    """(rows, lines that are none), numbered from 1. Columns go by position: names may repeat."""
    bad: list[Any] = []

    def set_aside(row: Any) -> str:
        bad.append(row)
        return "skip"

    names = [str(place) for place in range(header.width)]
    table = pacsv.read_csv(
        pa.BufferReader(data),
        # One block: rows are numbered within it.
        pacsv.ReadOptions(block_size=len(data) + 1, use_threads=False, column_names=names),
        pacsv.ParseOptions(
            quote_char='"' if quoted else False,
            ignore_empty_lines=False,
            invalid_row_handler=set_aside,
        ),
        pacsv.ConvertOptions(
            include_columns=[str(place) for place in header.places.values()],
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=False,
        ),
    )
    return table, bad


def _clean(data: bytes) -> bytes:
    """UTF-8 in which only line feeds end lines: what pyarrow can read, and numbers lines by."""
    if not data.isascii():
        data = data.decode("utf-8", "replace").encode()
    return data.replace(b"\r", b" ") if b"\r" in data else data


def to_floats(texts: pa.Array) -> pa.Array:
    """float64 of each text, null where it is no number; NaN and infinities are numbers."""
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        trimmed = pc.utf8_trim_whitespace(texts)
        valid = pc.match_substring_regex(trimmed, _NUMBER)
        return pc.if_else(valid, trimmed, None).cast(pa.float64())
