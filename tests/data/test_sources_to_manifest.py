"""From a release to its manifest, for sources that need more of the builder than the first five.

Boxes in fractions, boxes that another file holds, images beside the release, and the columns that
evaluation adds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.raw_releases import Silent, build_all, jpeg, write_image
from tests.data.test_sources_flickr30k import LINE, annotation, drawn, picture
from tests.data.test_sources_flickr30k import release as flickr_release
from tests.data.test_sources_nlvr2 import line
from tests.data.test_sources_nlvr2 import release as nlvr2_release
from tests.data.test_sources_openimages import release as openimages_release
from tests.data.test_sources_openimages import row
from tests.data.test_sources_refcoco import ref
from tests.data.test_sources_refcoco import release as refcoco_release
from tests.data.test_sources_vqa import annotation as answered
from tests.data.test_sources_vqa import question
from tests.data.test_sources_vqa import release as vqa_release
from xvlm_data import reading
from xvlm_data.manifest import open_manifest
from xvlm_data.rules import Rules
from xvlm_data.sample.annotations.plan import Request as AnnotationsRequest
from xvlm_data.sample.annotations.write import write_annotations


def regions(manifest_row: dict[str, Any]) -> list[tuple[str, list[float]]]:
    return [(c["text"], c["box"]) for c in manifest_row["concepts"] if c["granularity"] != "image"]


def test_openimages_boxes_are_fractions_of_the_stored_image(tmp_path: Path) -> None:
    lines = [
        row(),
        row(IsGroupOf="1"),
        row(XMin="0", XMax="0.05", YMin="0", YMax="0.1"),  # half a percent of the image
        row(XMin="0.5", XMax="1.5"),
        row(XMin="nan"),
        row(XMin="0.8", XMax="0.2"),
        row(image="00000000000000aa"),
    ]
    root = openimages_release(tmp_path / "raw", lines)
    # Turned by EXIF, the picture would be 80 x 100; the boxes are of the stored 100 x 80.
    turned = jpeg(100, 80, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0")
    write_image(root / "train/00000000000000ff.jpg", turned)
    summary, rows, _ = build_all("openimages", root, tmp_path / "m")
    assert [(r["id"], r["width"], r["height"]) for r in rows] == [
        ("openimages/00000000000000ff", 100, 80)
    ]
    assert regions(rows[0]) == [
        ("Dog", pytest.approx([0.5, 0.3125, 0.5, 0.375])),
        ("Dog", pytest.approx([0.75, 0.3125, 0.5, 0.375])),
    ]
    objects = summary["counts"]["objects"]
    assert objects["filtered"] == {"crowd": 1, "small": 1}
    assert objects["rejected"] == {"box_not_finite": 1, "box_empty": 1, "missing_image": 1}
    assert summary["clipped_boxes"] == 1
    assert summary["counts"]["images"]["rejected"] == {"missing_image": 1}


@pytest.mark.parametrize("source", ["openimages", "cc12m"])
def test_scaled_annotations_come_to_the_counts_of_their_generator(
    tmp_path: Path, source: str
) -> None:
    wanted = AnnotationsRequest(0.0005, seed=3, invalid=0.1)
    truths = write_annotations(tmp_path, wanted, [source], stage=Silent().reading)
    truth = truths[source]["splits"]["train"]
    summary, _, _ = build_all(source, tmp_path / source, tmp_path / "m", check="none")
    assert {name: summary["counts"][name] for name in truth["counts"]} == truth["counts"]
    assert summary["clipped_boxes"] == truth["clipped_boxes"]


def test_openimages_is_the_same_however_its_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [row(image=f"{n % 7:016x}", XMin=f"0.{n}") for n in range(1, 60)]
    lines[10] = "broken"
    lines[40] = row(XMin="x")
    root = openimages_release(tmp_path / "raw", lines)
    for number in range(7):
        write_image(root / f"train/{number:016x}.jpg")
    whole = build_all("openimages", root, tmp_path / "whole")
    monkeypatch.setattr(reading, "RANGE", 333)
    one, two = (
        build_all("openimages", root, tmp_path / str(workers), workers=workers)
        for workers in (1, 2)
    )
    assert one == two
    assert one[0]["shards"] == whole[0]["shards"]
    assert one[1] == whole[1]
    assert sorted(r["location"] for r in one[2]) == sorted(r["location"] for r in whole[2])
    assert {r["location"] for r in one[2] if r["reason"] == "malformed"} == {
        "line 12",
        "line 42",
    }


def test_refcoco_keeps_every_expression_and_names_its_object(tmp_path: Path) -> None:
    small = [{"id": 102, "image_id": 2, "bbox": [1, 2, 3, 4], "category_id": 1}]
    root = refcoco_release(tmp_path / "raw", [ref(1, "train"), ref(2)], objects=small)
    write_image(root / "train2014/COCO_train2014_000000000002.jpg")
    summary, rows, _ = build_all("refcoco", root, tmp_path / "m", split="val")
    (only,) = rows
    # Far below 1 % of the image, and alike in words: test sets are not filtered.
    expected = pytest.approx([0.025, 0.05, 0.03, 0.05])
    assert regions(only) == [("the man 2", expected), ("the one 2", expected)]
    assert [(r["ref_id"], r["bbox"]) for r in only["refs"]] == [(2, [1, 2, 3, 4])]
    counts = summary["counts"]
    assert (counts["regions"]["raw"], counts["questions"]["raw"]) == (4, 2)
    assert counts["questions"]["filtered"] == {"other_split": 1}


def test_images_of_coco_may_lie_beside_the_release(tmp_path: Path) -> None:
    root = refcoco_release(tmp_path / "refcoco", [ref(2)])
    write_image(tmp_path / "coco/train2014/COCO_train2014_000000000002.jpg")
    summary, rows, _ = build_all("refcoco", root, tmp_path / "m", split="val")
    assert rows[0]["image"]["path"].endswith("coco/train2014/COCO_train2014_000000000002.jpg")
    # So that the manifest can be moved with its images.
    assert summary["image_root"] == str(tmp_path / "coco")
    (tmp_path / "coco").rename(tmp_path / "elsewhere")
    moved = open_manifest(tmp_path / "m", image_root=str(tmp_path / "elsewhere"))
    (row,) = moved.read_row_group(0, 0).to_pylist()
    assert Path(row["image"]["path"]).is_file()


def test_flickr30k_with_entities(tmp_path: Path) -> None:
    xml = annotation(drawn([1], [1, 1, 250, 375]), drawn([2], [1, 1, 5, 5]))
    root = flickr_release(tmp_path / "raw", [picture(7), picture(8, "val")], {7: LINE}, {7: xml})
    write_image(root / "flickr30k-images/7.jpg", jpeg(500, 375))
    summary, rows, _ = build_all("flickr30k", root, tmp_path / "m")
    assert [r["caption"] for r in rows] == ["Two men ."]
    assert [text for text, _ in regions(rows[0])] == ["Two men", "red hats"]
    assert regions(rows[0])[0][1] == pytest.approx([0.25, 0.5, 0.5, 1])
    assert [p["text"] for p in rows[0]["phrases"]] == ["Two men", "red hats", "it"]
    assert summary["counts"]["captions"]["filtered"] == {"other_split": 1}


def test_vqa_questions_of_an_image_are_one_list(tmp_path: Path) -> None:
    questions = [question(1, 7), question(2, 9), question(3, 7), question(4, 7, " ")]
    answers = [answered(n, q["image_id"]) for n, q in enumerate(questions, 1)]
    root = vqa_release(tmp_path / "raw", questions, answers)
    for number in (7, 9):
        write_image(root / f"train2014/COCO_train2014_{number:012d}.jpg", jpeg(60, 40))
    summary, rows, _ = build_all("vqa", root, tmp_path / "m")
    found = {r["id"]: [q["question_id"] for q in r["questions"]] for r in rows}
    assert found == {"vqa/7": [1, 3], "vqa/9": [2]}
    assert rows[0]["concepts"] == []
    assert (rows[0]["width"], rows[0]["height"]) == (60, 40)
    assert summary["counts"]["questions"] == {
        "raw": 4,
        "kept": 3,
        "filtered": {},
        "rejected": {"empty_text": 1},
    }


def test_vqa_without_a_look_at_the_images(tmp_path: Path) -> None:
    root = vqa_release(tmp_path / "raw", [question(1)], [answered(1)])
    _, rows, rejects = build_all("vqa", root, tmp_path / "m", check="none")
    assert [r["questions"][0]["question_id"] for r in rows] == [1]
    assert rejects == []


def test_a_size_that_nobody_knows_is_0_and_the_manifest_says_so(tmp_path: Path) -> None:
    root = openimages_release(tmp_path / "raw", [row()])
    for check, size, version in (("none", (0, 0), 2), ("decode", (100, 80), 1)):
        write_image(root / "train/00000000000000ff.jpg")
        summary, rows, _ = build_all("openimages", root, tmp_path / check, check=check)
        assert (rows[0]["width"], rows[0]["height"]) == size
        assert summary["schema_version"] == version
        assert open_manifest(tmp_path / check).schema_version == version


def test_nlvr2_pairs_stand_with_their_left_image(tmp_path: Path) -> None:
    root = nlvr2_release(tmp_path / "raw", [line("dev-1-0-0"), line("dev-1-0-1")], "dev")
    for side in (0, 1):
        write_image(root / f"images/dev/dev-1-0-img{side}.png")
    _, rows, _ = build_all("nlvr2", root, tmp_path / "m", split="dev")
    assert [r["id"] for r in rows] == ["nlvr2/dev-1-0-img0", "nlvr2/dev-1-0-img1"]
    assert [p["identifier"] for p in rows[0]["pairs"]] == ["dev-1-0-0", "dev-1-0-1"]
    assert rows[0]["pairs"][0]["right"] == rows[1]["id"]
    assert not rows[1]["pairs"]


@pytest.mark.parametrize("rules", [Rules(), Rules(min_area=0, max_text_overlap=1)])
def test_counts_add_up_whatever_is_wrong(tmp_path: Path, rules: Rules) -> None:
    refs = [ref(1), ref(2, ann_id=999), ref(3, ref_id="x"), "none", ref(4, sentences=[None])]
    root = refcoco_release(tmp_path / "raw", refs)
    for number in (1, 2, 4):
        write_image(root / f"train2014/COCO_train2014_{number:012d}.jpg")
    summary, _, rejects = build_all("refcoco", root, tmp_path / "m", split="val", rules=rules)
    for counts in summary["counts"].values():
        left_out = sum(counts["filtered"].values()) + sum(counts["rejected"].values())
        assert counts["kept"] + left_out == counts["raw"]
    assert summary["counts"]["questions"]["raw"] == 5
    assert len(rejects) == summary["rejects"]
