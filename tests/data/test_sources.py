"""The five official layouts: variants people have on disk, and the real excerpts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from tests.data.raw_releases import (
    box,
    build_all,
    coco_image,
    jpeg,
    region,
    vg_image,
    write_coco,
    write_image,
    write_json,
    write_vg,
)
from tests.shared import shared_path
from xvlm_data.errors import UserError
from xvlm_data.rules import Rules
from xvlm_data.sources.url_list import name_by_digest as cc3m_name

KEEP_ALL = Rules(min_area=0, max_text_overlap=1)


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_excerpt_agrees_with_pycocotools(tmp_path: Path, split: str) -> None:
    root = shared_path("fixtures/coco")
    summary, rows, _ = build_all("coco", root, tmp_path / "m", split=split, rules=KEEP_ALL)
    instances = COCO(str(root / f"annotations/instances_{split}2017.json"))
    captions = COCO(str(root / f"annotations/captions_{split}2017.json"))
    expected = {"train": (26, 333, 5, 130), "val": (24, 194, 2, 120)}[split]
    counts = summary["counts"]
    assert (
        counts["images"]["kept"],
        counts["objects"]["raw"],
        counts["objects"]["filtered"].get("crowd"),
        counts["captions"]["kept"],
    ) == expected
    assert {row["id"] for row in rows} == {f"coco/{i}" for i in instances.getImgIds()}
    for row in rows:
        image = int(row["id"].split("/")[1])
        objects = [c for c in row["concepts"] if c["granularity"] == "object"]
        truth = instances.loadAnns(instances.getAnnIds(image, iscrowd=False))
        assert len(objects) == len(truth)
        for concept, annotation in zip(objects, truth, strict=True):
            x, y, w, h = annotation["bbox"]
            cx, cy, cw, ch = concept["box"]
            pixels = [cx * row["width"], cy * row["height"], cw * row["width"], ch * row["height"]]
            assert pixels == pytest.approx([x + w / 2, y + h / 2, w, h], abs=0.02)
            category = instances.loadCats(annotation["category_id"])[0]["name"]
            assert concept["text"] == category
        texts = [a["caption"].strip() for a in captions.loadAnns(captions.getAnnIds(image))]
        ours = [c["text"] for c in row["concepts"] if c["granularity"] == "image"]
        assert ours == [" ".join(text.split()) for text in texts]


def test_default_area_filter_counts_as_pycocotools_areas_do(tmp_path: Path) -> None:
    root = shared_path("fixtures/coco")
    summary, _, _ = build_all("coco", root, tmp_path / "m")
    coco = COCO(str(root / "annotations/instances_train2017.json"))
    large = 0
    for annotation in coco.loadAnns(coco.getAnnIds(iscrowd=False)):
        image = coco.loadImgs(annotation["image_id"])[0]
        _, _, w, h = annotation["bbox"]
        large += w * h >= 0.01 * image["width"] * image["height"]
    assert summary["counts"]["objects"]["kept"] == large


def test_excerpt_without_images_names_every_missing_file(tmp_path: Path) -> None:
    root = shared_path("fixtures/coco_missing_images")
    for split, images, objects, captions in (("train", 4, 59, 20), ("val", 4, 37, 20)):
        summary, rows, rejects = build_all("coco", root, tmp_path / split, split=split)
        assert rows == []
        named = [r for r in rejects if r["kind"] == "image"]
        assert len(named) == images
        files = json.loads((root / f"annotations/instances_{split}2017.json").read_text())["images"]
        for file in files:
            assert any(file["file_name"] in r["message"] for r in named)
        assert summary["counts"]["objects"]["rejected"]["missing_image"] == objects
        assert summary["counts"]["captions"]["rejected"] == {"missing_image": captions}


def test_excerpt_with_the_zero_height_box(tmp_path: Path) -> None:
    root = shared_path("fixtures/coco_zero_area")
    _, _, rejects = build_all("coco", root, tmp_path / "m")
    (reject,) = [r for r in rejects if r["kind"] == "object"]
    assert reject["reason"] == "box_empty"
    assert reject["location"].endswith("id=918")


def test_karpathy_excerpt_alone_gives_captions(tmp_path: Path) -> None:
    root = shared_path("fixtures/coco_karpathy")
    expected = {"train": (4, 20), "val": (3, 15), "test": (1, 5)}  # of 2 test images 1 is there
    for split, (images, captions) in expected.items():
        summary, rows, _ = build_all("coco", root, tmp_path / split, split=split)
        assert (len(rows), summary["counts"]["captions"]["kept"]) == (images, captions)
    assert all(row["caption"] for row in rows)


@pytest.mark.parametrize(
    ("folder", "regions", "objects"), [("vg", 773, 119), ("vg_v1.0", 780, 147)]
)
def test_vg_excerpts_of_both_versions(
    tmp_path: Path, folder: str, regions: int, objects: int
) -> None:
    root = shared_path(f"fixtures/{folder}")
    summary, rows, _rejects = build_all("vg", root, tmp_path / "m", rules=KEEP_ALL)
    counts = summary["counts"]
    assert (counts["regions"]["raw"], counts["objects"]["raw"]) == (regions, objects)
    assert [row["id"] for row in rows] == ["vg/1", "vg/2"]
    assert counts["images"]["rejected"] == {"missing_image": 1}
    raw = json.loads((root / "region_descriptions.json").read_text())
    here = [e for e in raw if e.get("id", e.get("image_id")) in (1, 2)]
    assert counts["regions"]["kept"] == sum(len(e["regions"]) for e in here)
    first = here[0]["regions"][0]
    concept = next(c for c in rows[0]["concepts"] if c["granularity"] == "region")
    assert concept["text"] == first["phrase"].strip()
    assert concept["box"] == pytest.approx(
        [
            (first["x"] + first["width"] / 2) / 800,
            (first["y"] + first["height"] / 2) / 600,
            first["width"] / 800,
            first["height"] / 600,
        ]
    )
    clock = next(c for c in rows[0]["concepts"] if c["text"] == "clock")
    assert "green" in clock["attributes"]


def test_vg_negative_boxes_are_clipped_or_rejected(tmp_path: Path) -> None:
    excerpt = shared_path("fixtures/vg_negative_boxes") / "region_descriptions.json"
    regions = json.loads(excerpt.read_text())
    root = tmp_path / "raw"
    images = [vg_image(entry["id"], width=800, height=600) for entry in regions]
    write_json(root / "image_data.json", images)
    write_json(root / "region_descriptions.json", regions)
    for entry in regions:
        write_image(root / f"VG_100K/{entry['id']}.jpg", jpeg(800, 600))
    summary, rows, rejects = build_all("vg", root, tmp_path / "m", rules=KEEP_ALL)
    assert [r["reason"] for r in rejects] == ["box_outside"]  # y = -904
    assert summary["clipped_boxes"] == 1  # y = -2
    (concept,) = rows[1]["concepts"]
    top = concept["box"][1] - concept["box"][3] / 2
    assert top == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("folder", ["sbu", "sbu_txt"])
def test_sbu_excerpts_of_both_layouts(tmp_path: Path, folder: str) -> None:
    source = shared_path(f"fixtures/{folder}")
    summary, rows, _rejects = build_all("sbu", source, tmp_path / "none")
    assert rows == []
    assert summary["counts"]["images"]["rejected"] == {"missing_image": 3}
    root = copy_tree(source, tmp_path / "raw")
    write_image(root / "images/5148648301_1174ef59bc.jpg", jpeg(50, 40))
    _, rows, _ = build_all("sbu", root, tmp_path / "m")
    assert [(r["id"], r["caption"], r["width"]) for r in rows] == [
        ("sbu/5148648301_1174ef59bc", "white horse near avebury", 50)
    ]


def test_cc3m_excerpts(tmp_path: Path) -> None:
    source = shared_path("fixtures/cc3m")
    summary, _, _ = build_all("cc3m", source, tmp_path / "train")
    assert summary["counts"]["captions"]["raw"] == 5
    assert summary["inputs"] == ["Train_GCC-training.tsv"]
    summary, _, _ = build_all("cc3m", source, tmp_path / "val", split="val")
    assert summary["counts"]["captions"]["raw"] == 1000
    root = copy_tree(source, tmp_path / "raw")
    lines = (root / "Train_GCC-training.tsv").read_text().splitlines()
    text, url = lines[4].split("\t")
    write_image(root / cc3m_name(url)[1][0], jpeg(30, 20))
    _, rows, rejects = build_all("cc3m", root, tmp_path / "m")
    assert [row["caption"] for row in rows] == [text]
    assert {r["location"] for r in rejects} == {f"line {n}" for n in (1, 2, 3, 4)}


def test_objects365_excerpt_with_its_image(tmp_path: Path) -> None:
    root = copy_tree(shared_path("fixtures/objects365"), tmp_path / "raw")
    write_image(root / "train/patch8/objects365_v1_00420917.jpg", jpeg(769, 512))
    _, rows, _ = build_all("objects365", root, tmp_path / "m", rules=KEEP_ALL)
    (row,) = rows
    assert row["id"] == "objects365/420917"
    (concept,) = row["concepts"]
    names = json.loads((root / "categories_v2.json").read_text())
    assert concept["text"] == next(c["name"] for c in names if c["id"] == 84).strip()
    assert concept["box"][2] == pytest.approx(35.65588379410002 / 769)


def copy_tree(source: Path, target: Path) -> Path:
    for path in source.rglob("*"):
        if path.is_file():
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize(
    "place",
    [
        "train2017/000000000001.jpg",
        "images/train2017/000000000001.jpg",
        "train2014/COCO_train2014_000000000001.jpg",
        "val2014/COCO_val2014_000000000001.jpg",
    ],
)
def test_coco_images_are_found_in_every_usual_folder(tmp_path: Path, place: str) -> None:
    root = write_coco(tmp_path / "raw", write_images=False)
    write_image(root / place)
    _, rows, _ = build_all("coco", root, tmp_path / "m")
    assert rows[0]["image"]["path"] == str(root / place)


def test_coco_2014_layout(tmp_path: Path) -> None:
    image = coco_image(1) | {"file_name": "COCO_train2014_000000000001.jpg"}
    root = write_coco(tmp_path / "raw", images=[image], split="train2014")
    _, rows, _ = build_all("coco", root, tmp_path / "m")
    assert len(rows) == 1


@pytest.mark.parametrize(
    "place",
    [
        "train/patch8/objects365_v1_00000001.jpg",
        "train/images/v1/patch8/objects365_v1_00000001.jpg",
        "images/v1/patch8/objects365_v1_00000001.jpg",
    ],
)
@pytest.mark.parametrize("name", ["zhiyuan_objv2_train.json", "annotations/objects365_train.json"])
def test_objects365_places(tmp_path: Path, place: str, name: str) -> None:
    root = tmp_path / "raw"
    document = {
        # Annotations before categories: names must be resolved all the same.
        "annotations": [box(1, 1, [0, 0, 50, 50])],
        "images": [coco_image(1) | {"file_name": "images/v1/patch8/objects365_v1_00000001.jpg"}],
        "categories": [{"id": 1, "name": "Handbag/Satchel "}],
    }
    write_json(root / name, document)
    write_image(root / place)
    _, rows, _ = build_all("objects365", root, tmp_path / "m")
    assert rows[0]["concepts"][0]["text"] == "Handbag"


def test_cc3m_lines_are_split_on_tabs_only(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    good = ['say "cheese', "a , b .", "caf\u00e9"]
    lines = [f"{text}\thttp://example.org/{i}.jpg" for i, text in enumerate(good)]
    bad = ["no tab", "a\tb\tc", "text\tftp://x/y", "\thttp://example.org/0.jpg"]
    data = "\n".join(lines + bad).encode() + b"\nbroken \xff\thttp://example.org/9.jpg\r\n"
    (root / "GCC-training.tsv").write_bytes(data)
    for i in range(3):
        write_image(root / cc3m_name(f"http://example.org/{i}.jpg")[1][0])
    _summary, rows, rejects = build_all("cc3m", root, tmp_path / "m")
    assert [row["caption"] for row in rows] == ['say "cheese', "a , b .", "caf\u00e9"]
    assert sorted((r["location"], r["reason"]) for r in rejects) == [
        ("line 4", "malformed"),
        ("line 5", "malformed"),
        ("line 6", "malformed"),
        ("line 7", "empty_text"),
        ("line 8", "malformed"),
    ]


def test_one_url_twice_is_one_image_with_two_captions(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    url = "http://example.org/1.jpg"
    (root / "GCC-training.tsv").write_text(f"first\t{url}\nsecond\t{url}\n")
    write_image(root / cc3m_name(url)[1][0])
    summary, rows, _ = build_all("cc3m", root, tmp_path / "m")
    assert [[c["text"] for c in row["concepts"]] for row in rows] == [["first", "second"]]
    assert summary["counts"]["images"]["raw"] == 1


def test_sbu_columns_that_lost_step_are_refused(tmp_path: Path) -> None:
    urls = [f"http://static.flickr.com/1/{i}_a.jpg" for i in range(3)]
    for captions in (["a", "b"], ["a", "b", "c", "d"]):
        columns = {"captions": captions, "image_urls": urls, "user_ids": []}
        write_json(tmp_path / "raw/sbu-captions-all.json", columns)
        with pytest.raises(UserError, match="belong together"):
            build_all("sbu", tmp_path / "raw", tmp_path / "m")


def test_vg_objects_come_from_attributes_where_there_is_no_objects_file(tmp_path: Path) -> None:
    thing = {"x": 10, "y": 10, "w": 50, "h": 40}
    attributes = {1: [{"object_id": 5, "names": ["clock"], "attributes": ["tall"], **thing}]}
    root = write_vg(tmp_path / "raw", {1: [region(1, "a clock")]}, None, attributes)
    _, rows, _ = build_all("vg", root, tmp_path / "m")
    assert [(c["text"], c["attributes"]) for c in rows[0]["concepts"]] == [
        ("a clock", []),
        ("clock", ["tall"]),
    ]
