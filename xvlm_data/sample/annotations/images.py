"""Images of a release: everything about one is a function of its number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar

import numpy as np

from xvlm_data.sample.annotations.boxes import Sides
from xvlm_data.sample.annotations.chance import (
    Numbers,
    Weighted,
    keys_of,
    sixteen_bits,
    uniform,
    zipf,
)
from xvlm_data.sample.annotations.plan import Request, ids_for
from xvlm_data.sample.annotations.truth import Fate, Fates
from xvlm_data.sample.release import Ids

#: An unusable image takes all its annotations with it, so fewer images than records are spoilt.
_LOST_IMAGES, _REPEATED_IMAGES = 0.25, 0.75


@cache
def _rather_first(count: int) -> Weighted:
    return Weighted(zipf(count, 1.0))


@dataclass(frozen=True)
class Images:
    """The images of a release, numbered from 0 on.

    Attributes:
        name: of the release; what is drawn by lot depends on it.
        id_prime: above the largest id of the real release.
        usual_sizes: (width, height) in pixels, the most frequent first.
    """

    name: ClassVar[str]
    id_prime: ClassVar[int]
    usual_sizes: ClassVar[Sequence[tuple[int, int]]]

    request: Request

    @property
    def count(self) -> int:
        """How many there are."""
        raise NotImplementedError

    @cached_property
    def _ids(self) -> Ids:
        return ids_for(self.count, self.request.seed, f"{self.name}/full", self.id_prime)

    @property
    def no_id(self) -> int:
        """Ids from here on belong to no image."""
        return self._ids.prime

    def ids(self, numbers: Numbers) -> Numbers:
        """``[N]`` ids, as the annotations give them."""
        return self._ids.of_all(numbers)

    def stated_ids(self, random: np.random.Generator, numbers: Numbers, fates: Fates) -> Numbers:
        """``[N]`` ids that annotations give: of UNKNOWN_IMAGE, ids that no image has."""
        unknown = self.no_id + random.integers(0, 10**5, len(numbers))
        return np.where(fates == Fate.UNKNOWN_IMAGE, unknown, self.ids(numbers))

    def sizes(self, numbers: Numbers) -> tuple[Sides, Sides]:
        """``[N]`` widths and ``[N]`` heights in pixels."""
        bits = sixteen_bits(keys_of(self.request.seed, f"{self.name}/size", numbers), 0)
        sizes = np.array(self.usual_sizes)[_rather_first(len(self.usual_sizes))[bits]]
        return sizes[:, 0], sizes[:, 1]

    def fates(self, numbers: Numbers) -> Fates:
        """``[N]``: KEPT, MALFORMED (no usable record), or DUPLICATE_IMAGE (and a second record)."""
        draw = uniform(self.request.seed, f"{self.name}/image fates", numbers)
        lost = draw < self.request.invalid * _LOST_IMAGES
        again = draw >= 1 - self.request.invalid * _REPEATED_IMAGES
        fates = np.full(len(numbers), Fate.KEPT, dtype=np.int8)
        fates[lost] = Fate.MALFORMED
        fates[again & ~lost] = Fate.DUPLICATE_IMAGE
        return fates


def image_texts(texts: list[str], again: Sequence[str], fates: Fates, lost: str) -> list[str]:
    """The records of a block of images: spoilt ones in their place, second ones at the end.

    Args:
        texts: ``[N]`` the good records.
        again: ``[N]`` second records: of the same id, but of another size, to be found out.
        fates: ``[N]`` as of `Images.fates`.
        lost: the key without which a record is unusable.
    """
    result = list(texts)
    for row in np.flatnonzero(fates == Fate.MALFORMED).tolist():
        record = json.loads(texts[row])
        forms = ({**record, lost: None}, {k: v for k, v in record.items() if k != lost}, row)
        result[row] = json.dumps(forms[row % len(forms)])
    return result + [again[row] for row in np.flatnonzero(fates == Fate.DUPLICATE_IMAGE).tolist()]
