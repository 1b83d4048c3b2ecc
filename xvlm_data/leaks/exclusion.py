"""Evaluation images that no image of a training manifest may be: known by content, in any worker.

Ids do not tell that a picture of the web is one of COCO's val images; its bytes, its pixels and,
where wanted, its looks do. The evaluation images are looked at once; what is known of them lies in
files that workers map into memory, so that a task carries no more than the names of folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from xvlm_data.errors import UserError
from xvlm_data.images.decode import DEFAULT_LIMITS, ImageError, Limits
from xvlm_data.journal import Journal
from xvlm_data.leaks.against import BATCH, Stage, is_manifest
from xvlm_data.leaks.content import (
    Named,
    Seen,
    image_files,
    look_at_folder,
    look_at_rows,
    read_rows,
)
from xvlm_data.leaks.content_index import ContentIndex
from xvlm_data.leaks.fingerprint import Wanted, fingerprint
from xvlm_data.manifest import open_manifest
from xvlm_data.storage import AnyPath

_SAID = {"bytes": "the same bytes as", "pixels": "the same pixels as", "perceptual": "looks like"}


@dataclass(frozen=True)
class Exclusion:
    """What an image is held against; small, so that every task can carry it.

    Attributes:
        indexes: for each set of evaluation images: as it was given, and where its index lies.
        distance: of 64 bits, how many may differ in pictures that look alike; None: looks are
            not compared.
        limits: what an image may cost.
    """

    indexes: tuple[tuple[str, AnyPath], ...]
    distance: int | None = None
    limits: Limits = DEFAULT_LIMITS

    def check(self, data: bytes, name: str, picture: Image.Image | None = None) -> None:
        """Compare an image with the evaluation images.

        Args:
            data: the encoded image.
            name: what to call it.
            picture: what `images.decode.decode` made of all of its pixels, so that it need not be
                decoded once more.

        Raises:
            ImageError: ``leak``, telling the evaluation image and how it is known; or the bytes
                are no acceptable image.
        """
        indexes, wanted = _opened(self)
        seen = Seen(fingerprint(data, name, wanted, picture=picture))
        best: tuple[Any, ...] | None = None
        for order, (given, index) in enumerate(indexes):
            for _, number, evidence, distance in index.matches([seen]):
                # The surest evidence, and of that the nearest and the first.
                strength = list(_SAID).index(evidence)
                found = (strength, distance or 0, order, number, given, index.names[number])
                best = found if best is None else min(best, found)
        if best is not None:
            strength, distance, _, _, given, image = best
            evidence = list(_SAID)[strength]
            far = f" ({distance} of 64 bits differ)" if evidence == "perceptual" else ""
            raise ImageError("leak", f"{name}: {_SAID[evidence]} {image} of {given}{far}")


@lru_cache(maxsize=4)
def _opened(exclusion: Exclusion) -> tuple[list[tuple[str, ContentIndex]], Wanted]:
    """Its indexes, and what to compute of an image to look it up."""
    indexes = [(given, ContentIndex.load(place)) for given, place in exclusion.indexes]
    sides = frozenset(side for _, index in indexes for side in index.sides)
    looks = exclusion.distance is not None
    return indexes, Wanted(pixels=True, looks=looks, sides=sides, limits=exclusion.limits)


@dataclass(frozen=True)
class Evaluated:
    """What is known of the evaluation images once they have been looked at.

    Attributes:
        exclusion: to hold images against.
        images: how many there are.
        digest: of their content and names.
        notes: what the user should read, such as images that could not be looked at.
    """

    exclusion: Exclusion
    images: int
    digest: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; folders by their names."""
        return {
            "indexes": [[given, place.name] for given, place in self.exclusion.indexes],
            "images": self.images,
            "digest": self.digest,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(
        cls, folder: AnyPath, distance: int | None, limits: Limits, values: dict[str, Any]
    ) -> Evaluated:
        """From what :meth:`to_dict` gave, of indexes below a folder."""
        indexes = tuple((given, folder / name) for given, name in values["indexes"])
        return cls(
            Exclusion(indexes, distance, limits),
            values["images"],
            values["digest"],
            tuple(values["notes"]),
        )


def look_at(
    given: Sequence[str],
    folder: AnyPath,
    *,
    distance: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    threads: int = 1,
    stage: Stage,
) -> Evaluated:
    """Look at evaluation images, and write what is known of them below a folder.

    Args:
        given: manifests of evaluation sets, or folders of their images.
        folder: for the indexes.
        distance: see :class:`Exclusion`.
        limits: what an image may cost.
        threads: that decode images.
        stage: opens a progress display.

    Raises:
        UserError: something is missing or no set of images, or not one of its images can be read.
    """
    wanted = Wanted(pixels=True, looks=distance is not None, limits=limits)
    indexes, notes, images = [], [], 0
    digest = hashlib.blake2b(digest_size=16)
    with ThreadPoolExecutor(threads) as pool:
        for name in given:
            index = ContentIndex.of(_look_at(name, wanted, pool, stage), distance)
            notes += _notes(name, index)
            place = index.save(folder)
            indexes.append((name, place))
            digest.update(place.name.encode())
            images += len(index)
    return Evaluated(
        Exclusion(tuple(indexes), distance, limits), images, digest.hexdigest(), tuple(notes)
    )


def looked_at(
    journal: Journal,
    given: Sequence[str],
    *,
    distance: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    threads: int = 1,
    stage: Stage,
) -> Evaluated:
    """:func:`look_at`, once a job however often it is interrupted.

    The job's plan must hold the :func:`stamp` of everything given, so that changes are noticed.

    Args:
        journal: of the job; the indexes lie in its folder.
        given: as of :func:`look_at`, and so are all others.
        distance: see there.
        limits: see there.
        threads: see there.
        stage: see there.

    Raises:
        UserError: as :func:`look_at`.
    """
    task = "evaluation_images"
    done = journal.done(task)
    if done is None:
        found = look_at(
            given, journal.folder, distance=distance, limits=limits, threads=threads, stage=stage
        )
        journal.record(task, found.to_dict())
        return found
    return Evaluated.from_dict(journal.folder, distance, limits, done)


def _look_at(given: str, wanted: Wanted, pool: Executor, stage: Stage) -> list[Named]:
    seen: list[Named] = []
    name = f"evaluation images of {given}"
    if is_manifest(given):
        manifest = open_manifest(given)
        with stage(name, len(manifest), "images") as advance:
            for rows in read_rows(manifest, ["id", "image"], BATCH):
                ids = rows.batch.column("id").to_pylist()
                found = look_at_rows(rows.batch.column("image"), wanted, pool)
                seen += zip(ids, found, strict=True)
                advance(len(ids))
        return seen
    folder = _folder(given)
    files = image_files(folder)
    with stage(name, len(files), "images") as advance:
        return look_at_folder(folder, files, wanted, pool, advance)


def _folder(given: str) -> Path:
    path = Path(given)
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"{given}: no images, but a list of them", "give lists with --exclude")
    raise UserError(
        f"{given}: no such folder or manifest", "give a built evaluation set, or its images"
    )


def _notes(given: str, index: ContentIndex) -> list[str]:
    """What is not proof against evaluation images: those nobody could look at."""
    notes = []
    if index.problems:
        name, reason = index.problems[0]
        if not len(index):
            raise UserError(
                f"{given}: none of its {len(index.problems):,} images can be read "
                f"({reason}, first {name})",
                "were they moved? Build the evaluation set again",
            )
        notes.append(
            f"{len(index.problems):,} image(s) of {given} could not be looked at, and may be in "
            f"the manifest: {reason}, first {name}"
        )
    if index.plain:
        notes.append(
            f"{len(index.plain):,} image(s) of {given} are too plain to be known by their looks, "
            f"first {index.plain[0]}; their bytes and pixels were compared"
        )
    return notes


def stamp(given: str) -> str:
    """What changes when evaluation images change: names, sizes and times, without reading them.

    Raises:
        UserError: missing, or no set of images.
    """
    digest = hashlib.blake2b(digest_size=8)

    def add(name: str, path: Path) -> None:
        try:
            stat = path.stat()
        except (OSError, ValueError):  # told when it is looked at
            digest.update(f"{name}\0".encode("utf-8", "surrogatepass"))
        else:
            state = f"{name}\0{stat.st_size} {stat.st_mtime_ns}\0"
            digest.update(state.encode("utf-8", "surrogatepass"))

    if not is_manifest(given):
        folder = _folder(given)
        for file in image_files(folder):
            add(str(file.relative_to(folder)), file)
        return digest.hexdigest()
    import fsspec  # it takes long to import, and few builds come here

    manifest = open_manifest(given)
    for shard in manifest.shards:
        fs, path = fsspec.core.url_to_fs(shard.url)
        if "file" in fs.protocol:
            add(path, Path(path))
        else:
            digest.update(str(fs.ukey(path)).encode())
    for batch in manifest.batches(["image.path"]):
        for image in batch.column("image").to_pylist():
            add(image["path"] or "", Path(image["path"] or ""))
    return digest.hexdigest()
