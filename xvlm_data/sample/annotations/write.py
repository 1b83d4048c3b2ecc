"""Putting annotation files of the real sizes on disk, with the truth about them beside."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from xvlm_data.errors import UserError
from xvlm_data.sample.annotations.files import write_files
from xvlm_data.sample.annotations.plan import Plan, Request
from xvlm_data.sample.folders import MARKER, check_free, publish, workshop_in

_MODULES = {
    "coco": "coco",
    "vg": "vg",
    "sbu": "url_lists",
    "cc3m": "url_lists",
    "objects365": "objects365",
    "openimages": "openimages",
    "cc12m": "url_lists",
}
SOURCES = tuple(_MODULES)
TRUTH = "truth.json"
#: Of marker and truth: raised whenever the same seed gives other bytes
FORMAT = 2

OpenStage = Callable[[str, int], Any]


def write_annotations(
    out: Path,
    request: Request,
    sources: Sequence[str] = SOURCES,
    *,
    workers: int = 1,
    stage: OpenStage,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes annotation files in official layouts, without images, to ``out``/<source>.

    The bytes depend on the request and the source alone, not on ``workers``. Each folder appears
    complete or not at all. Memory does not grow with the scale.

    Args:
        out: the folder of the releases; made when missing.
        request: scale, seed, and share of invalid records.
        sources: which of :data:`SOURCES`.
        workers: processes that make records.
        stage: opens a progress display, from its name and number of records; a context manager
            that gives an ``advance(n)``.
        overwrite: whether a folder that is no sample may be replaced.

    Returns:
        Folder name -> the content of its ``truth.json``.

    Raises:
        UserError: unknown source, a folder in the way, a disk that refuses.
    """
    for source in sources:
        if source not in _MODULES:
            raise UserError(f"unknown source {source!r}", f"choose from {', '.join(SOURCES)}")
    truths = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for source in sources:
            check_free(out / source, overwrite)
        for source in dict.fromkeys(sources):
            with workshop_in(out) as workshop:
                truths[source] = _write(source, workshop / source, request, workers, stage)
                publish(workshop, out, source)
    except OSError as error:
        raise UserError(
            f"cannot write the annotations: {error}", "choose another --out or a smaller --scale"
        ) from error
    return truths


def _write(
    source: str, folder: Path, request: Request, workers: int, stage: OpenStage
) -> dict[str, Any]:
    plan = _plan(source, folder, request)
    with stage(f"writing {source}", sum(file.records for file in plan.files)) as advance:
        tally = write_files(plan.files, workers, advance)
    about = {"format": FORMAT, "source": source, **asdict(request)}
    truth = {**about, **plan.truth(tally)}
    (folder / TRUTH).write_text(json.dumps(truth, indent=2) + "\n", encoding="utf-8")
    (folder / MARKER).write_text(json.dumps(about) + "\n", encoding="utf-8")
    return truth


def _plan(source: str, folder: Path, request: Request) -> Plan:
    module = import_module(f"xvlm_data.sample.annotations.{_MODULES[source]}")
    plan: Plan = module.PLANS[source](folder, request)
    return plan
