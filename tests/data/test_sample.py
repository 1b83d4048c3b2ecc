"""``xvlm-data sample``: official layouts, whole files, the same bytes for the same seed."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.shared import shared_path
from xvlm_data.errors import UserError
from xvlm_data.sample import write_samples
from xvlm_data.sample.command import sample_command

IMAGES = 60


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("raw")
    return out, write_samples(out, IMAGES, seed=3, workers=1)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# Layouts ----------------------------------------------------------------------------------------


def keys_of(value: Any) -> set[tuple[str, ...]]:
    """The key orders of a record or of all records of an array."""
    records = value if isinstance(value, list) else [value]
    return {tuple(record) for record in records}


@pytest.mark.parametrize("part", ["train2017", "val2017"])
@pytest.mark.parametrize("kind", ["instances", "captions"])
def test_coco_keys_are_the_official_ones(
    raw: tuple[Path, dict[str, Any]], kind: str, part: str
) -> None:
    name = f"annotations/{kind}_{part}.json"
    ours, real = read(raw[0] / "coco" / name), read(shared_path("fixtures/coco") / name)
    assert list(ours) == list(real)
    assert list(ours["info"]) == list(real["info"])
    assert ours["licenses"] == real["licenses"]
    for array in set(real) - {"info", "licenses"}:
        assert keys_of(ours[array]) == keys_of(real[array])


def test_karpathy_keys_are_the_official_ones(raw: tuple[Path, dict[str, Any]]) -> None:
    ours = read(raw[0] / "coco/dataset_coco.json")
    real = read(shared_path("fixtures/coco_karpathy/dataset_coco.json"))
    assert list(ours) == list(real)
    assert keys_of(ours["images"]) == keys_of(real["images"])
    assert keys_of(ours["images"][0]["sentences"]) == keys_of(real["images"][0]["sentences"])


@pytest.mark.parametrize("folder", ["vg", "vg_val"])
@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("image_data", None),
        ("region_descriptions", "regions"),
        ("objects", "objects"),
        ("attributes", "attributes"),  # two orders: with and without "attributes"
        ("relationships", "relationships"),
        ("question_answers", "qas"),
    ],
)
def test_vg_keys_are_the_official_ones(
    raw: tuple[Path, dict[str, Any]], folder: str, name: str, inner: str | None
) -> None:
    ours = read(raw[0] / folder / f"{name}.json")
    real = read(shared_path(f"fixtures/vg/{name}.json"))
    assert keys_of(ours) == keys_of(real)
    if inner is None:
        return
    our_parts = [part for record in ours for part in record[inner]]
    real_parts = [part for record in real for part in record[inner]]
    assert keys_of(our_parts) == keys_of(real_parts)
    if name == "relationships":
        for party in ("subject", "object"):
            # Real ones give a name in any of two orders; ours are the usual one.
            assert keys_of([p[party] for p in our_parts]) <= keys_of([p[party] for p in real_parts])


def test_objects365_keys_are_the_official_ones(raw: tuple[Path, dict[str, Any]]) -> None:
    real = read(shared_path("fixtures/objects365/zhiyuan_objv2_train.json"))
    for split in ("train", "val"):
        ours = read(raw[0] / f"objects365/zhiyuan_objv2_{split}.json")
        assert list(ours) == list(real)
        for array in ("images", "annotations", "categories"):
            assert keys_of(ours[array]) == keys_of(real[array])
        names = [category["name"] for category in ours["categories"]]
        assert any("/" in name for name in names) and any(name != name.strip() for name in names)


def test_sbu_and_cc3m_columns_are_the_official_ones(raw: tuple[Path, dict[str, Any]]) -> None:
    ours = read(raw[0] / "sbu/sbu-captions-all.json")
    real = read(shared_path("fixtures/sbu/sbu-captions-all.json"))
    assert list(ours) == list(real)
    assert len({len(column) for column in ours.values()}) == 1
    for name in ("Train_GCC-training.tsv", "Validation_GCC-1.1.0-Validation.tsv"):
        assert shared_path(f"fixtures/cc3m/{name}")
        text = (raw[0] / "cc3m" / name).read_text(encoding="utf-8")
        for line in text.removesuffix("\n").split("\n"):
            caption, url = line.split("\t")
            assert caption == " ".join(caption.lower().split()) and url.startswith("http")


# Files on disk ----------------------------------------------------------------------------------


def assert_size(path: Path, record: dict[str, Any]) -> None:
    with Image.open(path) as image:
        assert image.format == "JPEG"
        assert image.size == (record["width"], record["height"])


def test_every_annotated_image_is_where_the_layout_puts_it(
    raw: tuple[Path, dict[str, Any]],
) -> None:
    out, counts = raw
    for split, part in (("train", "train2017"), ("val", "val2017")):
        images = read(out / f"coco/annotations/instances_{part}.json")["images"]
        assert len(images) == counts["coco"][split]["images"]
        for image in images:
            assert image["file_name"] == f"{image['id']:012d}.jpg"
            assert_size(out / "coco" / part / image["file_name"], image)
        images = read(out / f"objects365/zhiyuan_objv2_{split}.json")["images"]
        assert len(images) == counts["objects365"][split]["images"]
        for image in images:
            version, patch, name = image["file_name"].split("/")[1:]
            assert name == f"objects365_{version}_{image['id']:08d}.jpg"
            assert (version == "v1") == (int(patch.removeprefix("patch")) < 16)
            assert_size(out / "objects365" / split / patch / name, image)
    for folder in ("vg", "vg_val"):
        for image in read(out / folder / "image_data.json"):
            assert_size(out / folder / "/".join(image["url"].split("/")[-2:]), image)


def test_web_images_follow_the_naming_rule_and_a_few_are_lost(
    raw: tuple[Path, dict[str, Any]],
) -> None:
    out, counts = raw
    urls = read(out / "sbu/sbu-captions-all.json")["image_urls"]
    there = [(out / "sbu/images" / url.split("/")[-1]).is_file() for url in urls]
    assert sum(there) == IMAGES == len(list((out / "sbu/images").iterdir()))
    assert there.count(False) == counts["sbu"]["train"]["lost"] > 0
    total = 0
    for split, name in (
        ("train", "Train_GCC-training.tsv"),
        ("val", "Validation_GCC-1.1.0-Validation.tsv"),
    ):
        lines = (out / "cc3m" / name).read_text(encoding="utf-8").splitlines()
        keys = [hashlib.sha256(line.split("\t")[1].encode()).hexdigest()[:32] for line in lines]
        there = [(out / "cc3m/images" / key[:2] / f"{key}.jpg").is_file() for key in keys]
        assert sum(there) == counts["cc3m"][split]["images"]
        assert there.count(False) == counts["cc3m"][split]["lost"] > 0
        total += sum(there)
    assert total == len(list((out / "cc3m/images").glob("*/*.jpg")))


def test_nothing_points_at_a_real_host(raw: tuple[Path, dict[str, Any]]) -> None:
    out, _ = raw
    coco = read(out / "coco/annotations/instances_train2017.json")["images"]
    urls = [image[key] for image in coco for key in ("coco_url", "flickr_url")]
    urls += [image["url"] for image in read(out / "vg/image_data.json")]
    urls += read(out / "sbu/sbu-captions-all.json")["image_urls"]
    tsv = (out / "cc3m/Train_GCC-training.tsv").read_text(encoding="utf-8")
    urls += [line.split("\t")[1] for line in tsv.splitlines()]
    assert all(str(urlsplit(url).hostname).endswith(".example.org") for url in urls)


def test_ids_are_unique(raw: tuple[Path, dict[str, Any]]) -> None:
    out, _ = raw
    for kind in ("instances", "captions"):
        parts = [read(out / f"coco/annotations/{kind}_{s}2017.json") for s in ("train", "val")]
        for array in ("images", "annotations"):
            ids = [record["id"] for part in parts for record in part[array]]
            assert len(ids) == len(set(ids))
    vg = [record for name in ("vg", "vg_val") for record in read(out / name / "image_data.json")]
    assert len({record["image_id"] for record in vg}) == len(vg)
    parts = [read(out / f"objects365/zhiyuan_objv2_{s}.json") for s in ("train", "val")]
    for array in ("images", "annotations"):
        ids = [record["id"] for part in parts for record in part[array]]
        assert len(ids) == len(set(ids))


def test_captions_of_an_image_are_five_and_not_adjacent(raw: tuple[Path, dict[str, Any]]) -> None:
    records = read(raw[0] / "coco/annotations/captions_train2017.json")["annotations"]
    by_image: dict[int, set[str]] = {}
    for record in records:
        by_image.setdefault(record["image_id"], set()).add(record["caption"])
    assert {len(texts) for texts in by_image.values()} == {5}
    pairs = pairwise(records)
    assert sum(a["image_id"] == b["image_id"] for a, b in pairs) < len(records) / 10


def test_karpathy_split_agrees_with_the_2017_parts(raw: tuple[Path, dict[str, Any]]) -> None:
    out, _ = raw
    karpathy = read(out / "coco/dataset_coco.json")["images"]
    splits: dict[str, set[int]] = {}
    for image in karpathy:
        splits.setdefault(image["split"], set()).add(image["cocoid"])
        assert image["filepath"] == ("train2014" if image["split"] == "train" else "val2014")
        assert image["filename"] == f"COCO_{image['filepath']}_{image['cocoid']:012d}.jpg"
    for part, names in (("train", ("train", "restval")), ("val", ("val", "test"))):
        captions_ = read(out / f"coco/annotations/captions_{part}2017.json")
        assert {image["id"] for image in captions_["images"]} == splits[names[0]] | splits[names[1]]
    assert set(splits) == {"train", "restval", "val", "test"}
    raws = {s["sentid"]: s["raw"] for image in karpathy for s in image["sentences"]}
    for record in captions_["annotations"]:
        assert raws[record["id"]] == record["caption"]


def test_vg_hides_some_coco_validation_images_and_vg_val_none(
    raw: tuple[Path, dict[str, Any]],
) -> None:
    out, counts = raw
    coco = {
        image["id"]: out / "coco/val2017" / image["file_name"]
        for image in read(out / "coco/annotations/instances_val2017.json")["images"]
    }
    train = {i["id"] for i in read(out / "coco/annotations/instances_train2017.json")["images"]}
    images = read(out / "vg/image_data.json")
    hidden = [image for image in images if image["coco_id"] in coco]
    assert len(hidden) == counts["vg"]["train"]["coco_val_images"] > 0
    for image in hidden:
        path = out / "vg" / "/".join(image["url"].split("/")[-2:])
        assert path.read_bytes() == coco[image["coco_id"]].read_bytes()
    assert 0.3 < sum(image["coco_id"] is None for image in images) / len(images) < 0.7
    held_out = {image["coco_id"] for image in read(out / "vg_val/image_data.json")} - {None}
    assert held_out and not held_out & (set(coco) | train)


def test_pycocotools_sees_the_same_boxes(raw: tuple[Path, dict[str, Any]]) -> None:
    coco_api = pytest.importorskip("pycocotools.coco")
    mask_api = pytest.importorskip("pycocotools.mask")
    crowds = 0
    for split in ("train", "val"):
        api = coco_api.COCO(str(raw[0] / f"coco/annotations/instances_{split}2017.json"))
        for annotation in api.loadAnns(api.getAnnIds()):
            image = api.loadImgs(annotation["image_id"])[0]
            x, y, w, h = annotation["bbox"]
            assert x >= 0 and y >= 0 and w > 0 and h > 0
            assert x + w <= image["width"] and y + h <= image["height"]
            mask = api.annToRLE(annotation)
            tolerance = 0 if annotation["iscrowd"] else 3  # sharp tips cover no pixel centre
            left, top, wide, high = mask_api.toBbox(mask)
            edges = (left, top, left + wide, top + high)
            assert edges == pytest.approx((x, y, x + w, y + h), abs=tolerance)
            if annotation["iscrowd"]:
                crowds += 1
                assert mask_api.area(mask) == annotation["area"]
                assert len(str(annotation["id"])) == 12
                assert all(isinstance(value, int) for value in annotation["bbox"])
            else:
                # The rasteriser counts boundary pixels its own way: half a pixel along the outline.
                assert abs(float(mask_api.area(mask)) - annotation["area"]) < 3 * (w + h)
                for polygon in annotation["segmentation"]:
                    assert min(polygon) >= 0 and max(polygon[::2]) <= image["width"]
                    assert max(polygon[1::2]) <= image["height"]
    assert crowds > 0


def test_boxes_of_vg_and_objects365_lie_in_their_images(raw: tuple[Path, dict[str, Any]]) -> None:
    out, _ = raw
    boxes = []
    sizes = {i["image_id"]: (i["width"], i["height"]) for i in read(out / "vg/image_data.json")}
    for record in read(out / "vg/region_descriptions.json"):
        boxes += [
            (r["x"], r["y"], r["width"], r["height"], *sizes[record["id"]])
            for r in record["regions"]
        ]
    for record in read(out / "vg/objects.json"):
        boxes += [(*(o[k] for k in "xywh"), *sizes[record["image_id"]]) for o in record["objects"]]
    assert all(isinstance(value, int) for box in boxes for value in box)
    data = read(out / "objects365/zhiyuan_objv2_train.json")
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    boxes += [(*a["bbox"], *sizes[a["image_id"]]) for a in data["annotations"]]
    x, y, w, h, width, height = np.array(boxes, dtype=float).T
    assert (x >= 0).all() and (y >= 0).all() and (w > 0).all() and (h > 0).all()
    assert (x + w <= width + 1e-9).all() and (y + h <= height + 1e-9).all()


# Determinism and safety -------------------------------------------------------------------------


def test_same_seed_same_bytes_for_any_number_of_workers(
    raw: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    again = write_samples(tmp_path, IMAGES, seed=3, workers=2)
    assert again == raw[1]
    assert digests(tmp_path) == digests(raw[0])


def test_another_seed_gives_other_scenes(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_samples(tmp_path / str(seed), 2, seed=seed, sources=["sbu"])
    first, second = (digests(tmp_path / str(seed) / "sbu/images") for seed in (0, 1))
    assert not set(first.values()) & set(second.values())


def test_train_and_held_out_pictures_differ(raw: tuple[Path, dict[str, Any]]) -> None:
    out, counts = raw
    pictures = [digest for name, digest in digests(out).items() if name.endswith(".jpg")]
    # Only the images of COCO that hide in VG exist twice.
    assert len(pictures) - len(set(pictures)) == counts["vg"]["train"]["coco_val_images"]


def test_a_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    precious = tmp_path / "sbu/photo.jpg"
    precious.parent.mkdir()
    precious.write_bytes(b"mine")
    with pytest.raises(UserError, match="--overwrite"):
        write_samples(tmp_path, 1, seed=0, sources=["sbu"])
    assert precious.read_bytes() == b"mine"
    write_samples(tmp_path, 1, seed=0, sources=["sbu"], overwrite=True)
    assert not precious.exists()
    write_samples(tmp_path, 2, seed=0, sources=["sbu"])  # its own work it replaces
    assert len(list((tmp_path / "sbu/images").iterdir())) == 2


def test_an_interrupted_run_leaves_nothing_new(tmp_path: Path) -> None:
    write_samples(tmp_path, 2, seed=0, sources=["sbu"])
    before = digests(tmp_path)

    def stop(done: int, total: int) -> None:
        assert total > 3
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path, 8, seed=1, sources=["sbu", "cc3m"], progress=stop)
    assert digests(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["sbu"]


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (
        {"sources": ["imagenet"]},
        {"images": 0},
        {"out": tmp_path / "file"},
        {"images": 10**6, "sources": ["coco"]},
    ):
        with pytest.raises(UserError) as caught:
            write_samples(**{"out": tmp_path, "images": 1, "seed": 0, **arguments})  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_command_prints_one_json_object(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--images", "1", "--source", "vg", "--json"]
    result = CliRunner().invoke(sample_command, arguments)
    assert result.exit_code == 0, result.output
    counts = json.loads(result.stdout)
    assert counts["vg"]["train"]["images"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vg", "vg_val"]
