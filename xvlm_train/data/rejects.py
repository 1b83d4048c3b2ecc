"""Rows of a manifest that could not be used, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Reject(NamedTuple):
    """A row of a manifest that could not be used."""

    record: str
    """Its id."""
    reason: str
    """In a word: ``corrupt_image``, ``empty_text`` …"""
    detail: str
    """In a line."""


def told(rejects: Sequence[Reject]) -> str:
    """At least one reject for a person: how many of each reason, and one of them in full."""
    counts = Counter(reject.reason for reject in rejects)
    counted = ", ".join(f"{reason} {number}" for reason, number in sorted(counts.items()))
    return f"{counted}; {rejects[0].record}: {rejects[0].detail}"
