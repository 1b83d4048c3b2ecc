"""Images left out at build time because evaluation files name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.leaky_releases import sbu_with_pictures
from tests.data.raw_releases import build_all, coco_image, jpeg, write_json
from tests.shared import shared_path

HELD_OUT, FREE, OF_COCO = "1007129816", "1007129817", "1007129818"


def sbu(folder: Path) -> Path:
    """Three photographs; the held-out one has two captions."""
    root = sbu_with_pictures(
        folder, {f"{number}_1174ef59bc.jpg": jpeg() for number in (HELD_OUT, FREE, OF_COCO)}
    )
    path = root / "sbu-captions-all.json"
    listed = json.loads(path.read_text())
    listed["image_urls"].append(f"http://static.flickr.com/1/{HELD_OUT}_1174ef59bc.jpg")
    listed["captions"].append("again")
    path.write_text(json.dumps(listed))
    return root


def write_evaluation(folder: Path) -> list[Path]:
    flickr = {"images": [{"split": "test", "filename": f"{HELD_OUT}.jpg"}]}
    url = f"http://farm9.staticflickr.com/8/{OF_COCO}_aa_z.jpg"
    coco = {"images": [coco_image(5) | {"flickr_url": url}], "annotations": []}
    return [
        write_json(folder / "flickr30k/dataset_flickr30k.json", flickr),
        write_json(folder / "coco/annotations/captions_val2017.json", coco),
    ]


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"].split("/")[1].split("_")[0] for row in rows]


def test_sbu_photographs_of_evaluation_sets_are_left_out(tmp_path: Path) -> None:
    root = sbu(tmp_path / "raw/sbu")
    summary, rows, _ = build_all("sbu", root, tmp_path / "none")
    assert ids(rows) == [HELD_OUT, FREE, OF_COCO]
    assert "no evaluation files" in " ".join(summary["notes"])
    files = write_evaluation(tmp_path / "raw")
    summary, rows, rejects = build_all("sbu", root, tmp_path / "found")
    assert ids(rows) == [FREE]
    assert summary["notes"] == []
    assert {str(path.resolve()) for path in files} <= set(summary["inputs"])
    assert summary["counts"]["images"]["filtered"] == {"leak": 2}
    assert summary["counts"]["captions"]["filtered"] == {"leak": 3}
    images = [r for r in rejects if r["kind"] == "image"]
    assert images[0]["message"] == f"Flickr photo {HELD_OUT} is held out"
    for options, left in (({"exclude": files[:1]}, [FREE, OF_COCO]), ({"keep_leaks": True}, None)):
        summary, rows, _ = build_all("sbu", root, tmp_path / "m", **options)
        assert ids(rows) == (left or [HELD_OUT, FREE, OF_COCO])
    _, rows, _ = build_all("sbu", root, tmp_path / "urls", images="url")
    assert ids(rows) == [FREE]


def test_sbu_and_flickr30ks_real_test_list(tmp_path: Path) -> None:
    listed = shared_path("fixtures/flickr30k/entities_splits/test.txt")
    held_out = listed.read_text().split()[0]
    root = sbu_with_pictures(
        tmp_path / "sbu", {f"{held_out}_1174ef59bc.jpg": jpeg(), f"{FREE}_1174ef59bc.jpg": jpeg()}
    )
    _, rows, _ = build_all("sbu", root, tmp_path / "m", exclude=(listed,))
    assert ids(rows) == [FREE]


@pytest.mark.parametrize("given", [False, True])
def test_a_bad_record_of_an_evaluation_file_is_a_note(tmp_path: Path, given: bool) -> None:
    root = sbu(tmp_path / "raw/sbu")
    path = write_json(
        tmp_path / "raw/flickr30k/dataset_flickr30k.json",
        {"images": [{"split": "test", "filename": "x.jpg"}, {"split": "val", "filename": FREE}]},
    )
    summary, rows, _ = build_all("sbu", root, tmp_path / "m", exclude=(path,) if given else None)
    assert ids(rows) == [HELD_OUT, OF_COCO]
    (note,) = summary["notes"]
    assert "1 element(s) could not be read" in note and "images[0]" in note
