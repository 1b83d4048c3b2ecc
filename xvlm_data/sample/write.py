"""Putting the miniature releases on disk: annotations first, then every picture, then a rename."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from xvlm_data.errors import UserError
from xvlm_data.sample import coco, objects365, vg, web
from xvlm_data.sample.folders import MARKER, check_free, publish, workshop_in
from xvlm_data.sample.release import Picture, Release, write_json
from xvlm_data.sample.render import draw_picture

_WRITERS: dict[str, Callable[[Path, int, int], list[tuple[str, Release]]]] = {
    "coco": coco.write,
    "vg": vg.write,
    "sbu": web.write_sbu,
    "cc3m": web.write_cc3m,
    "objects365": objects365.write,
}
SOURCES = tuple(_WRITERS)
MOST_IMAGES = 250_000  # training and validation ids of COCO's layout alternate below 581,921
_FORMAT = 1  # of the marker: raised whenever the same seed gives other bytes

Counts = dict[str, dict[str, dict[str, int]]]


def write_samples(
    out: Path,
    images: int,
    seed: int,
    sources: Sequence[str] = SOURCES,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    *,
    overwrite: bool = False,
) -> Counts:
    """Writes miniature releases to ``out``/<source>, and VG's held-out part to ``out``/vg_val.

    The bytes depend on ``images``, ``seed`` and the source alone, not on ``workers``. Each folder
    appears complete or not at all.

    Args:
        out: the folder of the releases; made when missing.
        images: training images per source.
        seed: of everything drawn by lot.
        sources: which of :data:`SOURCES`.
        workers: processes that draw.
        progress: called with (pictures drawn, pictures in all).
        overwrite: whether a folder that this function did not write may be replaced.

    Returns:
        Folder name -> split -> counts of images, captions, regions, objects, ...

    Raises:
        UserError: unknown source, no or too many images, a folder in the way, a disk that refuses.
    """
    for source in sources:
        if source not in _WRITERS:
            raise UserError(f"unknown source {source!r}", f"choose from {', '.join(SOURCES)}")
    if images < 1:
        raise UserError(
            f"--images must be at least 1, not {images}", "give how many images to write"
        )
    if images > MOST_IMAGES:
        raise UserError(
            f"{images} images need more ids than COCO has",
            f"ask for at most {MOST_IMAGES}, or for several --seed",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with workshop_in(out) as workshop:
            releases = [
                release
                for source in dict.fromkeys(sources)
                for release in _planned(source, workshop, out, images, seed, overwrite)
            ]
            pictures = [picture for _, release in releases for picture in release.pictures]
            _draw(pictures, workers, progress)
            for name, _ in releases:
                publish(workshop, out, name)
    except OSError as error:
        raise UserError(f"cannot write the sample: {error}", "choose another --out") from error
    return {name: release.counts for name, release in releases}


def _planned(
    source: str, workshop: Path, out: Path, images: int, seed: int, overwrite: bool
) -> list[tuple[str, Release]]:
    for name in _folders(source):
        check_free(out / name, overwrite)
    releases = _WRITERS[source](workshop / source, images, seed)
    for name, _ in releases:
        write_json(workshop / name / MARKER, {"format": _FORMAT, "images": images, "seed": seed})
    return releases


def _folders(source: str) -> tuple[str, ...]:
    return ("vg", "vg_val") if source == "vg" else (source,)


def _draw(
    pictures: list[Picture], workers: int, progress: Callable[[int, int], None] | None
) -> None:
    for folder in sorted({picture.path.parent for picture in pictures}):
        folder.mkdir(parents=True, exist_ok=True)
    # A process is worth its start-up from some two hundred pictures on.
    workers = min(workers, 1 + len(pictures) // 200)
    if workers < 2:
        _report(map(draw_picture, pictures), len(pictures), progress)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # "spawn": forking a process that has threads (a progress bar's) can lock up.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            _report(pool.map(draw_picture, pictures, chunksize=32), len(pictures), progress)
    except BrokenProcessPool as error:
        raise UserError("a drawing process was killed", "try --workers 1") from error


def _report(drawn: Iterable[None], total: int, progress: Callable[[int, int], None] | None) -> None:
    for done, _ in enumerate(drawn, 1):
        if progress is not None:
            progress(done, total)
