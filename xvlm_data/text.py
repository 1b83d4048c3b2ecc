"""What a text of the manifest is: as released, in Unicode NFC, with single spaces."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

#: White space of every kind, and control characters, which some captions hold.
_BLANK = r"[\s\p{Z}\p{Cc}]+"

SlashedNames = Literal["first", "last", "raw"]


def normalise_texts(texts: pa.Array) -> pa.Array:
    """NFC, runs of white space to one space, no outer space; case and punctuation stay.

    Args:
        texts: ``[N]`` strings without nulls.
    """
    # Most texts are plain and tidy already, and telling so is much cheaper than tidying them.
    untidy = pa.array(_untidy(texts))
    if not untidy.true_count:
        return texts
    tidy = pc.ascii_trim(texts.filter(untidy), " ")  # which is all that most of them lack
    still = pa.array(_untidy(tidy))
    if still.true_count:
        nfc = pc.utf8_normalize(tidy.filter(still), form="NFC")
        whole = pc.utf8_trim(pc.replace_substring_regex(nfc, _BLANK, " "), " ")
        tidy = pc.replace_with_mask(tidy, still, whole)
    return pc.replace_with_mask(texts, untidy, tidy)


def normalise_text(text: str) -> str:
    """:func:`normalise_texts` for one text."""
    return str(normalise_texts(pa.array([text]))[0].as_py())


def category_text(name: str, slashed: SlashedNames = "first") -> str:
    """The text of an object from its category name.

    Slashes join alternatives ("Handbag/Satchel"); one of them is taken. Alternatives that share
    their head noun keep it: "Cutting/chopping Board" becomes "Cutting Board".
    """
    name = normalise_text(name)
    if slashed == "raw" or "/" not in name:
        return name
    options = [option.strip() for option in name.split("/") if option.strip()]
    if not options:
        return name
    if slashed == "last":
        return options[-1]
    missing = len(options[-1].split()) - len(options[0].split())
    head = options[-1].split()[-missing:] if missing > 0 else []
    return " ".join([options[0], *head])


def words(text: str) -> frozenset[str]:
    """The words of a text for comparing texts: lower case, without punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return frozenset(re.findall(r"\w+(?:'\w+)?", folded))


def text_bytes(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The UTF-8 of all texts in one piece, and where each begins and ends in it.

    Args:
        texts: ``[N]`` strings without nulls.

    Returns:
        Bytes, and ``[N + 1]`` offsets into them.
    """
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return np.zeros(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    ends = ends.astype(np.int64)
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]], ends - ends[0]


def rows_of(places: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which text each byte position belongs to."""
    return np.searchsorted(offsets, places, side="right") - 1


def _untidy(texts: pa.Array) -> npt.NDArray[np.bool_]:
    """``[N]`` False where a text is certainly normal: printable ASCII with single inner spaces."""
    data, offsets = text_bytes(texts)
    untidy = np.zeros(len(texts), bool)
    space = data == 32
    bad = (data >= 127) | (data < 32)
    bad[1:] |= space[1:] & space[:-1]
    untidy[rows_of(np.flatnonzero(bad), offsets)] = True
    filled = np.flatnonzero(np.diff(offsets))
    untidy[filled] |= space[offsets[filled]] | space[offsets[filled + 1] - 1]
    return untidy
