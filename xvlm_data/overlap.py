"""Which regions of an image say almost the same as an earlier one, for many images at once.

Two texts overlap by the Jaccard index of their words, |A ∩ B| / |A ∪ B|. Comparing all pairs is out
of the question for millions of regions, so words become 64-bit numbers, texts of equal words are
found by sorting, and the rest only meets where two texts share one of their rarest words: if the
index is above t, at least m = ⌊t·|A|⌋ + 1 words of A are in B, so one of the |A| − m + 1 rarest is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xvlm_data.text import rows_of, text_bytes, words

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

_FACTOR = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
#: Candidate pairs that are compared at once.
_PAIRS = 1 << 20

#: ASCII word characters in lower case, zero for all others.
_LOWER = np.zeros(256, np.uint8)
for _character in b"abcdefghijklmnopqrstuvwxyz0123456789_":
    _LOWER[[_character, ord(chr(_character).upper())]] = _character
_APOSTROPHE = 39


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
    rows, hashes = _word_sets(texts)
    marked = np.zeros(len(texts), bool)
    sizes = np.bincount(rows, minlength=len(texts))
    marked |= _equal_sets(rows, hashes, images, sizes)
    left = ~marked[rows]
    rows, hashes = rows[left], hashes[left]
    first, second = _candidates(rows, hashes, images, sizes, limit)
    # In order of the later text, so that the earlier one's fate is known.
    order = np.lexsort((first, second))
    for one, other in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if not marked[one]:
            marked[other] = True
    return marked


def _word_sets(texts: pa.Array) -> tuple[Int64s, UInt64s]:
    """The distinct words of each text as (text, number of the word), sorted by both."""
    data, offsets = text_bytes(texts)
    characters = _LOWER[data]
    inside = characters > 0
    joined = data == _APOSTROPHE
    joined[1:] &= inside[:-1]
    joined[:-1] &= inside[1:]
    filled = np.flatnonzero(np.diff(offsets))
    joined[offsets[filled]] = False
    joined[offsets[filled + 1] - 1] = False
    characters[joined] = _APOSTROPHE
    inside |= joined
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    begins[offsets[filled]] = inside[offsets[filled]]
    starts = np.flatnonzero(begins)
    places = np.flatnonzero(inside)
    of_word = np.searchsorted(places, starts)
    lengths = np.diff(of_word, append=len(places))
    rows = rows_of(starts, offsets)
    within = np.arange(len(places)) - np.repeat(of_word, lengths)
    values = (characters[places].astype(np.uint64) + np.uint64(1)) * _powers(within)
    hashes = _mixed(np.add.reduceat(values, of_word)) if len(starts) else np.zeros(0, np.uint64)
    slow = np.zeros(len(texts), bool)
    slow[rows_of(np.flatnonzero(data >= 128), offsets)] = True
    # "rock'n'roll" is two words; only the first apostrophe joins.
    if len(starts):
        apostrophes = np.add.reduceat(joined[places], of_word, dtype=np.int64)
        slow[rows[apostrophes > 1]] = True
    if slow.any():
        fast = ~slow[rows]
        extra = [
            (row, _hash(word))
            for row in np.flatnonzero(slow).tolist()
            for word in words(texts[row].as_py())
        ]
        rows = np.concatenate([rows[fast], np.array([row for row, _ in extra], np.int64)])
        hashes = np.concatenate([hashes[fast], np.array([h for _, h in extra], np.uint64)])
    order = np.lexsort((hashes, rows))
    rows, hashes = rows[order], hashes[order]
    new = _changes(rows, hashes)
    return rows[new], hashes[new]


def _powers(exponents: Int64s) -> UInt64s:
    table = np.full(int(exponents.max(initial=0)) + 1, _FACTOR, np.uint64)
    table[0] = 1
    return np.cumprod(table)[exponents]


def _mixed(values: UInt64s) -> UInt64s:
    """The last steps of splitmix64, so that sums of hashes tell sets apart."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash(word: str) -> int:
    value, power = 0, 1
    for byte in word.encode("utf-8", "surrogatepass"):
        value = (value + (byte + 1) * power) & _MASK
        power = (power * _FACTOR) & _MASK
    return int(_mixed(np.array([value], np.uint64))[0])


def _changes(*columns: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Where any of some sorted columns differs from the row before; True for the first row."""
    new = np.zeros(len(columns[0]), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def _equal_sets(
    rows: Int64s, hashes: UInt64s, images: Int64s, sizes: Int64s
) -> npt.NDArray[np.bool_]:
    """All but the first of the texts of an image that have the same words.

    Whatever the first overlaps with, they overlap with too, so they go in any case.
    """
    marked = np.zeros(len(images), bool)
    texts = np.flatnonzero(sizes)
    if not len(texts):
        return marked
    sums = np.add.reduceat(hashes, np.searchsorted(rows, texts))
    order = np.lexsort((texts, sizes[texts], sums, images[texts]))
    new = _changes(images[texts][order], sums[order], sizes[texts][order])
    marked[texts[order[~new]]] = True
    return marked


def _candidates(
    rows: Int64s, hashes: UInt64s, images: Int64s, sizes: Int64s, limit: float
) -> tuple[Int64s, Int64s]:
    """Pairs (earlier, later) of texts of an image whose index is above the limit."""
    none = np.zeros(0, np.int64)
    if not len(rows):
        return none, none
    # Words of an image get numbers, so that (text, word) is one sortable number.
    image = images[rows]
    order = np.lexsort((hashes, image))
    new = _changes(image[order], hashes[order])
    word = np.empty(len(rows), np.int64)
    word[order] = np.cumsum(new) - 1
    frequency = np.bincount(word)[word]
    # Rarest first within each text, in an order that all texts of an image share.
    order = np.lexsort((word, frequency, rows))
    sorted_rows = rows[order]
    begin = np.flatnonzero(_changes(sorted_rows))
    lengths = np.diff(begin, append=len(sorted_rows))
    rank = np.arange(len(order)) - np.repeat(begin, lengths)
    wanted = sizes[sorted_rows] - (np.floor(limit * sizes[sorted_rows]).astype(np.int64) + 1) + 1
    chosen = order[rank < wanted]
    by_word = chosen[np.lexsort((rows[chosen], word[chosen]))]
    keys = np.sort(rows * (int(word.max()) + 1) + word)
    firsts, seconds = [none], [none]
    for one, other in _pairs(word[by_word], rows[by_word]):
        shared = _shared(one, other, keys, rows, word, sizes)
        union = sizes[one] + sizes[other] - shared
        close = shared > limit * union
        firsts.append(one[close])
        seconds.append(other[close])
    return np.concatenate(firsts), np.concatenate(seconds)


def _pairs(groups: Int64s, members: Int64s) -> list[tuple[Int64s, Int64s]]:
    """All pairs of members within each group (sorted), each pair once, in bounded pieces."""
    begin = np.flatnonzero(_changes(groups))
    lengths = np.diff(begin, append=len(groups))
    later = np.arange(len(groups)) - np.repeat(begin, lengths)  # partners that come before
    done = np.cumsum(later)
    pieces = []
    start = 0
    while start < len(groups):
        before = int(done[start - 1]) if start else 0
        stop = max(int(np.searchsorted(done, before + _PAIRS)), start + 1)
        counts = later[start:stop]
        second = np.repeat(np.arange(start, min(stop, len(groups))), counts)
        steps = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        first = second - 1 - steps
        one, other = members[first], members[second]
        if len(one):
            pairs = np.unique(one * (int(other.max()) + 1) + other)
            pieces.append(np.divmod(pairs, int(other.max()) + 1))
        start = stop
    return pieces


def _shared(
    one: Int64s, other: Int64s, keys: Int64s, rows: Int64s, word: Int64s, sizes: Int64s
) -> Int64s:
    """How many words two texts share; ``keys`` are all (text, word), sorted, as one number."""
    begin = np.searchsorted(rows, one)
    lengths = sizes[one]
    steps = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    words_of_one = word[np.repeat(begin, lengths) + steps]
    wanted = np.repeat(other, lengths) * (int(word.max()) + 1) + words_of_one
    places = np.searchsorted(keys, wanted)
    places[places == len(keys)] = 0
    hits = keys[places] == wanted
    return np.add.reduceat(hits, np.cumsum(lengths) - lengths, dtype=np.int64)
