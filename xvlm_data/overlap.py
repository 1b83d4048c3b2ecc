"""Which regions of an image say almost the same as an earlier one, for many images at once.

Two texts overlap by the Jaccard index of their words, |A ∩ B| / |A ∪ B|. Comparing all pairs is out
of the question for millions of regions, so words become 64-bit numbers, texts of equal words are
found by sorting, and the rest only meets where two texts share one of their rarest words: if the
index is above t, at least m = ⌊t·|A|⌋ + 1 words of A are in B, so one of the |A| − m + 1 rarest is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xvlm_data.sorting import stable_order
from xvlm_data.text import rows_of, text_bytes, words

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_FACTOR = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
#: Bytes of text whose words are numbered at once.
_PIECE = 1 << 16
#: Candidate pairs that are compared at once.
_PAIRS = 1 << 20

#: ASCII word characters in lower case, zero for all others.
_LOWER = np.zeros(256, np.uint8)
for _character in b"abcdefghijklmnopqrstuvwxyz0123456789_":
    _LOWER[[_character, ord(chr(_character).upper())]] = _character
_APOSTROPHE = 39
#: What a byte counts for in the number of its word: its lower case, plus one.
_WEIGHTS = _LOWER.astype(np.uint64)
_WEIGHTS[_APOSTROPHE] = _APOSTROPHE
_WEIGHTS += np.uint64(1)


def overlapping(texts: pa.Array, images: Int64s, limit: float) -> npt.NDArray[np.bool_]:
    """Mark the texts whose words overlap those of an earlier unmarked text of their image too much.

    Texts without any word ("???") overlap with nothing.

    Args:
        texts: ``[N]`` strings.
        images: ``[N]`` which image each belongs to, ascending.
        limit: the largest Jaccard index that is still distinct.

    Returns:
        ``[N]`` True where a text is to be left out.
    """
    marked = np.zeros(len(texts), bool)
    tokens = _Tokens.of(*_words_of(texts), images)
    _mark_equal(tokens, marked)
    _mark_close(tokens.only(~marked), limit, marked)
    return marked


@dataclass(frozen=True)
class _Tokens:
    """The distinct words of texts, sorted by text and then from rare to frequent.

    Attributes:
        rows: ``[T]`` the text of each.
        words: ``[T]`` a number that stands for the same word throughout an image, and no other;
            rarer words of an image have smaller numbers, in an order that all its texts share.
        sizes: ``[N]`` how many distinct words each text has.
    """

    rows: Int64s
    words: Int64s
    sizes: Int64s

    @classmethod
    def of(cls, rows: Int64s, hashes: UInt64s, images: Int64s) -> _Tokens:
        """From words in any order, repeats included, by 64-bit numbers."""
        own = hashes ^ _mixed((images + 1).astype(np.uint64) * np.uint64(_FACTOR))[rows]
        words = pa.array(own).dictionary_encode().indices.to_numpy()
        frequency = np.bincount(words)
        by_frequency = stable_order(frequency)
        number = np.empty(len(frequency), np.int64)
        number[by_frequency] = np.arange(len(frequency))
        bits = len(frequency).bit_length()
        keys = (rows << bits) | number[words]
        keys.sort(kind="stable")  # texts come in order already, which this kind makes use of
        keys = keys[_changes(keys)]
        rows = keys >> bits
        return cls(rows, keys & ((1 << bits) - 1), np.bincount(rows, minlength=len(images)))

    def only(self, texts: npt.NDArray[np.bool_]) -> _Tokens:
        """Those of some texts."""
        keep = texts[self.rows]
        return _Tokens(self.rows[keep], self.words[keep], np.where(texts, self.sizes, 0))


def _words_of(texts: pa.Array) -> tuple[Int64s, UInt64s]:
    """The words of each text as (text, number of the word), repeats included, in any order."""
    data, offsets = text_bytes(texts)
    starts, stops, slow = _word_places(data, offsets)
    rows = np.repeat(np.arange(len(texts)), np.diff(np.searchsorted(starts, offsets)))
    hashes = np.zeros(len(starts), np.uint64)
    # A word's number is Σ (byte + 1)·f^i mod 2⁶⁴ over its bytes: from sums over all that came
    # before, made independent of where it stands by the inverse of f, in pieces that fit the cache.
    powers, inverses = _powers(), _inverses()
    begin = 0
    while begin < len(starts):
        origin = int(starts[begin])
        end = max(int(np.searchsorted(stops, origin + _PIECE, side="right")), begin + 1)
        length = int(stops[end - 1]) - origin
        if length > _PIECE:  # one very long word
            slow[rows[begin]] = True
            begin = end
            continue
        sums = np.zeros(length + 1, np.uint64)
        np.cumsum(_WEIGHTS[data[origin : origin + length]] * powers[:length], out=sums[1:])
        here = starts[begin:end] - origin
        hashes[begin:end] = (sums[stops[begin:end] - origin] - sums[here]) * inverses[here]
        begin = end
    if slow.any():
        fast = ~slow[rows]
        places = np.flatnonzero(slow)
        extra = [
            (row, _hash(word))
            for row, text in zip(places.tolist(), texts.take(places).to_pylist(), strict=True)
            for word in words(text)
        ]
        rows = np.concatenate([rows[fast], np.array([row for row, _ in extra], np.int64)])
        hashes = np.concatenate([hashes[fast], np.array([h for _, h in extra], np.uint64)])
    return rows, hashes


def _word_places(
    data: npt.NDArray[np.uint8], offsets: Int64s
) -> tuple[Int64s, Int64s, npt.NDArray[np.bool_]]:
    """Where words begin and end, and which texts these places are not right for."""
    inside = _LOWER[data] > 0
    joined = data == _APOSTROPHE
    joined[1:] &= inside[:-1]
    joined[:-1] &= inside[1:]
    filled = np.flatnonzero(np.diff(offsets))
    joined[offsets[filled]] = False
    joined[offsets[filled + 1] - 1] = False
    inside |= joined
    # One byte more on each side, and a break wherever a text ends: words do not go over it.
    edges = np.zeros(len(data) + 1, bool)
    edges[:-1] = inside
    edges[1:] ^= inside
    seams = offsets[1:-1]
    seams = seams[(seams > 0) & (seams < len(data))]
    if len(seams):
        seams = seams[_changes(seams)]
    through = seams[inside[seams - 1] & inside[seams]]
    places = np.flatnonzero(edges)
    if len(through):
        # The word that ends there, and the one that begins.
        places = np.sort(np.concatenate([places, through, through]), kind="stable")
    starts, stops = places[::2], places[1::2]
    slow = np.zeros(len(offsets) - 1, bool)
    slow[rows_of(np.flatnonzero(data >= 128), offsets)] = True
    # "rock'n'roll" is two words; only the first apostrophe joins.
    apostrophes = np.flatnonzero(joined)
    of_word = np.searchsorted(starts, apostrophes, side="right")
    again = apostrophes[1:][of_word[1:] == of_word[:-1]]
    slow[rows_of(again, offsets)] = True
    return starts, stops, slow


@lru_cache(maxsize=1)
def _powers() -> UInt64s:
    table = np.full(_PIECE + 1, _FACTOR, np.uint64)
    table[0] = 1
    return np.cumprod(table)


@lru_cache(maxsize=1)
def _inverses() -> UInt64s:
    table = np.full(_PIECE + 1, pow(_FACTOR, -1, 2**64), np.uint64)
    table[0] = 1
    return np.cumprod(table)


def _mixed(values: UInt64s) -> UInt64s:
    """The last steps of splitmix64: numbers that can be added and combined."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash(word: str) -> int:
    """The number of one word, as :func:`_words_of` has it."""
    value, power = 0, 1
    for byte in word.encode("utf-8", "surrogatepass"):
        value += (byte + 1) * power
        power = (power * _FACTOR) & _MASK
    return value & _MASK


def _changes(*columns: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Where any of some sorted columns differs from the row before; True for the first row."""
    new = np.zeros(len(columns[0]), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def _mark_equal(tokens: _Tokens, marked: npt.NDArray[np.bool_]) -> None:
    """Mark all but the first of the texts of an image that have the same words.

    Whatever the first overlaps with, they overlap with too, so they go in any case.
    """
    texts = np.flatnonzero(tokens.sizes)
    if not len(texts):
        return
    begin = np.cumsum(tokens.sizes[texts]) - tokens.sizes[texts]
    sums = np.add.reduceat(_mixed(tokens.words.astype(np.uint64) + np.uint64(1)), begin)
    # Words are the same number in no two images, so equal sums are of one image.
    codes = pa.array(sums).dictionary_encode().indices.to_numpy()
    seen = np.maximum.accumulate(codes)
    again = np.zeros(len(codes), bool)
    again[1:] = codes[1:] <= seen[:-1]
    marked[texts[again]] = True


def _mark_close(tokens: _Tokens, limit: float, marked: npt.NDArray[np.bool_]) -> None:
    """Mark texts whose index with an earlier unmarked text of their image is above the limit."""
    rows, words, sizes = tokens.rows, tokens.words, tokens.sizes
    if not len(rows):
        return
    bits, row_bits = int(words.max()).bit_length(), int(rows.max()).bit_length()
    begin = np.cumsum(sizes) - sizes
    rank = np.arange(len(rows)) - begin[rows]
    of_text = sizes[rows]
    chosen = rank < of_text - np.floor(limit * of_text).astype(np.int64)
    groups = (words[chosen] << row_bits) | rows[chosen]
    groups = groups[stable_order(words[chosen])]  # within a word, rows ascend already
    keys = (rows << bits) | words
    done = -1
    while len(groups):
        one, other, done = _pairs(groups >> row_bits, groups & ((1 << row_bits) - 1), done)
        if not len(one):
            return
        shared = _shared(one, other, keys, begin, words, sizes, bits)
        close = shared > limit * (sizes[one] + sizes[other] - shared)
        # In order of the later text, so that the earlier one's fate is known.
        for first, second in zip(one[close].tolist(), other[close].tolist(), strict=True):
            if not marked[first]:
                marked[second] = True
        groups = groups[~marked[groups & ((1 << row_bits) - 1)]]


def _pairs(groups: Int64s, members: Int64s, done: int) -> tuple[Int64s, Int64s, int]:
    """Pairs of members of the same group, each pair once, sorted by the larger and the smaller.

    Pairs whose larger member is the same come together, and about :data:`_PAIRS` at once.

    Args:
        groups: ``[N]`` ascending.
        members: ``[N]`` ascending within each group.
        done: the largest member whose pairs came before.

    Returns:
        The smaller and the larger of each pair, and the new ``done``.
    """
    begin = np.flatnonzero(_changes(groups))
    before = np.arange(len(groups)) - np.repeat(begin, np.diff(begin, append=len(groups)))
    places = np.flatnonzero((members > done) & (before > 0))
    places = places[stable_order(members[places])]
    if not len(places):
        return places, places, done
    larger = members[places]
    stop = int(np.searchsorted(np.cumsum(before[places]), _PAIRS, side="right"))
    if stop < len(places):
        stop = int(np.searchsorted(larger, larger[stop]))
        stop = stop or int(np.searchsorted(larger, larger[0], side="right"))
    counts = before[places[:stop]]
    second = np.repeat(places[:stop], counts)
    steps = np.arange(len(second)) - np.repeat(np.cumsum(counts) - counts, counts)
    size = int(larger[stop - 1]) + 1
    pairs = members[second] * size + members[second - 1 - steps]
    pairs.sort()
    other, one = np.divmod(pairs[_changes(pairs)], size)
    return one, other, size - 1


def _shared(
    one: Int64s,
    other: Int64s,
    keys: Int64s,
    begin: Int64s,
    words: Int64s,
    sizes: Int64s,
    bits: int,
) -> Int64s:
    """How many words two texts share; ``keys`` are all (text, word), sorted, as one number."""
    lengths = sizes[one]
    ends = np.cumsum(lengths)
    steps = np.arange(int(ends[-1])) - np.repeat(ends - lengths - begin[one], lengths)
    wanted = (np.repeat(other, lengths) << bits) | words[steps]
    places = np.searchsorted(keys, wanted)
    places[places == len(keys)] = 0
    return np.add.reduceat(keys[places] == wanted, ends - lengths, dtype=np.int64)
