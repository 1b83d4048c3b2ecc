"""What a text of the manifest is: as released, in Unicode NFC, with single spaces."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

#: White space of every kind, and control characters, which some captions hold.
_BLANK = r"[\s\p{Z}\p{Cc}]+"

SlashedNames = Literal["first", "last", "raw"]


def normalise_texts(texts: pa.Array) -> pa.Array:
    """NFC, runs of white space to one space, no outer space; case and punctuation stay."""
    nfc = pc.utf8_normalize(texts, form="NFC")
    return pc.utf8_trim(pc.replace_substring_regex(nfc, _BLANK, " "), " ")


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
