"""Looking at the images of manifests and folders: their fingerprints, or why there are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from xvlm_data.errors import UserError
from xvlm_data.images.decode import ImageError, read_bytes, row_bytes
from xvlm_data.leaks.fingerprint import Fingerprint, Wanted, fingerprint
from xvlm_data.manifest import Manifest

Advance = Callable[[int], None]

#: Suffixes of the files that a folder of images is taken to consist of.
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, slots=True)
class Seen:
    """An image that was looked at: its fingerprint, or the reason why there is none."""

    print: Fingerprint | None
    problem: str | None = None


#: An image by the name it is called.
Named = tuple[str, Seen]


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


def look_at_folder(
    path: Path, files: Sequence[Path], wanted: Wanted, pool: Executor, advance: Advance
) -> list[Named]:
    """Fingerprints of files below a folder, called by their paths in it."""
    seen: list[Named] = []
    for file, looked in zip(files, look_at_files(files, wanted, pool), strict=True):
        seen.append((str(file.relative_to(path)), looked))
        advance(1)
    return seen
