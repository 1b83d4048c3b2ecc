"""The annotation files that are measured on, and what a build of them must come to."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from xvlm_data.sample.annotations import TRUTH
from xvlm_data.sample.annotations.write import FORMAT
from xvlm_data.sample.folders import MARKER

_COCO = ("annotations/instances_train2017.json", "annotations/captions_train2017.json")
_OBJECTS365 = "zhiyuan_objv2_train.json"

#: What a build of the training part reads, and what the parsers therefore read too.
FILES = {
    "coco": _COCO,
    "vg": (
        "image_data.json",
        "region_descriptions.json",
        "objects.json",
        "attributes.json",
        # Which images evaluation sets hold, so that they are left out.
        "../coco/dataset_coco.json",
        "../coco/annotations/captions_val2017.json",
        "../coco/annotations/instances_val2017.json",
    ),
    "objects365": (_OBJECTS365,),
}
SOURCES = tuple(FILES)
#: The share of records of each kind that are spoilt, where any are.
SPOILT = 0.002
#: COCO and what is laid out as it: the peers read these.
COCO_LIKE = ("coco", "objects365")


@dataclass(frozen=True)
class Release:
    """A raw release of generated annotation files.

    Attributes:
        source: name of the source.
        scale: 1 is the size of the real release.
        root: its folder, as a build wants it.
        files: what a build reads.
        truth: the counts that a build must come to, with ``clipped_boxes`` and ``boxes``.
    """

    source: str
    scale: float
    root: Path
    files: tuple[Path, ...]
    truth: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def largest(self) -> int:
        """Bytes of the largest file."""
        return max(path.stat().st_size for path in self.files)

    @property
    def boxes(self) -> int:
        """Objects and regions in the files."""
        return int(self.truth["boxes"])

    @property
    def memory_limit(self) -> int:
        """What a build may take: 400 MB and 80 bytes a box."""
        return 400 * 10**6 + 80 * self.boxes


def prepare(
    data: Path, source: str, scale: float, seed: int = 0, *, clean: bool = False
) -> Release:
    """A release, generated unless it is there already.

    COCO is without Karpathy's file, so that the official train2017 is what is built; VG has it
    beside, so that images of evaluation sets are found and left out.

    Args:
        data: where releases are kept.
        source: one of :data:`SOURCES`.
        scale: 1 is the size of the real release.
        seed: of the generator.
        clean: without spoilt records.
    """
    folder = data / f"{scale:g}{'-clean' if clean else ''}"
    for name in {"coco": ("coco",), "vg": ("coco", "vg")}.get(source, (source,)):
        _generate(folder, name, scale, seed, 0.0 if clean else SPOILT)
    found = folder / source
    truth = json.loads((found / TRUTH).read_text())
    root = found
    if source == "coco":
        root = folder / "without-karpathy" / "coco"
        for file in _COCO:
            _link(root / file, found / file)
        truth = truth["without_karpathy"]["train"]
    else:
        truth = truth["splits"]["train"]
    files = tuple(root / file for file in FILES[source])
    return Release(source, scale, root, files, truth)


def for_peers(release: Release) -> Release:
    """The same release as the peers want it: one file of objects, in a folder with images/."""
    root = release.root.parent / "for-peers" / release.source
    (root / "images" / "train2017").mkdir(parents=True, exist_ok=True)
    _link(root / _COCO[0], release.files[0])
    if release.source == "objects365":
        _link(root / _OBJECTS365, release.files[0])
    none = {"raw": 0, "kept": 0, "filtered": {}, "rejected": {}}
    truth = {**release.truth, "counts": {**release.truth["counts"], "captions": none}}
    return replace(release, root=root, files=(root / _COCO[0],), truth=truth)


def _generate(folder: Path, source: str, scale: float, seed: int, invalid: float) -> None:
    options = {"source": source, "scale": scale, "seed": seed, "invalid": invalid}
    wanted = {"format": FORMAT, **options}
    try:
        marker = json.loads((folder / source / MARKER).read_text())
    except (OSError, ValueError):
        marker = {}
    if marker == wanted:
        return
    click.echo(f"generating {source} at scale {scale:g}", err=True)
    # In a process of its own: this one stays small, and has no other children than it measures.
    command = [sys.executable, "-m", "xvlm_data", "sample", "--annotations-only"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command += ["--out", str(folder)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise click.ClickException(f"generating {source} failed")


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())


def differences(release: Release, summary: dict[str, Any]) -> list[str]:
    """How the counts of a build differ from the truth: one line each.

    Args:
        release: what was built.
        summary: content of the ``manifest.json`` that came of it.
    """
    found = []
    truth, counts = release.truth, summary["counts"]
    for kind in sorted({*truth["counts"], *counts}):
        wanted, got = truth["counts"].get(kind), counts.get(kind)
        if wanted != got:
            found.append(f"{kind}: {wanted} wanted, {got} found")
        if got:
            total = got["kept"] + sum(got["filtered"].values()) + sum(got["rejected"].values())
            if total != got["raw"]:
                found.append(f"{kind}: {got['raw']} read, {total} accounted for")
    return found + [
        f"{name}: {truth[name]} wanted, {summary[name]} found"
        for name in ("clipped_boxes", "unattached_attributes")
        if name in truth and truth[name] != summary[name]
    ]
