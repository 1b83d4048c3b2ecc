"""``xvlm-data sample``: official layouts, true words, and scenes that cannot be guessed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from functools import cache
from itertools import pairwise, product
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
from xvlm_data.sample.language import captions, phrases
from xvlm_data.sample.render import binary_mask, render
from xvlm_data.sample.scene import COLOURS, SHAPES, Box, Scene, SceneKey, Thing, make_scene

IMAGES = 60
SCENES = 250


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


@cache
def scenes() -> tuple[Scene, ...]:
    return tuple(make_scene(SceneKey(11, "test", number)) for number in range(SCENES))


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


# What is said is true ---------------------------------------------------------------------------

NOUN = (
    r"(?:(?:a|an|the) )?(?P<size{0}>small|large)? ?(?P<striped{0}>striped)? ?"
    rf"(?P<colour{{0}}>{'|'.join(COLOURS)})? ?(?P<shape{{0}}>{'|'.join(SHAPES)})"
)
RELATION = r"(left of|right of|above|below|larger than|smaller than)"
Words = tuple[str | None, str | None, str | None, str]


def nouns(text: str) -> list[Words]:
    return [match.groups() for match in re.finditer(NOUN.format(""), text)]  # type: ignore[misc]


def fits(words: Words, thing: Thing, scene: Scene) -> bool:
    """By geometry where geometry can tell: size words are checked against the box."""
    size, striped, colour, shape = words
    share = thing.box.w * thing.box.h / (scene.width * scene.height)
    return (
        (size is None or (share > 0.1) == (size == "large"))
        and (striped is None or thing.striped)
        and colour in (None, thing.colour)
        and shape == thing.shape
    )


def stated(relation: str, a: Box, b: Box, scene: Scene) -> bool:
    dx = ((b.x + b.w / 2) - (a.x + a.w / 2)) / scene.width
    dy = ((b.y + b.h / 2) - (a.y + a.h / 2)) / scene.height
    ratio = (a.w * a.h) / (b.w * b.h)
    return {
        "left of": dx > 0.14,
        "right of": dx < -0.14,
        "above": dy > 0.14,
        "below": dy < -0.14,
        "larger than": ratio > 1.49,
        "smaller than": ratio < 1 / 1.49,
    }[relation]


def assert_caption_true(text: str, scene: Scene) -> None:
    if match := re.search(r"on a (\w+) background", text):
        assert match[1] == scene.background
        text = text.replace(match[0], "")
    if match := re.match(r"(\w+) shapes", text):
        assert ["two", "three", "four", "five"].index(match[1]) + 2 == len(scene.things)
    said = nouns(text)
    assert len(said) >= 2 and all(colour for _, _, colour, _ in said)
    relations = re.findall(RELATION, text)
    # Some choice of different things makes every noun and every relation true.
    assert any(
        len({id(thing) for thing in choice}) == len(choice)
        and all(fits(words, thing, scene) for words, thing in zip(said, choice, strict=True))
        and all(
            stated(relation, choice[0].box, other.box, scene)
            for relation, other in zip(relations, choice[1:], strict=False)
        )
        for choice in product(scene.things, repeat=len(said))
    ), (text, scene)


def test_captions_are_true_and_different() -> None:
    seen: dict[str, int] = {}
    for scene in scenes():
        texts = captions(scene, scene.key.random("captions"), 5)
        assert len(set(texts)) == 5
        for text in texts:
            assert_caption_true(text, scene)
            for word in re.findall(f"{RELATION}|(background)|(shapes)", text):
                key = next(filter(None, word))
                seen[key] = seen.get(key, 0) + 1
    # Every kind of statement occurs often enough to be learnt.
    assert len(seen) == 8 and min(seen.values()) > SCENES / 5


def iou(a: Box, b: Box) -> float:
    w = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    h = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    shared = max(w, 0.0) * max(h, 0.0)
    return shared / (a.w * a.h + b.w * b.h - shared)


def named_boxes(text: str, scene: Scene) -> list[Box]:
    """Every region the words could mean, with relations read generously."""
    first, *rest = nouns(text)
    heads = [thing for thing in scene.things if fits(first, thing, scene)]
    if not rest:
        return [thing.box for thing in heads]
    others = [thing for thing in scene.things if fits(rest[0], thing, scene)]
    pairs = [(a, b) for a in heads for b in others if a is not b]
    relation = re.search(RELATION, text)
    if relation is None:
        return [
            Box(
                x := min(a.box.x, b.box.x),
                y := min(a.box.y, b.box.y),
                max(a.box.x + a.box.w, b.box.x + b.box.w) - x,
                max(a.box.y + a.box.h, b.box.y + b.box.h) - y,
            )
            for a, b in pairs
        ]

    def generous(a: Thing, b: Thing) -> bool:
        (ax, ay), (bx, by) = a.box.centre, b.box.centre
        return {
            "left of": ax < bx,
            "right of": ax > bx,
            "above": ay < by,
            "below": ay > by,
            "larger than": a.box.area > b.box.area,
            "smaller than": a.box.area < b.box.area,
        }[relation[1]]

    return [a.box for a, b in pairs if generous(a, b)]


@cache
def all_phrases() -> list[tuple[Scene, str, Box]]:
    return [
        (scene, phrase.text, phrase.box)
        for scene in scenes()
        for phrase in phrases(scene, scene.key.random("phrases"), 7)
    ]


def test_a_phrase_names_exactly_its_region() -> None:
    relations = 0
    for scene, text, box in all_phrases():
        candidates = named_boxes(text, scene)
        assert len(candidates) == 1, (text, scene)
        assert iou(candidates[0], box) > 0.999
        if match := re.search(RELATION, text):
            relations += 1
            target, reference = nouns(text)
            [a] = [thing for thing in scene.things if thing.box == box]
            [b] = [thing for thing in scene.things if fits(reference, thing, scene)]
            assert fits(target, a, scene) and stated(match[1], a.box, b.box, scene)
        elif " next to " in text:
            # Close: the union is hardly longer than the two together.
            one, two = (
                next(thing.box for thing in scene.things if fits(words, thing, scene))
                for words in nouns(text)
            )
            slack = 0.25 * math.sqrt(scene.width * scene.height)
            assert box.w + box.h < one.w + one.h + two.w + two.h + slack
    assert relations > len(all_phrases()) / 5


def test_phrases_of_an_image_do_not_repeat_each_other() -> None:
    per_scene: dict[int, list[set[str]]] = {}
    for scene, text, _ in all_phrases():
        per_scene.setdefault(scene.key.index, []).append(set(text.split()) - {"a", "an", "the"})
    for bags in per_scene.values():
        for i, bag in enumerate(bags):
            assert all(len(bag & other) <= 0.75 * len(bag | other) for other in bags[:i])
    assert np.mean([len(bags) for bags in per_scene.values()]) >= 5


def test_vg_regions_on_disk_lie_on_objects(raw: tuple[Path, dict[str, Any]]) -> None:
    """The region files carry the phrases of the pictures beside them, boxes a pixel or two off."""
    objects = {r["image_id"]: r["objects"] for r in read(raw[0] / "vg/objects.json")}
    for record in read(raw[0] / "vg/region_descriptions.json"):
        assert len(record["regions"]) <= 10
        for region in record["regions"]:
            if re.search(r" and | next to ", region["phrase"]):
                continue
            box = Box(region["x"], region["y"], region["width"], region["height"])
            shape = nouns(region["phrase"].lower())[0][3]
            same = [o for o in objects[record["id"]] if o["names"][0] == shape]
            best = max(iou(box, Box(o["x"], o["y"], o["w"], o["h"])) for o in same)
            assert best > (0.7 if box.area > 600 else 0.4)


# Scenes cannot be guessed -----------------------------------------------------------------------


def test_a_constant_box_does_not_ground() -> None:
    boxes = np.array(
        [
            (b.x / s.width, b.y / s.height, (b.x + b.w) / s.width, (b.y + b.h) / s.height)
            for s, _, b in all_phrases()
        ]
    )
    best = 0.0
    steps = np.arange(0.1, 1.01, 0.1)
    for w, h, cx, cy in product(steps, steps, steps, steps):
        low = np.maximum(boxes[:, :2], (cx - w / 2, cy - h / 2))
        high = np.minimum(boxes[:, 2:], (cx + w / 2, cy + h / 2))
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        best = max(best, float((shared / (areas + w * h - shared) >= 0.5).mean()))
    assert best < 0.25


@pytest.mark.parametrize(
    ("what", "low", "high"),
    [("colour", 0.3, 0.75), ("shape", 0.3, 0.8), ("both", 0.6, 0.9)],
)
def test_neither_colour_nor_shape_alone_grounds(what: str, low: float, high: float) -> None:
    """A guesser that reads only these words of the first noun, and picks among what fits them.

    The lower ends keep the task learnable.
    """
    hits = []
    for scene, text, box in all_phrases():
        _, _, colour, shape = nouns(text)[0]
        fitting = [
            thing
            for thing in scene.things
            if (what == "shape" or colour in (None, thing.colour))
            and (what == "colour" or shape == thing.shape)
        ]
        hits.append(np.mean([iou(thing.box, box) >= 0.5 for thing in fitting]))
    assert low < np.mean(hits) < high


def test_sizes_and_places_spread() -> None:
    shares, centres, counts = [], [], set()
    for scene in scenes():
        counts.add(len(scene.things))
        for i, thing in enumerate(scene.things):
            share = thing.box.area / (scene.width * scene.height)
            shares.append(share)
            assert (thing.size == "large") == (share > 0.1)
            centres.append(np.divide(thing.box.centre, (scene.width, scene.height)))
            assert all(iou(thing.box, other.box) == 0 for other in scene.things[:i])
        assert 160 <= max(scene.width, scene.height) <= 224
    assert counts == {2, 3, 4, 5}
    # Filters have something to do, but little.
    assert 0 < np.mean(np.array(shares) < 0.01) < 0.05
    assert 0.2 < np.mean(np.array(shares) > 0.1) < 0.5
    assert (np.std(centres, axis=0) > 0.2).all()
    assert np.abs(np.mean(centres, axis=0) - 0.5).max() < 0.05


def test_the_picture_shows_the_scene() -> None:
    """Inside each plain shape the pixels are nearest to the colour that its name says."""
    palette = {
        "red": (255, 0, 0),
        "orange": (255, 128, 0),
        "yellow": (255, 255, 0),
        "green": (0, 128, 0),
        "blue": (0, 0, 255),
        "purple": (128, 0, 128),
        "white": (255, 255, 255),
        "black": (0, 0, 0),
    }
    for scene in scenes()[:60]:
        pixels = np.asarray(render(scene), np.float64)
        covered = np.zeros(pixels.shape[:2], bool)
        for thing in scene.things:
            mask = binary_mask(thing.shape, (thing.box,), scene.width, scene.height)
            covered |= mask
            if not thing.striped and mask.sum() > 50:
                seen = np.median(pixels[mask], axis=0)
                nearest = min(palette, key=lambda name: float(((seen - palette[name]) ** 2).sum()))
                assert nearest == thing.colour
        # A ring has a hole, a star has none: what is not covered is background, and muted.
        spread = np.ptp(pixels[~covered], axis=1)
        assert np.median(spread) < 70
