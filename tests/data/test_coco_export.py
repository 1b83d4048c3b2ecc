"""File names and numbers of images that are written in COCO's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xvlm_data.formats.coco import export_coco
from xvlm_data.manifest import Manifest, open_manifest

from .inspect_manifests import INFO, SIZE, png, row, write


def manifest_of(folder: Path, *rows: dict[str, Any], **info: Any) -> Manifest:
    folder.mkdir(parents=True, exist_ok=True)
    return open_manifest(write(folder / "m.parquet", list(rows), INFO | info))


def images_of(folder: Path) -> list[dict[str, Any]]:
    """What all three files say of the images."""
    told = [
        json.loads((folder / f"annotations/{name}.json").read_bytes())["images"]
        for name in ("instances", "captions", "regions")
    ]
    assert told[0] == told[1] == told[2]
    found: list[dict[str, Any]] = told[0]
    return found


def referenced(root: Path, name: str, number: int, **changes: Any) -> dict[str, Any]:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png())
    return row(number, image={"bytes": None, "path": str(path)}, **changes)


@pytest.mark.parametrize("sizes", [SIZE, (0, 0)])
def test_references_below_images_keep_their_folder(tmp_path: Path, sizes: tuple[int, int]) -> None:
    """As every build of SBU and CC3M has them, and COCO in ``images/train2017/``."""
    root = tmp_path / "raw"
    size = dict(zip(("width", "height"), sizes, strict=True))
    manifest = manifest_of(
        tmp_path,
        referenced(root, "images/1.png", 1, **size),
        referenced(root, "images/train2017/2.png", 2, **size),
        image_root=str(root),
    )
    done = export_coco(manifest, tmp_path / "out")
    images = images_of(tmp_path / "out")
    assert [image["file_name"] for image in images] == ["images/1.png", "images/train2017/2.png"]
    assert all((root / image["file_name"]).is_file() for image in images)
    assert done.notes == [f"no referenced picture was copied: file names are relative to {root}"]
    assert not (tmp_path / "out/images").exists()


def test_pictures_that_are_written_are_named_within_images(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    rows = [referenced(root, "images/1.png", 1), row(2)]
    manifest = manifest_of(tmp_path, *rows, image_root=str(root))
    done = export_coco(manifest, tmp_path / "out")
    assert [image["file_name"] for image in images_of(tmp_path / "out")] == [
        "images/1.png",
        "000000000002.png",
    ]
    assert len(done.notes) == 2
    copied = export_coco(manifest, tmp_path / "copied", images="copy")
    images = images_of(tmp_path / "copied")
    assert [image["file_name"] for image in images] == ["000000000001.png", "000000000002.png"]
    assert all((tmp_path / "copied/images" / image["file_name"]).is_file() for image in images)
    assert copied.notes == []


def test_images_of_one_id_are_numbered_anew(tmp_path: Path) -> None:
    black = {"bytes": png(colour="black"), "path": None}
    rows = [row(7), row(9), row(7, image=black), *(row(n) for n in range(100, 110))]
    done = export_coco(manifest_of(tmp_path, *rows), tmp_path / "out")
    images = images_of(tmp_path / "out")
    assert [image["id"] for image in images] == list(range(1, 14))
    assert [image["manifest_id"] for image in images[:3]] == ["made/7", "made/9", "made/7"]
    first, _, third = (tmp_path / "out/images" / image["file_name"] for image in images[:3])
    assert (first.read_bytes(), third.read_bytes()) == (png(), png(colour="black"))
    captions = json.loads((tmp_path / "out/annotations/captions.json").read_bytes())
    assert sorted(a["image_id"] for a in captions["annotations"]) == list(range(1, 14))
    assert done.notes == [
        "1 images have the id of another one: all are numbered anew, "
        "and `manifest_id` tells their ids"
    ]
    assert export_coco(manifest_of(tmp_path, *rows[:2]), tmp_path / "distinct").notes == []
    assert [image["id"] for image in images_of(tmp_path / "distinct")] == [7, 9]
