"""Overlapping texts of an image against comparing every pair of word sets."""

from __future__ import annotations

import tracemalloc
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_data import overlap
from xvlm_data.overlap import overlapping
from xvlm_data.text import words

#: Words that are few enough to be shared, and what joins or does not join them.
WORDS = st.one_of(
    st.sampled_from(
        [
            "a",
            "red",
            "dog",
            "Dog",
            "dog's",
            "rock'n'roll",
            "'tis",
            "boys'",
            "l'été",
            "straße",
            "STRASSE",
            "ﬁsh",
        ]
    ),
    st.sampled_from(["fish", "٣", "3", "x_y", "日本", "é", "e\u0301", "I", "ı", "K", "ß'ß", "9'9"]),
)
GLUE = st.sampled_from([" ", "  ", "-", ", ", ".", "/", "'", "''", "' ", " '", "\u00a0", ""])
TEXTS = (
    st.lists(st.tuples(WORDS, GLUE), max_size=7).map(
        lambda pairs: "".join(word + glue for word, glue in pairs)
    )
    | st.text(alphabet="ab'é _-\u0345", max_size=6)
    | st.sampled_from(["", "???", "'", "''"])
)
#: Limits at which an index can be exactly the limit, and others.
LIMITS = st.sampled_from(
    [0.0, 0.2, 0.25, 1 / 3, 0.5, 0.6, 2 / 3, 0.75, 0.8, 0.9, 0.99]
) | st.floats(0, 0.99)


def by_pairs(texts: list[str], images: list[int], limit: float) -> list[bool]:
    """Each text against every earlier one that is still there."""
    marked: list[bool] = []
    for _, group in groupby(zip(images, texts, strict=True), lambda pair: pair[0]):
        kept: list[frozenset[str]] = []
        for _, text in group:
            own = words(text)
            near = any(
                len(own & other) > limit * len(own | other) for other in kept if own and other
            )
            marked.append(near)
            if not near:
                kept.append(own)
    return marked


@settings(max_examples=200)
@given(
    images=st.lists(st.lists(TEXTS, max_size=8), max_size=4),
    limit=LIMITS,
    pairs=st.sampled_from([1, 3, 1 << 20]),
    piece=st.sampled_from([1, 4, 9, 1 << 16]),
    skip=st.integers(0, 2),
)
def test_equals_comparing_all_pairs(
    images: list[list[str]], limit: float, pairs: int, piece: int, skip: int
) -> None:
    texts = [text for group in images for text in group]
    numbers = [number for number, group in enumerate(images) for _ in group]
    # As a part of a larger array, whose buffers begin earlier.
    sliced = pa.array(["red dog"] * skip + texts, pa.string()).slice(skip)
    with pytest.MonkeyPatch.context() as patch:
        overlap._powers(), overlap._inverses()  # of the full size, which are kept
        patch.setattr(overlap, "_PAIRS", pairs)
        patch.setattr(overlap, "_PIECE", piece)
        found = overlapping(sliced, np.array(numbers, np.int64), limit)
    assert found.tolist() == by_pairs(texts, numbers, limit)


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=25),
    shift=st.integers(0, 6),
    limit=LIMITS,
)
def test_long_texts_that_share_words_in_every_proportion(
    sizes: list[int], shift: int, limit: float
) -> None:
    texts = [
        " ".join(f"w{(n * shift + k) % 20}" for k in range(size)) for n, size in enumerate(sizes)
    ]
    found = overlapping(pa.array(texts), np.zeros(len(texts), np.int64), limit)
    assert found.tolist() == by_pairs(texts, [0] * len(texts), limit)


def test_a_limit_that_is_met_exactly_is_not_exceeded() -> None:
    texts = pa.array(["a b c", "a b c d"])  # three words of four
    images = np.zeros(2, np.int64)
    assert overlapping(texts, images, 0.75).tolist() == [False, False]
    assert overlapping(texts, images, 0.7499).tolist() == [False, True]


def test_only_the_first_apostrophe_joins_a_word() -> None:
    texts = pa.array(["rock'n'roll", "roll, rock'n", "dogs' 'n' cats", "n dogs cats", "dog's"])
    expected = [False, True, False, True, False]
    assert overlapping(texts, np.zeros(5, np.int64), 0.9).tolist() == expected
    assert by_pairs(texts.to_pylist(), [0] * 5, 0.9) == expected


def test_what_was_left_out_leaves_nothing_out() -> None:
    texts = pa.array(["a b c d", "a b c d e", "b c d e f"])
    assert overlapping(texts, np.zeros(3, np.int64), 0.65).tolist() == [False, True, False]


def test_images_are_apart_and_nothing_is_asked_of_no_texts() -> None:
    same = pa.array(["a dog"] * 3)
    assert overlapping(same, np.array([0, 1, 1]), 0.5).tolist() == [False, False, True]
    assert overlapping(pa.array([], pa.string()), np.zeros(0, np.int64), 0.5).tolist() == []


@pytest.mark.parametrize("count", [4_000])
def test_memory_is_bounded_when_one_image_says_the_same_thousands_of_times(count: int) -> None:
    # All pairs would be 8 million, and 64 MB an array of them.
    texts = pa.array([f"a red dog {'big' if n % 2 else 'small'}" for n in range(count)])
    images = np.zeros(count, np.int64)
    tracemalloc.start()
    found = overlapping(texts, images, 0.75)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.tolist() == [False, False] + [True] * (count - 2)
    assert peak < 20_000_000


def test_memory_is_bounded_when_an_image_has_thousands_of_texts_of_shared_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Distinct texts, each of which shares its words with most others: two million pairs.
    monkeypatch.setattr(overlap, "_PAIRS", 1 << 14)
    texts = [f"the dog n{n}" for n in range(2_000)]
    images = np.zeros(len(texts), np.int64)
    tracemalloc.start()
    found = overlapping(pa.array(texts), images, 0.4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.tolist() == [False] + [True] * 1_999
    assert peak < 40_000_000
