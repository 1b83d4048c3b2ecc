"""What the releases have in common: a plan of files, unusable images, records gone wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xvlm_data.sample.annotations.boxes import Boxes
from xvlm_data.sample.annotations.chance import Numbers, Permutation, uniform
from xvlm_data.sample.annotations.files import File
from xvlm_data.sample.annotations.truth import Fate, Fates, Tally
from xvlm_data.sample.release import Ids

Record = dict[str, Any]

#: An unusable image takes all its annotations with it, so fewer images than records are spoilt.
_LOST_IMAGES, _REPEATED_IMAGES = 0.25, 0.75
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


def image_fates(request: Request, name: str, numbers: Numbers) -> Fates:
    """``[N]`` of images: kept, MALFORMED (no usable record), DUPLICATE_IMAGE (a second record)."""
    draw = uniform(request.seed, f"{name}/image fates", numbers)
    lost = draw < request.invalid * _LOST_IMAGES
    again = draw >= 1 - request.invalid * _REPEATED_IMAGES
    fates = np.full(len(numbers), Fate.KEPT, dtype=np.int8)
    fates[lost] = Fate.MALFORMED
    fates[again & ~lost] = Fate.DUPLICATE_IMAGE
    return fates


def image_texts(texts: list[str], again: Sequence[str], fates: Fates, lost: str) -> list[str]:
    """The records of a block of images: spoilt ones in their place, second ones at the end.

    Args:
        texts: ``[N]`` the good records.
        again: ``[N]`` second records: of the same id, but of another size, to be found out.
        fates: ``[N]`` as of :func:`image_fates`.
        lost: the key without which a record is unusable.
    """
    result = list(texts)
    for row in np.flatnonzero(fates == Fate.MALFORMED).tolist():
        record = json.loads(texts[row])
        forms = ({**record, lost: None}, {k: v for k, v in record.items() if k != lost}, row)
        result[row] = json.dumps(forms[row % len(forms)])
    return result + [again[row] for row in np.flatnonzero(fates == Fate.DUPLICATE_IMAGE).tolist()]


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
