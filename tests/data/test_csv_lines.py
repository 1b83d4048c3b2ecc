"""Lines of CSV: every line is a row or malformed, under its right number, whatever the bytes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvlm_data.errors import UserError
from xvlm_data.raw.csv_lines import parse_lines, read_header, to_floats
from xvlm_data.raw.lines import read_lines

_FIELD = st.text(alphabet='ab1.é"\x00 ;', max_size=4)
_LINE = st.lists(_FIELD, min_size=1, max_size=4)


def read(path: Path, chunk: int = 64) -> tuple[dict[int, tuple[str, ...]], dict[int, str]]:
    rows, malformed = {}, {}
    header = read_header(path, ["a", "c"])
    for first, lines in read_lines(path, chunk=chunk):
        block = parse_lines(header, first, lines)
        values = zip(block.columns["a"].to_pylist(), block.columns["c"].to_pylist(), strict=True)
        rows |= dict(zip(block.lines.tolist(), values, strict=True))
        malformed |= {line: raw.decode() for line, _, raw in block.malformed}
    return rows, malformed


@given(
    lines=st.lists(_LINE, max_size=30),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
    chunk=st.integers(1, 200),
)
def test_every_line_is_a_row_or_malformed(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[list[str]],
    end: str,
    last: bool,
    chunk: int,
) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    texts = [",".join(fields) for fields in lines]
    path.write_bytes((end.join(["a,b,c", *texts]) + (end if last else "")).encode())
    rows, malformed = read(path, chunk)
    expected_rows, expected_bad = {}, {}
    for number, text in enumerate(texts, 1):
        fields = text.split(",")
        if len(fields) == 3:
            expected_rows[number] = (fields[0], fields[2])
        elif text:
            expected_bad[number] = text
    assert rows == expected_rows
    assert malformed == expected_bad


def test_bytes_that_are_no_text_cost_their_line_only(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b,c\n1,2,3\n\xff,1\n4\r4,\xfe,6\n7,8,9\xff\n")
    rows, malformed = read(path)
    assert rows == {1: ("1", "3"), 3: ("4 4", "6"), 4: ("7", "9\ufffd")}
    assert list(malformed) == [2]


def test_columns_go_by_name_and_quotes_by_the_header(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('"c","b","a"\n"1,5","x","2"\n')
    assert read(path)[0] == {1: ("2", "1,5")}
    path.write_text("c,b,a,b\n1,x,2,x\n")
    assert read(path)[0] == {1: ("2", "1")}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,2\n", "no c column"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "HTML page"),
        (b"", "empty file"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read(path, 1 << 20)


@given(st.lists(st.text(alphabet="+-.0123456789eE naifty_x", max_size=8), max_size=8))
def test_floats_are_those_that_python_reads(texts: list[str]) -> None:
    for text, value in zip(texts, to_floats(pa.array(texts, pa.string())).to_pylist(), strict=True):
        try:
            expected = None if "_" in text else float(text)
        except ValueError:
            expected = None
        assert repr(value) == repr(expected)


def test_a_stray_quote_does_not_swallow_the_lines_after_it(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('"a","b","c"\n"1","2","3"\n"4","5","6\n"7","8","9"\n"x"\n')
    rows, malformed = read(path, 1 << 10)
    assert rows == {1: ("1", "3"), 2: ("4", "6"), 3: ("7", "9")}
    assert list(malformed) == [4]
