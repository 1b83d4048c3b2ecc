"""What manifests are held against: evaluation files, manifests and folders of evaluation images."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np

from xvlm_data.errors import UserError
from xvlm_data.leaks.content import (
    Advance,
    Named,
    image_files,
    look_at_folder,
    look_at_rows,
    read_rows,
)
from xvlm_data.leaks.content_index import ContentIndex
from xvlm_data.leaks.evaluation import Ids, coco_name, read_evaluation_file
from xvlm_data.leaks.fingerprint import Wanted
from xvlm_data.leaks.identity import NONE, Identities
from xvlm_data.manifest import SUMMARY_NAME, open_manifest
from xvlm_data.mistaken import near_path

Stage = Callable[[str, int | None, str], AbstractContextManager[Advance]]

#: Images looked at together.
BATCH = 256


@dataclass(frozen=True)
class Numbers:
    """Ids that must not be met.

    Attributes:
        ids: ``[N]`` sorted and distinct.
        kind: what the ids are.
        complete: whether every evaluation image has one.
        names: the image each belongs to, where images have names of their own.
    """

    ids: Ids
    kind: str
    complete: bool
    names: list[str] | None = None

    def find(self, wanted: Ids) -> list[tuple[int, str]]:
        """(place in ``wanted``, name) of those that are among the ids."""
        if not len(self.ids):
            return []
        place = np.searchsorted(self.ids, wanted).clip(max=len(self.ids) - 1)
        hits = np.flatnonzero((self.ids[place] == wanted) & (wanted != NONE))
        return [(int(hit), self._name(int(place[hit]))) for hit in hits]

    def _name(self, place: int) -> str:
        return f"{self.kind} {self.ids[place]}" if self.names is None else self.names[place]


@dataclass(frozen=True)
class Against:
    """One thing that manifests are held against.

    Attributes:
        name: as it was given.
        kind: what it is, in words.
        images: how many evaluation images it has.
        coco: their COCO ids.
        flickr: their Flickr photo ids.
        content: the images themselves, where they are there.
    """

    name: str
    kind: str
    images: int
    coco: Numbers
    flickr: Numbers
    content: ContentIndex | None = None


def open_against(
    given: str,
    identities: Identities,
    wanted: Wanted | None,
    distance: int | None,
    pool: Executor,
    stage: Stage,
) -> Against:
    """Read an evaluation file, or look at the images of a manifest or folder.

    Args:
        given: a path, glob or URL.
        identities: tells the ids of a manifest's rows.
        wanted: what to compute of images; None to leave them alone.
        distance: up to which Hamming distance images look alike; None to leave that alone.
        pool: where images are looked at.
        stage: opens a progress display.

    Raises:
        UserError: missing, or of no kind that is known.
    """
    path = Path(given)
    if is_manifest(given):
        return _manifest(given, identities, wanted, distance, pool, stage)
    if path.is_dir():
        return _folder(path, wanted, distance, pool, stage)
    if not path.exists():
        near = near_path(fsspec.filesystem("file"), str(path.absolute()), given)
        raise UserError(
            f"{given}: no such file, folder or manifest",
            f"did you mean {near}?" if near else "check the path",
        )
    file = read_evaluation_file(path)
    return Against(
        given,
        file.kind,
        file.images,
        Numbers(file.coco_ids, "COCO image", "coco" in file.tells),
        Numbers(file.flickr_ids, "Flickr photo", "flickr" in file.tells),
    )


def is_manifest(given: str) -> bool:
    """Whether a path, glob or URL can only be meant as a manifest."""
    path = Path(given)
    if "://" in given or path.suffix == ".parquet" or (path / SUMMARY_NAME).is_file():
        return True
    return any(mark in given for mark in "*?[") and not path.exists()


def _manifest(
    given: str,
    identities: Identities,
    wanted: Wanted | None,
    distance: int | None,
    pool: Executor,
    stage: Stage,
) -> Against:
    manifest = open_manifest(given)
    identities.read_beside(manifest)
    names: list[str] = []
    coco: list[Ids] = []
    flickr: list[Ids] = []
    seen: list[Named] = []
    columns = ["id"] if wanted is None else ["id", "image"]
    with stage(f"evaluation images of {given}", len(manifest), "images") as advance:
        for rows in read_rows(manifest, columns, BATCH):
            ids = rows.batch.column("id")
            told = identities(ids)
            coco.append(told.coco)
            flickr.append(told.flickr)
            here = ids.to_pylist()
            names += here
            if wanted is not None:
                images = rows.batch.column("image")
                seen += zip(here, look_at_rows(images, wanted, pool), strict=True)
            advance(len(ids))
    return Against(
        given,
        "manifest",
        len(names),
        _numbers(coco, names, "COCO image"),
        _numbers(flickr, names, "Flickr photo"),
        None if wanted is None else ContentIndex.of(seen, distance),
    )


def _folder(
    path: Path, wanted: Wanted | None, distance: int | None, pool: Executor, stage: Stage
) -> Against:
    files = image_files(path)
    names = [str(file.relative_to(path)) for file in files]
    seen: list[Named] = []
    if wanted is not None:
        with stage(f"evaluation images in {path}", len(files), "images") as advance:
            seen = look_at_folder(path, files, wanted, pool, advance)
    # COCO's file names tell which image they are; of others only the content counts.
    coco = [NONE if (number := coco_name(name)) is None else number for name in names]
    return Against(
        str(path),
        "folder of images",
        len(files),
        _numbers([np.array(coco, np.int64)], names, "COCO image"),
        _numbers([], names, "Flickr photo"),
        None if wanted is None else ContentIndex.of(seen, distance),
    )


def _numbers(chunks: list[Ids], names: list[str], kind: str) -> Numbers:
    every = np.concatenate([np.zeros(0, np.int64), *chunks])
    ids, first = np.unique(every, return_index=True)
    known = ids != NONE
    complete = len(every) == len(names) and bool((every != NONE).all())
    return Numbers(ids[known], kind, complete, [names[i] for i in first[known]])
