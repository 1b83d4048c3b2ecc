"""Karpathy's split of COCO beside the official files: what he has and they lack is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.data.raw_releases import (
    Silent,
    box,
    build_all,
    caption,
    coco_image,
    write_coco,
    write_json,
)
from tests.shared import shared_path
from xvlm_data.sample.annotations.plan import Request as AnnotationsRequest
from xvlm_data.sample.annotations.write import write_annotations


def record(number: int, split: str, **more: Any) -> dict[str, Any]:
    name = f"COCO_val2014_{number:012d}.jpg"
    sentences = [{"raw": f"sentence of {number}", "sentid": number}]
    return {"cocoid": number, "split": split, "filename": name, "sentences": sentences, **more}


def image_rejects(rejects: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (r["source_file"], r["location"], r["record_id"], r["reason"])
        for r in rejects
        if r["kind"] == "image"
    ]


def test_images_that_the_official_files_lack_are_told_with_their_place(tmp_path: Path) -> None:
    """The real excerpts: of Karpathy's records 391895 is in no official file of ours."""
    root = tmp_path / "coco"
    shutil.copytree(shared_path("fixtures/coco"), root)
    karpathy = shared_path("fixtures/coco_karpathy/dataset_coco.json")
    shutil.copy(karpathy, root)
    listed = json.loads(karpathy.read_text())["images"]
    official = {
        image["id"]
        for name in ("train", "val")
        for image in json.loads((root / f"annotations/instances_{name}2017.json").read_text())[
            "images"
        ]
    }
    place = next(i for i, image in enumerate(listed) if image["cocoid"] == 391895)
    assert 391895 not in official
    summary, rows, rejects = build_all("coco", root, tmp_path / "m", split="test")
    assert [r for r in image_rejects(rejects) if r[3] != "other_split"] == [
        ("dataset_coco.json", f"images[{place}]", "coco/391895", "missing_record")
    ]
    test = {image["cocoid"] for image in listed if image["split"] == "test"}
    assert {r["id"] for r in rows} == {f"coco/{number}" for number in test & official}
    images = summary["counts"]["images"]
    assert images["raw"] == len(official) + 1
    assert images["rejected"] == {"missing_record": 1}


def test_one_bad_record_of_the_split_is_a_reject(tmp_path: Path) -> None:
    root = write_coco(
        tmp_path / "raw",
        images=[coco_image(1), coco_image(2)],
        boxes=[box(1, 1, [0, 0, 50, 50]), box(2, 9, [0, 0, 50, 50])],
        captions=[caption(1, 1, "one"), caption(2, 9, "nine")],
    )
    images = [
        record(9, "restval"),
        {"cocoid": "?", "split": "train"},
        record(1, "train"),
        17,
        record(2, "test"),
        record(8, "test"),
    ]
    write_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})
    summary, rows, rejects = build_all("coco", root, tmp_path / "m")
    assert [r["id"] for r in rows] == ["coco/1"]
    assert sorted(image_rejects(rejects)[1:]) == [
        ("dataset_coco.json", "images[0]", "coco/9", "missing_record"),
        ("dataset_coco.json", "images[1]", None, "malformed"),
        ("dataset_coco.json", "images[3]", None, "malformed"),
    ]
    # What is annotated of an image without a record is of an unknown image, as ever.
    assert summary["counts"]["objects"]["rejected"] == {"unknown_image": 1}
    assert summary["counts"]["captions"]["rejected"] == {"unknown_image": 1}
    # His file alone: the same bad records, and each once.
    shutil.rmtree(root / "annotations")
    summary, rows, rejects = build_all("coco", root, tmp_path / "m2")
    assert summary["counts"]["images"]["rejected"] == {"malformed": 2, "missing_image": 1}


@pytest.mark.parametrize("split", ["train", "restval", "val", "test"])
def test_a_scaled_release_comes_to_its_generators_counts(tmp_path: Path, split: str) -> None:
    """With so many spoilt records that every split lacks images."""
    wanted = AnnotationsRequest(0.003, seed=5, invalid=0.5)
    truth = write_annotations(tmp_path, wanted, ["coco"], stage=Silent().reading)["coco"]
    truth = truth["splits"][split]
    assert truth["counts"]["images"]["rejected"]["missing_record"] > 0
    summary, _, _ = build_all("coco", tmp_path / "coco", tmp_path / "m", split=split, check="none")
    assert {name: summary["counts"][name] for name in truth["counts"]} == truth["counts"]
    assert summary["clipped_boxes"] == truth["clipped_boxes"]
