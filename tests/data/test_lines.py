"""Ranges of line-oriented files against ``bytes.split``."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_data.errors import UserError
from xvlm_data.raw import lines as lines_module
from xvlm_data.raw.lines import read_lines

BOM = b"\xef\xbb\xbf"


def expected(data: bytes) -> list[bytes]:
    lines = data.removeprefix(BOM).split(b"\n")
    if not lines[-1]:
        del lines[-1]  # what follows the last line end is no line
    return [line.removesuffix(b"\r") for line in lines]


@settings(max_examples=400)
@given(
    pieces=st.lists(
        st.sampled_from(
            [b"\n", b"\r\n", b"\r", b"a", b"\t", b"long " * 9, "é".encode(), b"\xff", BOM]
        ),
        min_size=1,
        max_size=40,
    ),
    mark=st.booleans(),
    cuts=st.lists(st.integers(0, 200) | st.integers(0, 5), max_size=8),
    chunk=st.integers(1, 60),
)
def test_every_line_is_in_one_range_wherever_the_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[bytes],
    mark: bool,
    cuts: list[int],
    chunk: int,
) -> None:
    data = BOM * mark + b"".join(pieces)
    path = tmp_path_factory.mktemp("lines") / "x.tsv"
    path.write_bytes(data)
    starts = sorted({0, *(cut for cut in cuts if cut < len(data))})
    found: list[bytes] = []
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        number = 0
        for first, lines in read_lines(path, start=start, stop=stop, chunk=chunk):
            assert first == number
            number += len(lines)
            found += lines
    assert found == expected(data)


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE", 1_000)
    path = tmp_path / "x.tsv"
    path.write_bytes(b"short\n" + b"x" * 5_000 + b"\nshort\n")
    for start in (0, 3, 8):
        with pytest.raises(UserError, match="a line longer than") as caught:
            list(read_lines(path, start=start, chunk=100))
        assert str(path) in str(caught.value)
    # A range of its own tells no lies about what it has not seen.
    assert list(read_lines(path, stop=3)) == [(0, [b"short"])]


def test_memory_is_bounded_by_the_chunk_not_the_file(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "x.tsv"
    with path.open("wb") as file:
        for _ in range(40):
            file.write(b"a caption of some length\thttp://example.org/1.jpg\n" * 20_000)
    half = path.stat().st_size // 2
    assert half > 19_000_000
    tracemalloc.start()
    count = 0
    for start, stop in ((0, half), (half, None)):
        for _, lines in read_lines(path, start=start, stop=stop, chunk=1 << 16):
            count += len(lines)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 800_000
    assert peak < 2_000_000


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_other_encodings_are_refused_at_the_start_only(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "x.tsv"
    path.write_bytes(mark + b"a\0\n\0")
    with pytest.raises(UserError, match=r"x\.tsv: text in UTF-16, .*iconv -f UTF-16 -t UTF-8"):
        list(read_lines(path))
    path.write_bytes(b"\n" + mark + b"a\n")  # a line that is broken costs no other
    assert list(read_lines(path)) == [(0, [b"", mark + b"a"])]
