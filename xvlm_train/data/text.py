"""The text the model sees: cleaning rules and wording that a mirrored image would make untrue."""

from __future__ import annotations

import re

_REMOVED = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")
_DIRECTION = re.compile(r"\b(left|right)(most|hand|side|wards?)?\b")


def clean_text(text: str, max_words: int) -> str:
    """A text by the rules of pre-training (spec: Inputs, Text).

    Lower-cased; ``, . ' ! ? " ( ) * # : ; ~`` removed; ``-`` and ``/`` become spaces;
    ``<person>`` becomes ``person``; runs of space collapse; the first ``max_words`` words stay.

    Returns:
        The cleaned text; empty when nothing is left, which makes the text invalid.
    """
    text = text.lower().translate(_REMOVED).replace("<person>", "person")
    return " ".join(text.split()[:max_words])


def says_direction(text: str) -> bool:
    """Whether a cleaned text says left or right, and so stops being true in a mirror."""
    return _DIRECTION.search(text) is not None
