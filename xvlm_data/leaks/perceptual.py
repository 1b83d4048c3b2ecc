"""Perceptual hashes, 64 bits that survive re-compression and resizing, and the search for them.

The hash is the usual DCT one (`imagehash.phash` computes the same): 32 x 32 grey values, the 8 x 8
lowest frequencies of their cosine transform, one bit each: above the median or not. `imagehash`
itself needs scipy and PyWavelets, and this one function of it is ten lines of NumPy.

A mirrored, rotated or strongly cropped picture has another hash: nothing is claimed of those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt
from PIL import Image

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
#: Values of a band, sorted, and the hash that each is of or near.
Band = tuple[Hashes, npt.NDArray[np.int32]]

BITS = 64
#: Standard deviation, in grey levels, below which a picture is plain: its bits would be noise, and
#: all plain pictures alike.
PLAIN = 4.0
#: Candidate pairs compared at a time, and entries an index may have: they bound the memory.
_BLOCK = 1 << 22
_MAX_ENTRIES = 1 << 23
#: And for one hash: the neighbours of a band are listed one by one.
_MAX_NEIGHBOURS = 1 << 12

_SIDE, _LOW = 32, 8


def _cosines(side: int, low: int) -> npt.NDArray[np.float64]:
    """``[low, side]``: the first rows of the DCT-II, without its constant factors."""
    places = (2 * np.arange(side) + 1) * np.pi / (2 * side)
    return np.cos(np.arange(low)[:, None] * places[None, :])


_DCT = _cosines(_SIDE, _LOW)
_WEIGHTS = (np.uint64(1) << np.arange(BITS, dtype=np.uint64))[::-1]


def perceptual_hash(image: Image.Image) -> int | None:
    """The 64 bits of a picture, first frequency first; None where it is plain."""
    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(grey, dtype=np.float64)
    if values.std() < PLAIN:
        return None
    low = (_DCT @ values @ _DCT.T).ravel()
    return int(_WEIGHTS[low > np.median(low)].sum())


def distances(left: Hashes, right: Hashes) -> npt.NDArray[np.uint8]:
    """``[N]`` differing bits of ``[N]`` pairs."""
    parts = np.ascontiguousarray(left ^ right).view(np.uint16).reshape(*left.shape, 4)
    return _ones()[parts].sum(axis=-1, dtype=np.uint8)


@lru_cache(maxsize=1)
def _ones() -> npt.NDArray[np.uint8]:
    """How many bits of each 16-bit number are set."""
    return np.array([number.bit_count() for number in range(1 << 16)], np.uint8)


@dataclass(frozen=True)
class _Plan:
    """How 64 bits are cut into bands, of which one is within ``radius`` when all are near."""

    bands: int
    radius: int

    @classmethod
    def best(cls, distance: int, size: int) -> _Plan:
        """The plan with the fewest candidates among those whose index is of bounded size.

        Of ``bands`` bands one differs in at most ``distance // bands`` bits (pigeonhole).
        """
        plans = [cls(bands, distance // bands) for bands in range(1, distance + 2)]
        most = min(_MAX_NEIGHBOURS, _MAX_ENTRIES // max(size, 1))
        small = [plan for plan in plans if plan.entries <= most]
        return min(small or [plans[-1]], key=lambda plan: plan.share)

    @property
    def widths(self) -> list[int]:
        """Bits of each band."""
        return [BITS // self.bands + (i < BITS % self.bands) for i in range(self.bands)]

    @property
    def entries(self) -> int:
        """Entries of an index for each hash: the neighbours of each of its bands."""
        return sum(sum(comb(width, r) for r in range(self.radius + 1)) for width in self.widths)

    @property
    def share(self) -> float:
        """The share of all pairs that become candidates, were the bits independent."""
        return sum(
            sum(comb(width, r) for r in range(self.radius + 1)) / 2**width for width in self.widths
        )


class HammingIndex:
    """Finds the hashes within a distance of a query, exactly, without comparing with all.

    The hashes are cut into bands; each band is entered together with all values near it, so that a
    query looks up one value a band, and only what it finds there is compared.

    Attributes:
        hashes: ``[N]``.
        distance: differing bits up to which hashes are near.
        bands: what is looked up.
    """

    def __init__(self, hashes: Hashes, distance: int, bands: Sequence[Band] | None = None) -> None:
        """Prepare the search; ``bands`` are those of an earlier index of the same hashes."""
        self.hashes = np.asarray(hashes, dtype=np.uint64)
        self.distance = distance
        plan = _Plan.best(distance, len(self.hashes))
        self._widths = plan.widths
        self._shifts = [sum(plan.widths[:band]) for band in range(plan.bands)]
        if bands is None:
            bands = [
                self._enter(shift, width, plan.radius)
                for shift, width in zip(self._shifts, self._widths, strict=True)
            ]
        self.bands = list(bands)

    @staticmethod
    def band_count(distance: int, size: int) -> int:
        """How many bands an index of ``size`` hashes has."""
        return _Plan.best(distance, size).bands

    def _enter(self, shift: int, width: int, radius: int) -> Band:
        masks = _near(width, radius)
        values = (_band(self.hashes, shift, width)[:, None] ^ masks[None, :]).ravel()
        order = np.argsort(values, kind="stable")
        return values[order], (order // len(masks)).astype(np.int32)

    def search(self, queries: Hashes) -> tuple[Places, Places, npt.NDArray[np.uint8]]:
        """All near pairs, as (place in ``queries``, place in the index, distance), sorted."""
        queries = np.asarray(queries, dtype=np.uint64)
        size = max(len(self.hashes), 1)
        pairs = np.concatenate(
            [
                np.zeros(0, np.int64),
                *(
                    left * size + right
                    for number in range(len(self.bands))
                    for left, right in self._candidates(queries, number)
                ),
            ]
        )
        left, right = np.divmod(np.unique(pairs), size)
        return left, right, distances(queries[left], self.hashes[right])

    def _candidates(self, queries: Hashes, number: int) -> Iterator[tuple[Places, Places]]:
        """Near pairs that agree in a band, block by block."""
        values, owners = self.bands[number]
        wanted = _band(queries, self._shifts[number], self._widths[number])
        first = np.searchsorted(values, wanted, "left")
        counts = np.searchsorted(values, wanted, "right") - first
        ends = np.cumsum(counts)
        start = 0
        while start < len(queries):
            done = ends[start - 1] if start else 0
            stop = max(int(np.searchsorted(ends, done + _BLOCK, "right")), start + 1)
            here = counts[start:stop]
            left = np.repeat(np.arange(start, stop), here)
            step = np.arange(len(left)) - np.repeat(np.cumsum(here) - here, here)
            right = owners[np.repeat(first[start:stop], here) + step].astype(np.int64)
            near = distances(queries[left], self.hashes[right]) <= self.distance
            yield left[near], right[near]
            start = stop


def _band(hashes: Hashes, shift: int, width: int) -> Hashes:
    return (hashes >> np.uint64(shift)) & np.uint64(2**width - 1)


def _near(width: int, radius: int) -> Hashes:
    """All numbers of ``width`` bits with at most ``radius`` ones."""
    ones = [places for r in range(radius + 1) for places in combinations(range(width), r)]
    return np.array([sum(1 << place for place in places) for places in ones], dtype=np.uint64)
