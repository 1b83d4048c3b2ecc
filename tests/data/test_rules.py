"""Every rule of reformulation, each with a case that fails without it."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.data.raw_releases import (
    box,
    build_all,
    caption,
    coco_image,
    region,
    vg_image,
    write_coco,
    write_json,
    write_vg,
)
from xvlm_data.rules import Rules
from xvlm_data.text import category_text

BIG = [10.0, 20.0, 40.0, 30.0]


def coco(tmp_path: Path, boxes: list[Any], **options: Any) -> tuple[Any, Any, Any]:
    return build_all("coco", write_coco(tmp_path / "raw", boxes=boxes), tmp_path / "out", **options)


def reasons(rejects: list[dict[str, Any]]) -> dict[str, str]:
    return {row["location"].split("id=")[-1]: row["reason"] for row in rejects}


def test_box_is_centre_and_size_over_the_image_size(tmp_path: Path) -> None:
    _, rows, _ = coco(tmp_path, [box(7, 1, [10, 20, 40, 30])])
    (concept,) = rows[0]["concepts"]
    assert concept["box"] == pytest.approx([30 / 100, 35 / 80, 40 / 100, 30 / 80])
    assert concept["granularity"] == "object"
    assert concept["text"] == "traffic light"


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([-10, 20, 40, 30], [15 / 100, 35 / 80, 30 / 100, 30 / 80]),
        ([80, 60, 40, 40], [90 / 100, 70 / 80, 20 / 100, 20 / 80]),
        ([-5, -5, 200, 200], [0.5, 0.5, 1, 1]),
    ],
)
def test_box_is_clipped_to_the_image_and_counted(
    tmp_path: Path, bbox: list[float], expected: list[float]
) -> None:
    summary, rows, _ = coco(tmp_path, [box(7, 1, bbox), box(8, 1, BIG)])
    assert rows[0]["concepts"][0]["box"] == pytest.approx(expected)
    assert summary["clipped_boxes"] == 1


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([10, 10, 0, 5], "box_empty"),
        ([10, 10, 5, 0.0], "box_empty"),
        ([10, 10, -5, 20], "box_empty"),
        ([math.nan, 10, 50, 50], "box_not_finite"),
        ([10, 10, math.inf, 50], "box_not_finite"),
        ([100, 10, 50, 50], "box_outside"),
        ([10, -904, 55, 25], "box_outside"),
        ([-60, 10, 50, 50], "box_outside"),
        ([10, 10, 50], "malformed"),
        (None, "malformed"),
        (["1", 2, 3, 4], "malformed"),
    ],
)
def test_broken_boxes_are_rejected_each_alone(tmp_path: Path, bbox: Any, reason: str) -> None:
    summary, rows, rejects = coco(tmp_path, [box(7, 1, bbox), box(8, 1, BIG)])
    assert len(rows[0]["concepts"]) == 1
    assert [row["reason"] for row in rejects] == [reason]
    assert rejects[0]["location"].startswith("annotations[0]")
    assert rejects[0]["source_file"] == "annotations/instances_train2017.json"
    assert summary["counts"]["objects"]["rejected"] == {reason: 1}


def test_small_objects_and_regions_are_left_out(tmp_path: Path) -> None:
    # 1 % of 100 x 80 pixels is 80.
    boxes = [box(7, 1, [0, 0, 8, 9.9]), box(8, 1, [0, 0, 8, 10.1])]
    summary, rows, rejects = coco(tmp_path / "a", boxes)
    assert reasons(rejects) == {"7": "small"}
    assert summary["counts"]["objects"]["filtered"] == {"small": 1}
    regions = {1: [region(1, "a speck", 0, 0, 8, 9), region(2, "a thing", 0, 0, 50, 50)]}
    _, rows, rejects = build_all("vg", write_vg(tmp_path / "vg", regions), tmp_path / "out")
    assert reasons(rejects) == {"1": "small"}
    _, rows, _ = coco(tmp_path / "b", boxes, rules=Rules(min_area=0))
    assert len(rows[0]["concepts"]) == 2


def test_area_counts_after_clipping(tmp_path: Path) -> None:
    _, _, rejects = coco(tmp_path, [box(7, 1, [-95, 0, 100, 10])])
    assert reasons(rejects) == {"7": "small"}


def test_overlapping_region_texts_of_one_image_are_left_out(tmp_path: Path) -> None:
    regions = {
        1: [
            region(1, "The clock is green."),
            region(2, "the clock  is green", 30, 30),
            region(3, "the clock is green in colour", 20, 20),  # 4 of 6 words
            region(4, "a green clock", 5, 5),
        ],
        2: [region(5, "the clock is green")],  # another image
    }
    root = write_vg(tmp_path / "raw", regions)
    _, rows, rejects = build_all("vg", root, tmp_path / "out")
    assert reasons(rejects) == {"2": "text_overlap"}
    _, _, rejects = build_all("vg", root, tmp_path / "out", rules=Rules(max_text_overlap=0.6))
    assert reasons(rejects) == {"2": "text_overlap", "3": "text_overlap"}
    _, rows, rejects = build_all("vg", root, tmp_path / "out", rules=Rules(max_text_overlap=1))
    assert not rejects
    assert [len(row["concepts"]) for row in rows] == [4, 1]


def test_a_left_out_region_does_not_leave_out_others(tmp_path: Path) -> None:
    # 2 overlaps 1, and 3 overlaps 2 but not 1: 3 stays because 2 is gone.
    regions = {1: [region(1, "a b c d"), region(2, "a b c d e"), region(3, "b c d e f")]}
    root = write_vg(tmp_path / "raw", regions)
    _, _, rejects = build_all("vg", root, tmp_path / "out", rules=Rules(max_text_overlap=0.65))
    assert reasons(rejects) == {"2": "text_overlap"}


def test_crowds_are_no_objects(tmp_path: Path) -> None:
    boxes = [box(900100000001, 1, BIG, iscrowd=1, segmentation={"counts": [1], "size": [8, 10]})]
    summary, rows, _ = coco(tmp_path / "a", boxes)
    assert rows[0]["concepts"] == []
    assert summary["counts"]["objects"]["filtered"] == {"crowd": 1}
    _, rows, _ = coco(tmp_path / "b", boxes, rules=Rules(keep_crowd=True))
    assert len(rows[0]["concepts"]) == 1


def test_unknown_category_image_and_repeated_image_are_rejected(tmp_path: Path) -> None:
    root = write_coco(
        tmp_path / "raw",
        images=[coco_image(1), coco_image(1)],
        boxes=[box(7, 1, BIG, category_id=99), box(8, 404, BIG), box(9, 1, BIG)],
        captions=[caption(1, 404, "of nothing")],
    )
    summary, rows, rejects = build_all("coco", root, tmp_path / "out")
    counts = summary["counts"]
    assert counts["objects"]["rejected"] == {"unknown_category": 1, "unknown_image": 1}
    assert counts["captions"]["rejected"] == {"unknown_image": 1}
    assert len(rows) == 1
    # Both files list the image twice: the second of each is a duplicate.
    assert counts["images"]["rejected"] == {"duplicate_image": 2}
    assert len(rejects) == 5


@pytest.mark.parametrize(
    ("raw", "stored"),
    [
        ("  A man.\n", "A man."),
        ("two\nlines\tand  spaces", "two lines and spaces"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u00a0wide\u3000space ", "wide space"),
        ("Case And, punctuation!", "Case And, punctuation!"),
    ],
)
def test_captions_are_stored_as_released(tmp_path: Path, raw: str, stored: str) -> None:
    root = write_coco(tmp_path / "raw", captions=[caption(1, 1, raw)])
    _, rows, _ = build_all("coco", root, tmp_path / "out")
    assert rows[0]["caption"] == stored
    (concept,) = rows[0]["concepts"]
    assert (concept["text"], concept["box"], concept["granularity"]) == (
        stored,
        [0.5, 0.5, 1.0, 1.0],
        "image",
    )


@pytest.mark.parametrize("text", ["", "  \n", "\u200b".replace("\u200b", "\u2028")])
def test_empty_texts_are_rejected(tmp_path: Path, text: str) -> None:
    captions = [caption(1, 1, text), caption(2, 1, "fine")]
    root = write_coco(tmp_path / "raw", captions=captions)
    _, rows, rejects = build_all("coco", root, tmp_path / "out")
    assert [row["reason"] for row in rejects] == ["empty_text"]
    assert rows[0]["caption"] == "fine"


def test_every_caption_is_a_concept_and_the_first_is_the_caption(tmp_path: Path) -> None:
    # Not adjacent and out of id order, as in the official files.
    captions = [caption(30, 1, "first"), caption(9, 2, "other"), caption(10, 1, "second")]
    root = write_coco(
        tmp_path / "raw",
        images=[coco_image(1), coco_image(2), coco_image(3)],
        captions=captions,
        boxes=[box(5, 1, BIG)],
    )
    _, rows, _ = build_all("coco", root, tmp_path / "out")
    assert [row["id"] for row in rows] == ["coco/1", "coco/2", "coco/3"]
    assert [c["text"] for c in rows[0]["concepts"]] == ["first", "second", "traffic light"]
    assert [row["caption"] for row in rows] == ["first", "other", None]
    assert rows[2]["concepts"] == []


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("Handbag/Satchel", "Handbag", "Satchel"),
        ("Cigar/Cigarette ", "Cigar", "Cigarette"),
        ("Tape Measur/ Ruler", "Tape Measur", "Ruler"),
        ("Cutting/chopping Board", "Cutting Board", "chopping Board"),
        ("Washing Machine/Drying Machine", "Washing Machine", "Drying Machine"),
        ("Formula 1 ", "Formula 1", "Formula 1"),
    ],
)
def test_slashed_names_take_one_form(name: str, first: str, last: str) -> None:
    assert category_text(name, "first") == first
    assert category_text(name, "last") == last
    assert category_text(name, "raw") == name.strip()


def test_vg_attributes_join_by_object_id_through_merges(tmp_path: Path) -> None:
    thing = {"x": 10, "y": 10, "w": 50, "h": 40}
    objects = {
        1: [
            {"object_id": 5, "names": ["clock", "watch"], "merged_object_ids": [6], **thing},
            {"object_id": 7, "names": ["man"], **thing},
        ]
    }
    attributes = {
        1: [
            {"object_id": 7, "names": ["man"], **thing},  # none, as published
            {"object_id": 6, "names": ["clock"], "attributes": ["tall", " green "], **thing},
            {"object_id": 5, "names": ["clock"], "attributes": ["green"], **thing},
            {"object_id": 999, "names": ["?"], "attributes": ["lost"], **thing},
        ]
    }
    root = write_vg(tmp_path / "raw", {1: []}, objects, attributes)
    summary, rows, rejects = build_all("vg", root, tmp_path / "out")
    found = {c["text"]: c["attributes"] for c in rows[0]["concepts"]}
    assert found == {"clock": ["tall", "green"], "man": []}
    assert summary["unattached_attributes"] == 1
    assert [(r["kind"], r["reason"]) for r in rejects] == [("attributes", "unknown_object")]


def test_one_malformed_region_does_not_take_its_image_along(tmp_path: Path) -> None:
    regions = {1: [region(1, "a clock"), region(2, 17), region(3, "a man"), region(4, "x", x="1")]}
    summary, rows, rejects = build_all("vg", write_vg(tmp_path / "raw", regions), tmp_path / "out")
    assert {c["text"] for c in rows[0]["concepts"]} == {"a clock", "a man"}
    assert summary["counts"]["regions"]["raw"] == 4
    assert [row["location"] for row in rejects] == ["[0].regions[1]", "[0].regions[3]"]


def karpathy(parts: dict[int, str]) -> dict[str, Any]:
    return {
        "images": [
            {
                "filepath": "val2014",
                "filename": f"COCO_val2014_{number:012d}.jpg",
                "cocoid": number,
                "split": part,
                "sentids": [],
                "imgid": 0,
                "sentences": [{"raw": "x", "tokens": [], "imgid": 0, "sentid": 1}],
            }
            for number, part in parts.items()
        ],
        "dataset": "coco",
    }


def test_karpathy_train_is_train_and_restval_of_both_official_parts(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "raw", images=[coco_image(1), coco_image(2)])
    write_coco(root, images=[coco_image(3), coco_image(4)], split="val2017")
    parts = {1: "train", 2: "test", 3: "restval", 4: "val"}
    write_json(root / "dataset_coco.json", karpathy(parts))
    summary, rows, rejects = build_all("coco", root, tmp_path / "train")
    assert [row["id"] for row in rows] == ["coco/1", "coco/3"]
    assert summary["counts"]["images"]["filtered"] == {"other_split": 2}
    assert {row["record_id"] for row in rejects} == {"coco/2", "coco/4"}
    for split, expected in (("val", "coco/4"), ("test", "coco/2"), ("restval", "coco/3")):
        _, rows, _ = build_all("coco", root, tmp_path / split, split=split)
        assert [row["id"] for row in rows] == [expected]


def test_without_karpathy_the_user_is_told_of_the_leak(tmp_path: Path) -> None:
    summary, _, _ = coco(tmp_path, [])
    assert any("dataset_coco.json" in note for note in summary["notes"])


def test_vg_leaves_out_what_coco_and_flickr_hold_out(tmp_path: Path) -> None:
    images = [
        vg_image(1),
        vg_image(2, coco_id=20),
        vg_image(3, coco_id=21),
        vg_image(4, flickr_id=4000),
        vg_image(5, coco_id=22),
        vg_image(6, coco_id=23),
    ]
    regions = {number: [region(number, "a thing")] for number in range(1, 7)}
    root = write_vg(tmp_path / "raw/vg", regions, images=images)
    write_json(
        tmp_path / "raw/coco/dataset_coco.json", karpathy({20: "test", 21: "train", 22: "val"})
    )
    flickr = {
        "images": [{"filename": "4000.jpg", "split": "test", "sentences": [], "imgid": 0}],
        "dataset": "flickr30k",
    }
    write_json(tmp_path / "raw/flickr30k/dataset_flickr30k.json", flickr)
    refs = tmp_path / "raw/refcoco/refcoco+/refs(unc).p"
    refs.parent.mkdir(parents=True)
    held_out = [{"image_id": 23, "split": "testA"}, {"image_id": 21, "split": "train"}]
    refs.write_bytes(pickle.dumps(held_out, protocol=2))
    summary, rows, rejects = build_all("vg", root, tmp_path / "out")
    assert [row["id"] for row in rows] == ["vg/1", "vg/3"]
    assert summary["counts"]["images"]["filtered"] == {"leak": 4}
    assert summary["counts"]["regions"]["filtered"] == {"leak": 4}
    listed = {r["record_id"] for r in rejects if r["kind"] == "image"}
    assert listed == {"vg/2", "vg/4", "vg/5", "vg/6"}
    _, rows, _ = build_all("vg", root, tmp_path / "out", keep_leaks=True)
    assert len(rows) == 6


def test_vg_without_evaluation_files_says_so(tmp_path: Path) -> None:
    root = write_vg(tmp_path / "raw/vg", {1: [region(1, "a thing")]})
    summary, _, _ = build_all("vg", root, tmp_path / "out")
    assert any("no evaluation files" in note for note in summary["notes"])
