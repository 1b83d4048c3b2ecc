"""A search from paths to a report."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from xvlm_data.leaks.against import Stage, open_against
from xvlm_data.leaks.fingerprint import Wanted
from xvlm_data.leaks.identity import Identities
from xvlm_data.leaks.report import report_file
from xvlm_data.leaks.search import LeakReport, search
from xvlm_data.manifest import open_manifest


@dataclass(frozen=True)
class Options:
    """How to search.

    Attributes:
        ids: files that tell the ids of rows, besides those in the manifests' image roots.
        image_root: where referenced images lie now.
        content: look at images, where there are evaluation images to compare with.
        pixels: decode them, and compare the pixels too.
        distance: differing bits up to which images look alike; None does not compare looks.
        workers: threads.
    """

    ids: Sequence[Path] = ()
    image_root: str | None = None
    content: bool = True
    pixels: bool = True
    distance: int | None = None
    workers: int = 1


def run(
    manifests: Sequence[str],
    against: Sequence[str],
    options: Options,
    *,
    out: Path | None = None,
    stage: Stage,
) -> LeakReport:
    """Open everything, search, write the findings to ``out``.

    Raises:
        UserError: something is missing, broken, or cannot be compared for want of a file.
    """
    opened = [(name, open_manifest(name, image_root=options.image_root)) for name in manifests]
    identities = Identities()
    for path in options.ids:
        identities.read(path)
    for _, manifest in opened:
        identities.read_beside(manifest)
    wanted = Wanted(pixels=options.pixels, looks=options.distance is not None)
    with ThreadPoolExecutor(options.workers) as pool, report_file(out) as sink:
        others = [
            open_against(
                name, identities, wanted if options.content else None, options.distance, pool, stage
            )
            for name in against
        ]
        sides = {s for other in others if other.content is not None for s in other.content.sides}
        return search(
            opened,
            others,
            identities,
            wanted=replace(wanted, sides=sides),
            pool=pool,
            sink=sink,
            stage=stage,
        )
