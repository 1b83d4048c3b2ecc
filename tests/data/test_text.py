"""What texts become, against the standard library."""

from __future__ import annotations

import re
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_data.text import normalise_text, normalise_texts, text_bytes

#: Blanks of every kind, control characters, what composes, and what looks like one of those.
PIECES = st.sampled_from(
    [
        "\r\n",
        "  ",
        "e\u0301",
        *" ~!a\t\n\x00\x1c\x7f\x85\xa0\u1680\u2003\u2028\u3000\u200b\ufeff\u180e\u0344한",
    ]
)
TEXTS = (
    st.lists(PIECES | st.text(max_size=3), max_size=8).map("".join)
    | st.text(alphabet=st.characters(min_codepoint=31, max_codepoint=127), max_size=8)
    | st.text(alphabet=" ab", max_size=6)
)


def by_hand(text: str) -> str:
    composed = unicodedata.normalize("NFC", text)
    blank = "".join(
        " " if unicodedata.category(c) in ("Zs", "Zl", "Zp", "Cc") else c for c in composed
    )
    return re.sub(" +", " ", blank).strip(" ")


@settings(max_examples=250)
@given(texts=st.lists(TEXTS, max_size=6), cut=st.tuples(st.integers(0, 3), st.integers(0, 6)))
def test_normal_texts_are_what_the_standard_library_makes_of_them(
    texts: list[str], cut: tuple[int, int]
) -> None:
    start, length = cut
    whole = pa.array(texts, pa.string())
    assert normalise_texts(whole).to_pylist() == [by_hand(text) for text in texts]
    # A part of an array shares the buffers of the whole.
    part = whole.slice(start, length)
    assert normalise_texts(part).to_pylist() == [by_hand(t) for t in texts[start:][:length]]


@given(texts=st.lists(TEXTS, max_size=6))
def test_normal_texts_stay_as_they_are(texts: list[str]) -> None:
    once = normalise_texts(pa.array(texts, pa.string()))
    assert normalise_texts(once).equals(once)


@pytest.mark.parametrize("code", [*range(0x21, 0x7F)])
def test_printable_characters_stay(code: int) -> None:
    assert normalise_text(f"{chr(code)} {chr(code)}") == f"{chr(code)} {chr(code)}"


@given(
    texts=st.lists(st.text(max_size=4), max_size=5),
    cut=st.tuples(st.integers(0, 3), st.integers(0, 5)),
)
def test_bytes_of_texts_are_their_utf8(texts: list[str], cut: tuple[int, int]) -> None:
    start, length = cut
    part = pa.array(texts, pa.string()).slice(start, length)
    data, offsets = text_bytes(part)
    pieces = [
        data[a:b].tobytes()
        for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
    assert pieces == [text.encode() for text in texts[start:][:length]]
