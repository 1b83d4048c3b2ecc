"""What the releases have in common: a plan of files, and records gone wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xvlm_data.sample.annotations.boxes import Boxes
from xvlm_data.sample.annotations.chance import Numbers, Permutation
from xvlm_data.sample.annotations.files import File
from xvlm_data.sample.annotations.truth import Fate, Fates, Tally
from xvlm_data.sample.release import Ids

Record = dict[str, Any]

#: Primes above the real releases' largest ids, for scales above theirs.
_ROOMY_PRIMES = (99_999_989, 2_147_483_647)


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        scale: 1 is the size of the real release.
        seed: of everything drawn by lot.
        invalid: the share of the records of each kind that are spoilt.
    """

    scale: float
    seed: int
    invalid: float


@dataclass(frozen=True)
class Plan:
    """The files of a release, and how the truth about them follows from what was counted.

    Attributes:
        files: relative to nothing: with their whole paths.
        truth: from the tally of all files to the content of ``truth.json``, but for its head.
    """

    files: Sequence[File]
    truth: Callable[[Tally], dict[str, Any]]


def ids_for(count: int, seed: int, name: str, prime: int) -> Ids:
    """Ids as in the real release; larger ones where ``count`` exceeds what it has room for."""
    return Ids.of(seed, name, next(p for p in (prime, *_ROOMY_PRIMES) if p > count))


def crowded_numbers(
    random: np.random.Generator, count: int, scatter: Permutation, crowded: float
) -> Numbers:
    """``[N]`` which image each annotation belongs to: some images have many, a few none.

    Args:
        random: where chance comes from.
        count: N.
        scatter: over the images: those with many are anywhere.
        crowded: how many times more the fullest images have than the emptiest.
    """
    # Uniform where 0; its density falls off as 1 / (v + 1 / c).
    place = ((1 + crowded) ** random.random(count) - 1) / crowded
    return scatter[np.minimum((place * scatter.size).astype(np.int64), scatter.size - 1)]


Spoil = Callable[[Record], Any]


def rewrite(
    texts: list[str],
    rows: npt.NDArray[np.intp],
    change: Callable[[int, Record], Any],
    separators: tuple[str, str] = (", ", ": "),
) -> None:
    """Replace some records, given as JSON, by what ``change`` makes of (row, record)."""
    for row in rows.tolist():
        texts[row] = json.dumps(change(row, json.loads(texts[row])), separators=separators)


def spoilt(
    texts: list[str],
    fates: Fates,
    forms: Sequence[Spoil],
    separators: tuple[str, str] = (", ", ": "),
) -> None:
    """Make the MALFORMED records malformed, in one form after the other."""
    rewrite(
        texts,
        np.flatnonzero(fates == Fate.MALFORMED),
        lambda row, record: forms[row % len(forms)](record),
        separators,
    )


def without(key: str) -> Spoil:
    """A record without one of its keys."""
    return lambda record: {name: value for name, value in record.items() if name != key}


def having(key: str, value: Any) -> Spoil:
    """A record with another value."""
    return lambda record: {**record, key: value}


def replaced_by(value: Any) -> Spoil:
    """Something else in place of the record."""
    return lambda record: value


def finite(boxes: Boxes) -> Boxes:
    """``[N, 4]`` numbers that can be formatted; :func:`rewrite` puts the others back."""
    return np.where(np.isfinite(boxes), boxes, 0.0)
