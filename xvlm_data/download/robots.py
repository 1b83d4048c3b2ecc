"""What a server says about the use of an image in its headers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from multidict import CIMultiDictProxy

from xvlm_data.download.options import NAME

#: Directives of X-Robots-Tag that forbid it: those made for this, and those that say the same of
#: any index, as img2dataset has them.
DISALLOWED = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})

#: Directives that have a value; the colon in them does not end a user agent's name.
_WITH_VALUE = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)


def forbidden_by(headers: CIMultiDictProxy[str], user_agent: str) -> str | None:
    """The header that forbids the use of an image, or None."""
    names = our_names(user_agent)
    for value in headers.getall("X-Robots-Tag", ()):
        if _disallows(value, names):
            return f"X-Robots-Tag: {value[:200]}"
    if headers.get("TDM-Reservation", "").strip() == "1":
        return "TDM-Reservation: 1"
    return None


def our_names(user_agent: str) -> frozenset[str]:
    """The names under which a server may address us, in lower case."""
    token = re.match(r"[^\s/();,:]*", user_agent.strip())
    return frozenset({NAME, "*", token.group().lower() if token else NAME})


def _disallows(value: str, names: Iterable[str]) -> bool:
    """``googlebot: noindex, nofollow`` is for another; ``noai`` and ``xvlm: noai`` are for us."""
    ours = True
    for part in value.lower().split(","):
        name, colon, rest = part.partition(":")
        directive = part.strip()
        if colon and name.strip() not in _WITH_VALUE:
            # Whoever is named is meant by everything up to the next name.
            ours, directive = name.strip() in names, rest.strip()
        if ours and directive in DISALLOWED:
            return True
    return False
