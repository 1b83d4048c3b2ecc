"""What a builder must find: counted while the records are written, with the default rules.

A record's own outcome is known when it is written. Whether its image belongs to the split that is
built, or is held out, depends on what is asked for: so outcomes are counted by *part* (images that
are in or out together), and a part is given a reason, or none, in the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

KINDS = ("image", "caption", "object", "region")


class Fate(IntEnum):
    """What becomes of a record; the names are the builder's reason codes in lower case."""

    KEPT = 0
    CLIPPED = 1  # kept, its box cut to the image
    SMALL = 2
    CROWD = 3
    TEXT_OVERLAP = 4
    BOX_EMPTY = 5
    BOX_OUTSIDE = 6
    BOX_NOT_FINITE = 7
    EMPTY_TEXT = 8
    UNKNOWN_IMAGE = 9
    UNKNOWN_CATEGORY = 10
    MALFORMED = 11
    DUPLICATE_IMAGE = 12
    MISSING_RECORD = 13  # an image of Karpathy's split that the official files lack

    @property
    def reason(self) -> str:
        """The reason code."""
        return self.name.lower()


Fates = npt.NDArray[np.int8]

_FILTERED = {Fate.SMALL.reason, Fate.CROWD.reason, Fate.TEXT_OVERLAP.reason, "other_split", "leak"}
#: Outcomes that hold before anyone asks whether the image is wanted.
_ANYWAY = {
    Fate.UNKNOWN_IMAGE,
    Fate.UNKNOWN_CATEGORY,
    Fate.MALFORMED,
    Fate.DUPLICATE_IMAGE,
    Fate.MISSING_RECORD,
}
_KEPT = {Fate.KEPT, Fate.CLIPPED}


def without_image(fates: Fates, lost: npt.NDArray[np.bool_]) -> Fates:
    """The fates where some images have no usable record: their annotations belong to nothing.

    Only what is wrong with the record itself is found before that.
    """
    own = np.isin(fates, [Fate.UNKNOWN_CATEGORY, Fate.MALFORMED])
    return np.where(lost & ~own, Fate.UNKNOWN_IMAGE, fates).astype(np.int8)


class Tally:
    """Counts of records by kind, part and outcome."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, Fate]] = Counter()
        self.unattached_attributes = 0

    def add(self, kind: str, part: str, fate: Fate, count: int = 1) -> None:
        """Count records of one part with one outcome."""
        if count:
            self._counts[kind, part, fate] += count

    def add_all(
        self,
        kind: str,
        fates: Fates,
        part: str | Sequence[str],
        part_of: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Count records.

        Args:
            kind: one of :data:`KINDS`.
            fates: ``[N]`` their outcomes.
            part: the part of all of them, or the names of the parts.
            part_of: ``[N]`` which of the parts each belongs to.
        """
        names = [part] if isinstance(part, str) else list(part)
        codes = fates.astype(np.int64)
        if part_of is not None:
            codes = codes + part_of * len(Fate)
        for code, count in enumerate(np.bincount(codes, minlength=1).tolist()):
            self.add(kind, names[code // len(Fate)] if count else "", Fate(code % len(Fate)), count)

    def merge(self, other: Tally) -> None:
        """Add the counts of another."""
        self._counts.update(other._counts)
        self.unattached_attributes += other.unattached_attributes

    def settle(self, parts: Mapping[str, str | None]) -> dict[str, Any]:
        """The truth of one build.

        Args:
            parts: the parts that are read: None, or the reason why their images are left out.

        Returns:
            ``counts`` as in ``manifest.json``, ``clipped_boxes`` that are kept, and ``boxes``, all
            objects and regions that are read.
        """
        reasons: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        clipped = 0
        for (kind, part, fate), count in self._counts.items():
            if part not in parts:
                continue
            out = None if fate in _ANYWAY else parts[part]
            if out is None and fate is Fate.CLIPPED:
                clipped += count
            reasons[kind][out or ("kept" if fate in _KEPT else fate.reason)] += count
        counts = {f"{kind}s": _table(found) for kind, found in reasons.items()}
        boxes = counts["objects"]["raw"] + counts["regions"]["raw"]
        return {"counts": counts, "clipped_boxes": clipped, "boxes": boxes}


def _table(found: Counter[str]) -> dict[str, Any]:
    out = {reason: count for reason, count in sorted(found.items()) if reason != "kept"}
    return {
        "raw": found.total(),
        "kept": found["kept"],
        "filtered": {reason: n for reason, n in out.items() if reason in _FILTERED},
        "rejected": {reason: n for reason, n in out.items() if reason not in _FILTERED},
    }
