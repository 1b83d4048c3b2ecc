"""Where the brackets of a piece of JSON are: an exact, vectorised scan.

It is what the fast reader of :mod:`xvlm_data.raw.json_arrays` falls back on: where an array ends,
where elements of another layout end, and where a malformed element does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SPACE = b" \t\r\n"
_DEPTH = np.zeros(256, np.int8)
_DEPTH[[ord("["), ord("{")]] = 1
_DEPTH[[ord("]"), ord("}")]] = -1


class Scan:
    """The structure of a piece of JSON that starts outside any string, at depth 0.

    Attributes:
        quotes: positions of the quotes that open and close strings.
        ends: positions after each bracket that comes back to depth 0.
        closing: position of the bracket that closes the surrounding array, if it is here.
        whole: whether the piece ends at depth 0 and outside any string.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        view = np.frombuffer(data, np.uint8)
        self.quotes = _string_quotes(data, view)
        places = np.flatnonzero(_DEPTH[view])
        places = places[self._outside(places)]
        depth = np.cumsum(_DEPTH[view[places]], dtype=np.int64)
        below = np.flatnonzero(depth < 0)
        self.closing = int(places[below[0]]) if len(below) else None
        if self.closing is not None:
            places, depth = places[: below[0]], depth[: below[0]]
        self._places, self._depth = places, depth
        self.ends = places[depth == 0] + 1
        self.whole = (
            self.closing is None
            and len(self.quotes) % 2 == 0
            and (not len(depth) or int(depth[-1]) == 0)
        )

    def _outside(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.searchsorted(self.quotes, places) % 2 == 0

    def last_cut(self) -> int | None:
        """Where the data can be cut so that only whole elements lie before."""
        commas = self.commas(self.data.rfind(b",", int(self.ends[-1]) if len(self.ends) else 0) + 1)
        if len(commas):
            return int(commas[-1])
        return int(self.ends[-1]) if len(self.ends) else None

    def commas(self, stop: int, start: int | None = None) -> npt.NDArray[np.int64]:
        """Positions of the commas between elements, from the last bracketed element (or start)."""
        begin = start if start is not None else (int(self.ends[-1]) if len(self.ends) else 0)
        found = begin + np.flatnonzero(np.frombuffer(self.data[begin:stop], np.uint8) == 44)
        found = found[self._outside(found)]
        level = np.searchsorted(self._places, found)
        depth = np.concatenate([[0], self._depth])[level]
        return found[depth == 0]


def _string_quotes(data: bytes, view: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    quotes = np.flatnonzero(view == 34)
    if b"\\" not in data or not len(quotes):
        return quotes
    # A quote is escaped when an odd number of backslashes stands right before it.
    suspects = np.flatnonzero((view[quotes - 1] == 92) & (quotes > 0))
    escaped = []
    for suspect in suspects:
        place = int(quotes[suspect]) - 1
        first = place
        while first > 0 and data[first - 1] == 92:
            first -= 1
        if (place - first) % 2 == 0:
            escaped.append(suspect)
    return np.delete(quotes, escaped)
