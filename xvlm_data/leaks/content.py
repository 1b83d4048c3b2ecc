"""Images of manifests and folders by content, and the index of those that must not be met again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from xvlm_data.errors import UserError
from xvlm_data.images.decode import ImageError, read_bytes, row_bytes
from xvlm_data.leaks.fingerprint import Fingerprint, Sides, Wanted, fingerprint
from xvlm_data.leaks.perceptual import HammingIndex
from xvlm_data.manifest import Manifest

Advance = Callable[[int], None]
Content = Literal["bytes", "pixels", "perceptual"]

#: Suffixes of the files that a folder of images is taken to consist of.
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, slots=True)
class Seen:
    """An image that was looked at: its fingerprint, or the reason why there is none."""

    print: Fingerprint | None
    problem: str | None = None


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one shard, the first of which is row ``first`` of it."""

    shard: str
    first: int
    batch: pa.RecordBatch


def read_rows(manifest: Manifest, columns: Sequence[str], size: int) -> Iterator[Rows]:
    """The rows of a manifest in batches that tell where they are."""
    shards = iter(manifest.shards)
    shard, first = next(shards), 0
    for batch in manifest.batches(columns, size):
        while first >= shard.rows:
            shard, first = next(shards), 0
        yield Rows(shard.url, first, batch)
        first += len(batch)


def look_at_rows(images: pa.Array, wanted: Wanted, pool: Executor) -> list[Seen]:
    """Fingerprints of the ``image`` cells of some rows, in order."""

    def look(image: dict[str, Any]) -> Seen:
        return _look(lambda: row_bytes(image, wanted.limits), str(image["path"] or ""), wanted)

    return list(pool.map(look, (image.as_py() for image in images)))


def look_at_files(files: Sequence[Path], wanted: Wanted, pool: Executor) -> Iterator[Seen]:
    """Fingerprints of files, in order."""
    return pool.map(
        lambda file: _look(lambda: read_bytes(file, wanted.limits), str(file), wanted), files
    )


def _look(read: Callable[[], bytes], name: str, wanted: Wanted) -> Seen:
    try:
        return Seen(fingerprint(read(), name, wanted))
    except ImageError as error:
        return Seen(None, error.reason)
    except (OSError, ValueError):  # a name that the file system refuses
        return Seen(None, "missing_image")
    except MemoryError:
        return Seen(None, "too_many_pixels")


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below, sorted.

    Raises:
        UserError: there are none.
    """
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise UserError(
            f"{folder}: neither a manifest nor a folder with images",
            "give a folder with manifest.json or with image files, or an evaluation file",
        )
    return found


class ContentIndex:
    """Evaluation images by content.

    Attributes:
        names: what each image is called.
        sides: the (shorter, longer) sides that occur.
        problems: (name, reason) of images that could not be looked at.
        plain: names of pictures that are too plain to be known by their looks.
    """

    def __init__(self, images: Sequence[tuple[str, Seen]], distance: int | None) -> None:
        self.names: list[str] = []
        self.sides: set[Sides] = set()
        self.problems = [(name, seen.problem) for name, seen in images if seen.problem is not None]
        self.plain: list[str] = []
        self._exact: dict[bytes, list[int]] = defaultdict(list)
        looks: list[int] = []
        owners: list[int] = []
        for name, seen in images:
            if (found := seen.print) is None:
                continue
            number = len(self.names)
            self.names.append(name)
            for digest in {found.data, *found.pixels}:
                self._exact[digest].append(number)
            if found.sides is not None:
                self.sides.add(found.sides)
            if found.plain:
                self.plain.append(name)
            looks += found.looks
            owners += [number] * len(found.looks)
        self._owners = np.array(owners, np.int64)
        self._looks = None
        if distance is not None:
            self._looks = HammingIndex(np.array(looks, np.uint64), distance)

    def __len__(self) -> int:
        return len(self.names)

    def matches(self, images: Sequence[Seen]) -> list[tuple[int, int, Content, int | None]]:
        """(place in ``images``, number here, strongest evidence, Hamming distance), sorted."""
        found: dict[tuple[int, int], tuple[Content, int | None]] = {}
        for place, seen in enumerate(images):
            if seen.print is None:
                continue
            for number in self._exact.get(seen.print.data, ()):
                found[place, number] = ("bytes", None)
            for digest in seen.print.pixels:
                for number in self._exact.get(digest, ()):
                    found.setdefault((place, number), ("pixels", None))
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
            key = (places[int(query)], int(self._owners[hit]))
            found.setdefault(key, ("perceptual", int(distance)))
