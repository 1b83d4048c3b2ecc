"""Evaluation images by content, to be met again: in memory, or as files that processes share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xvlm_data.array_files import Array, load_array, save_arrays
from xvlm_data.leaks.content import Named, Seen
from xvlm_data.leaks.fingerprint import Sides
from xvlm_data.leaks.perceptual import HammingIndex
from xvlm_data.storage import AnyPath

Content = Literal["bytes", "pixels", "perceptual"]

_DIGEST = np.dtype("S32")  # SHA-256; NumPy compares these as bytes, those that end in 0 included


class Names(Sequence[str]):
    """Texts in two arrays."""

    def __init__(self, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> Names:
        """From texts; a lone surrogate of a file's name stays what it is."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        data = np.frombuffer(bytearray(b"".join(encoded)), np.uint8)
        return cls(data, np.cumsum([0, *map(len, encoded)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        first, last = self.ends[number], self.ends[number + 1]
        return self.data[first:last].tobytes().decode("utf-8", "surrogatepass")


class ContentIndex:
    """N evaluation images by content.

    Attributes:
        names: N names.
        sides: the (shorter, longer) sides that occur.
        problems: (name, reason) of images that could not be looked at.
        plain: names of pictures that are too plain to be known by their looks.
    """

    def __init__(
        self,
        names: Names,
        digests: npt.NDArray[np.bytes_],
        owners: npt.NDArray[np.int64],
        sides: npt.NDArray[np.int64],
        looks: HammingIndex | None,
        look_owners: npt.NDArray[np.int64],
        problems: Sequence[tuple[str, str]] = (),
        plain: Sequence[str] = (),
    ) -> None:
        """From columns; see :meth:`of` and :meth:`load`.

        Args:
            names: N names.
            digests: ``[D]`` SHA-256 of bytes and of pixels, sorted.
            owners: ``[D]`` the image of each.
            sides: ``[S, 2]``.
            looks: ``[L]`` perceptual hashes; None to leave looks alone.
            look_owners: ``[L]`` the image of each.
            problems: see the class.
            plain: see the class.
        """
        self.names, self.problems, self.plain = names, list(problems), list(plain)
        self.sides: set[Sides] = set(map(tuple, sides.tolist()))
        self._digests, self._owners, self._sides = digests, owners, sides
        self._looks, self._look_owners = looks, look_owners

    @classmethod
    def of(cls, images: Sequence[Named], distance: int | None) -> ContentIndex:
        """From images that were looked at.

        Args:
            images: names and fingerprints.
            distance: up to which Hamming distance images look alike; None to leave that alone.
        """
        prints = [(name, seen.print) for name, seen in images if seen.print is not None]
        pairs = [
            (digest, number)
            for number, (_, found) in enumerate(prints)
            for digest in sorted({found.data, *found.pixels})
        ]
        digests = np.array([digest for digest, _ in pairs], _DIGEST)
        order = np.argsort(digests, kind="stable")
        looks = [(look, number) for number, (_, found) in enumerate(prints) for look in found.looks]
        sides = sorted({found.sides for _, found in prints if found.sides is not None})
        hashes = np.array([look for look, _ in looks], np.uint64)
        return cls(
            Names.of([name for name, _ in prints]),
            digests[order],
            np.array([number for _, number in pairs], np.int64)[order],
            np.array(sides, np.int64).reshape(-1, 2),
            None if distance is None else HammingIndex(hashes, distance),
            np.array([number for _, number in looks], np.int64),
            [(name, seen.problem) for name, seen in images if seen.problem is not None],
            [name for name, found in prints if found.plain],
        )

    def save(self, folder: AnyPath) -> AnyPath:
        """Write the index below a folder; returns where, named by its content.

        Problems and plain pictures are not written.
        """
        arrays: dict[str, Array] = {
            "names": self.names.data,
            "ends": self.names.ends,
            "digests": self._digests,
            "owners": self._owners,
            "sides": self._sides,
            "look_owners": self._look_owners,
            "distance": np.array([-1 if self._looks is None else self._looks.distance]),
        }
        if self._looks is not None:
            arrays["looks"] = self._looks.hashes
            for number, (values, owners) in enumerate(self._looks.bands):
                arrays |= {f"band{number}": values, f"band{number}_owners": owners}
        return save_arrays(folder, "images", arrays)

    @staticmethod
    def load(folder: AnyPath) -> ContentIndex:
        """Open a saved index, by where it was saved; mapped into memory if that is local."""
        return _load(folder)

    def __len__(self) -> int:
        return len(self.names)

    def matches(self, images: Sequence[Seen]) -> list[tuple[int, int, Content, int | None]]:
        """(place in ``images``, number here, strongest evidence, Hamming distance), sorted."""
        found: dict[tuple[int, int], tuple[Content, int | None]] = {}
        asked = [
            (place, digest, digest == seen.print.data)
            for place, seen in enumerate(images)
            if seen.print is not None
            for digest in (seen.print.data, *seen.print.pixels)
        ]
        wanted = np.array([digest for _, digest, _ in asked], _DIGEST)
        first = np.searchsorted(self._digests, wanted, "left").tolist()
        last = np.searchsorted(self._digests, wanted, "right").tolist()
        for (place, _, is_data), start, stop in zip(asked, first, last, strict=True):
            for number in self._owners[start:stop].tolist():
                found.setdefault((place, number), ("bytes" if is_data else "pixels", None))
        if self._looks is not None:
            self._add_near(images, found, self._looks)
        return [(*key, *value) for key, value in sorted(found.items())]

    def _add_near(
        self,
        images: Sequence[Seen],
        found: dict[tuple[int, int], tuple[Content, int | None]],
        index: HammingIndex,
    ) -> None:
        places = [i for i, seen in enumerate(images) if seen.print for _ in seen.print.looks]
        looks = [look for seen in images if seen.print for look in seen.print.looks]
        queries, hits, distances = index.search(np.array(looks, np.uint64))
        near = np.argsort(distances, kind="stable")  # of several orientations the nearest
        for query, hit, distance in zip(queries[near], hits[near], distances[near], strict=True):
            key = (places[int(query)], int(self._look_owners[hit]))
            found.setdefault(key, ("perceptual", int(distance)))


@lru_cache(maxsize=16)
def _load(folder: AnyPath) -> ContentIndex:
    def array(name: str) -> Any:
        return load_array(folder, name)

    looks = None
    distance = int(array("distance")[0])
    if distance >= 0:
        hashes = array("looks")
        bands = [
            (array(f"band{number}"), array(f"band{number}_owners"))
            for number in range(HammingIndex.band_count(distance, len(hashes)))
        ]
        looks = HammingIndex(hashes, distance, bands)
    return ContentIndex(
        Names(array("names"), array("ends")),
        array("digests"),
        array("owners"),
        array("sides"),
        looks,
        array("look_owners"),
    )
