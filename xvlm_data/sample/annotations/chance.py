"""Seeded chance for a running number: what a record is does not depend on who makes it, or when.

Files are made block by block in several processes, in orders that scatter what belongs together
(COCO's captions of one image). So whatever two places must agree on is a pure function of a number.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_TABLE = 1 << 16


def _digest(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest())


def mixed(keys: Keys) -> Keys:
    """The finaliser of SplitMix64: neighbouring numbers in, unrelated ones out."""
    with np.errstate(over="ignore"):
        keys = keys + np.uint64(0x9E3779B97F4A7C15)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def keys_of(seed: int, name: str, numbers: Numbers) -> Keys:
    """``[N]`` 64 random bits for each number of a named sequence."""
    with np.errstate(over="ignore"):
        spread = numbers.astype(np.uint64) * np.uint64(0xD1342543DE82EF95)
    return mixed(spread ^ np.uint64(_digest(seed, name)))


def uniform(seed: int, name: str, numbers: Numbers) -> Floats:
    """``[N]`` in [0, 1) for each number of a named sequence."""
    bits: Floats = (keys_of(seed, name, numbers) >> np.uint64(11)).astype(np.float64)
    return bits * 2.0**-53


def block_random(seed: int, name: str, block: int) -> np.random.Generator:
    """Random numbers of one block, where nothing else has to agree with them."""
    return np.random.default_rng([_digest(seed, name), block])


def sixteen_bits(keys: Keys, place: int) -> npt.NDArray[np.intp]:
    """``[N]`` the ``place``-th 16 bits (0 ... 3): an entry of a :class:`Weighted`."""
    return ((keys >> np.uint64(16 * place)) & np.uint64(_TABLE - 1)).astype(np.intp)


class Weighted:
    """Choosing among items by weight, with 16 random bits at a time."""

    def __init__(self, weights: Sequence[float] | Floats) -> None:
        total = np.cumsum(np.asarray(weights, dtype=np.float64))
        steps = (np.arange(_TABLE) + 0.5) / _TABLE * total[-1]
        self._items = np.searchsorted(total, steps, side="right").astype(np.intp)

    def __getitem__(self, bits: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        return self._items[bits]


def zipf(count: int, flat: float = 2.0) -> Floats:
    """``[count]`` weights 1 / (rank + flat), as words of a language are used."""
    weights: Floats = 1.0 / (np.arange(count, dtype=np.float64) + flat)
    return weights


@dataclass(frozen=True)
class Permutation:
    """A rearrangement of 0 ... ``size`` - 1 that needs no memory: neighbours end up far apart."""

    size: int
    factor: int
    shift: int

    @classmethod
    def of(cls, seed: int, name: str, size: int) -> Permutation:
        """The permutation of this seed and name."""
        bits = _digest(seed, f"{name}/order")
        # Near the golden ratio of the size, consecutive places are spread most evenly.
        factor = max(int(size * 0.6180339887) + bits % max(size // 50, 1), 1)
        while math.gcd(factor, size) != 1:
            factor += 1
        return cls(size, factor, (bits >> 20) % size)

    def __getitem__(self, places: Numbers) -> Numbers:
        return (places * self.factor + self.shift) % self.size

    def inverse(self, places: Numbers) -> Numbers:
        """The place that each number came from."""
        return (places - self.shift) % self.size * pow(self.factor, -1, self.size) % self.size


@dataclass(frozen=True)
class Shares:
    """``total`` items divided over ``owners`` so that every division is known without the others.

    Owners come in pairs, of which one has as many more than the mean as the other has fewer.

    Attributes:
        spread: the largest difference from the mean.
    """

    seed: int
    name: str
    total: int
    owners: int
    spread: int

    def starts(self, owners: Numbers) -> Numbers:
        """The number of the first item of each owner; ``owners`` may be one past the last."""
        even = owners * self.total // self.owners
        # The second of a pair starts later (or earlier) by what the first one took more (or less).
        pair = owners // 2
        room = np.minimum(self.spread, self.total // self.owners)
        extra = np.rint((2 * uniform(self.seed, self.name, pair) - 1) * room).astype(np.int64)
        return even + np.where(owners % 2 == 1, extra, 0) * (pair * 2 + 1 < self.owners)

    def counts(self, owners: Numbers) -> Numbers:
        """How many items each owner has."""
        return self.starts(owners + 1) - self.starts(owners)
