"""What is worth a second look: texts that are no descriptions, boxes that say nothing.

None of it is an error, and each kind has innocent cases; what breaks the schema's promises is told
by :mod:`xvlm_data.inspect.validate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.inspect.concepts import Concepts, to_bools
from xvlm_data.schema import IMAGE

#: Each kind, by what people read: a title, and what it means.
KINDS = {
    "broken_box": ("Broken boxes", "not four finite numbers, without area, or outside the image"),
    "whole_image": (
        "Objects and regions that are the whole image",
        "the box covers 99 % of it or more, so that it locates nothing",
    ),
    "same_box": ("One box, many texts", "four or more different texts of a granularity"),
    "repeated": ("Repeated concepts", "the same box and text twice in an image"),
    "not_english": (
        "Not English",
        "letters of another script, or words of another language and none of English",
    ),
    "shouting": ("Shouting", "eight or more letters, all of them capitals"),
    "address": ("Addresses in texts", "a URL, a host, a file name or an e-mail address"),
    "markup": ("Markup in texts", "HTML tags or entities"),
    "no_letters": ("No letters", "a text of digits and signs alone"),
    "long": ("Very long texts", "more than 400 characters"),
}
WHOLE_AREA = 0.99
MANY_TEXTS = 4
LONG_TEXT = 400
#: Rows kept of each kind, an even choice of all that were seen.
EXAMPLES = 6

_BOX_TOLERANCE = 1e-5
_ADDRESS = (
    r"(?i)\bhttps?:/|\bwww\.|[\w.-]@[\w-]+\.\w|"
    r"[\w-]\.(?:com|org|net|info|html?|php|jpe?g|png|gif)(?:\W|$)"
)
_MARKUP = r"</?[A-Za-z!][^<>]{0,200}>|&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]{2,8});"
_OTHER_SCRIPT = r"[^\P{L}\p{Latin}]"
# Words that are frequent in a language and no words of English.
_FOREIGN = (
    r"(?i)\b(?:der|das|und|ein|eine|mit|auf|ist|le|les|des|une|dans|avec|el|los|las|del|una|para|"
    r"il|gli|della|het|een|uma|dos|na|och|jest|de|la|un|que|por|et)\b"
)
_ENGLISH = r"(?i)\b(?:the|a|an|of|in|on|at|to|for|with|and|is|are|by|from|his|her|its|near|or)\b"
_EIGHT_LETTERS = r"(?:\PL*\pL){8}"

Mask = npt.NDArray[np.bool_]


def find(concepts: Concepts) -> dict[str, Mask]:
    """For each of :data:`KINDS` ``[N]`` whether a concept is of it."""
    text = concepts.text.dictionary_encode()
    # A null is code -1, which is the last place of each mask.
    code = pc.fill_null(text.indices, -1).to_numpy(zero_copy_only=False)
    found = {kind: np.append(of(text.dictionary), False)[code] for kind, of in _TEXTS.items()}
    boxed = ~concepts.is_granularity(IMAGE)
    boxes = concepts.boxes
    with np.errstate(invalid="ignore"):
        centre, side = boxes[:, :2], boxes[:, 2:]
        inside = (centre - side / 2 >= -_BOX_TOLERANCE) & (centre + side / 2 <= 1 + _BOX_TOLERANCE)
        good = np.isfinite(boxes).all(axis=1) & (side > 0).all(axis=1) & inside.all(axis=1)
        found["whole_image"] = boxed & good & (side[:, 0] * side[:, 1] >= WHOLE_AREA)
    found["broken_box"] = ~good
    found["same_box"], found["repeated"] = _shared_boxes(concepts, code, boxed & good)
    return {kind: found[kind] for kind in KINDS}


def _shared_boxes(concepts: Concepts, text: npt.NDArray[np.int64], of: Mask) -> tuple[Mask, Mask]:
    """Concepts whose box has many texts; concepts that repeat an earlier one of their image."""
    many, repeated = np.zeros(len(of), np.bool_), np.zeros(len(of), np.bool_)
    places = np.flatnonzero(of)
    kind = concepts.granularity.dictionary_encode().indices
    sides = np.ascontiguousarray(concepts.boxes[places], np.float32).view(np.uint32)
    key = concepts.row[places].astype(np.uint64)
    key = _mixed(key, pc.fill_null(kind, -1).to_numpy(zero_copy_only=False)[places])
    for i in range(4):
        key = _mixed(key, sides[:, i])
    with_text = _mixed(key, text[places])
    order = np.argsort(with_text, kind="stable")
    first = np.ones(len(order), np.bool_)
    first[1:] = with_text[order][1:] != with_text[order][:-1]
    repeated[places[order[~first]]] = True
    boxes, inverse = np.unique(key, return_inverse=True)
    texts = np.bincount(inverse[order[first]], minlength=len(boxes))
    many[places] = texts[inverse] >= MANY_TEXTS
    return many, repeated


def _mixed(key: npt.NDArray[np.uint64], value: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of both (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        mixed = key * np.uint64(0x9E3779B97F4A7C15) + value.astype(np.uint64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def _among(texts: pa.StringArray, candidates: Mask, pattern: str) -> Mask:
    """Where a pattern matches, looked for among the candidates alone."""
    found = np.zeros(len(texts), np.bool_)
    if candidates.any():
        some = texts.filter(pa.array(candidates))
        found[candidates] = to_bools(pc.match_substring_regex(some, pattern))
    return found


def _containing(texts: pa.StringArray, *parts: str) -> Mask:
    found = np.zeros(len(texts), np.bool_)
    for part in parts:
        found |= to_bools(pc.match_substring(texts, part))
    return found


def _is_not_english(texts: pa.StringArray) -> Mask:
    strange = _among(texts, ~to_bools(pc.string_is_ascii(texts)), _OTHER_SCRIPT)
    spaced = _containing(texts, " ") & ~strange
    foreign = _among(texts, spaced, _FOREIGN)
    if foreign.any():
        some = texts.filter(pa.array(foreign))
        number = pc.count_substring_regex(some, _FOREIGN).to_numpy(zero_copy_only=False)
        foreign[foreign] = (number >= 2) & ~to_bools(pc.match_substring_regex(some, _ENGLISH))
    return strange | foreign


_TEXTS: dict[str, Callable[[pa.StringArray], Mask]] = {
    "not_english": _is_not_english,
    "shouting": lambda texts: _among(texts, to_bools(pc.utf8_is_upper(texts)), _EIGHT_LETTERS),
    "address": lambda texts: _among(texts, _containing(texts, ".", ":/", "@"), _ADDRESS),
    "markup": lambda texts: _among(texts, _containing(texts, "<", "&"), _MARKUP),
    "no_letters": lambda texts: (
        to_bools(pc.match_substring_regex(texts, r"^\PL+$")) & _containing_something(texts)
    ),
    "long": lambda texts: to_bools(pc.greater(pc.utf8_length(texts), LONG_TEXT)),
}


def _containing_something(texts: pa.StringArray) -> Mask:
    return to_bools(pc.not_equal(pc.utf8_trim_whitespace(texts), ""))


@dataclass
class Suspicious:
    """Counts of each kind, and rows to look at; a watcher of :func:`statistics.collect`.

    Attributes:
        concepts: kind -> concepts of it.
        rows: kind -> images that have one.
    """

    concepts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    _kept: dict[str, list[tuple[int, int]]] = field(
        default_factory=lambda: {kind: [] for kind in KINDS}
    )

    def __call__(self, first: int, batch: pa.RecordBatch, concepts: Concepts) -> None:
        """Look at a batch, the first row of which has this number in the manifest."""
        for kind, mask in find(concepts).items():
            if not mask.any():
                continue
            rows = np.unique(concepts.row[mask]) + first
            self.concepts[kind] += int(mask.sum())
            self.rows[kind] += len(rows)
            # The smallest hashes are an even choice, whatever the batches are.
            places = _mixed(rows.astype(np.uint64), np.zeros(len(rows)))
            new = zip(places.tolist(), rows.tolist(), strict=True)
            self._kept[kind] = sorted([*self._kept[kind], *new])[:EXAMPLES]

    def examples(self, kind: str) -> list[int]:
        """Numbers of a few rows of a kind, ascending."""
        return sorted(row for _, row in self._kept[kind])
