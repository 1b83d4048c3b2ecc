"""``xvlm-data sample --annotations-only``: real layouts and sizes, and a truth that is true."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from tests.data import brute_force
from tests.data.brute_force import Found
from tests.shared import shared_path
from xvlm_data.commands import main
from xvlm_data.errors import UserError
from xvlm_data.sample.annotations import SOURCES, Request, write_annotations
from xvlm_data.sample.annotations.chance import Permutation, Shares
from xvlm_data.sample.annotations.files import Block, File, Run, write_files

SEEDS = (0, 11)
SPOILT = 0.06  # so many that every kind of spoilt record occurs in a small file
SCALES = {"objects365": 0.0004, "cc12m": 0.0002, "openimages": 0.0005, "cc3m": 0.001}


@contextmanager
def unseen(name: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


def write(
    out: Path,
    *sources: str,
    scale: float,
    seed: int = 0,
    invalid: float = SPOILT,
    workers: int = 1,
    overwrite: bool = False,
) -> dict[str, Any]:
    return write_annotations(
        out,
        Request(scale, seed, invalid),
        sources,
        workers=workers,
        stage=unseen,
        overwrite=overwrite,
    )


@pytest.fixture(scope="module", params=SEEDS)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("spoilt")
    for source in SOURCES:
        write(out, source, scale=SCALES.get(source, 0.002), seed=request.param)
    return out


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing spoilt: what peers can read."""
    out = tmp_path_factory.mktemp("clean")
    for source in SOURCES:
        write(out, source, scale=SCALES.get(source, 0.002), invalid=0)
    return out


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# The truth ----------------------------------------------------------------------------------------


def agree(truth: dict[str, Any], found: Found) -> None:
    assert truth["counts"] == found.table()
    assert truth["clipped_boxes"] == found.clipped
    boxes = truth["counts"]["objects"]["raw"] + truth["counts"]["regions"]["raw"]
    assert truth["boxes"] == boxes


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("train", {"train", "restval"}),
        ("restval", {"restval"}),
        ("val", {"val"}),
        ("test", {"test"}),
    ],
)
def test_truth_of_coco_with_karpathys_split(sample: Path, split: str, parts: set[str]) -> None:
    root = sample / "coco"
    found = brute_force.instances(
        sorted(root.glob("annotations/instances_*.json")),
        sorted(root.glob("annotations/captions_*.json")),
        brute_force.karpathy_ids(root / "dataset_coco.json", parts),
    )
    agree(read(root / "truth.json")["splits"][split], found)


@pytest.mark.parametrize("split", ["train", "val"])
def test_truth_of_coco_without_karpathys_file(sample: Path, split: str) -> None:
    annotations = sample / "coco/annotations"
    found = brute_force.instances(
        [annotations / f"instances_{split}2017.json"],
        [annotations / f"captions_{split}2017.json"],
        None,
    )
    agree(read(sample / "coco/truth.json")["without_karpathy"][split], found)


@pytest.mark.parametrize("split", ["train", "val"])
def test_truth_of_objects365(sample: Path, split: str) -> None:
    root = sample / "objects365"
    found = brute_force.instances([root / f"zhiyuan_objv2_{split}.json"], [], None)
    agree(read(root / "truth.json")["splits"][split], found)


@pytest.mark.parametrize("leaks", ["left out", "kept"])
def test_truth_of_vg(sample: Path, leaks: str) -> None:
    truth = read(sample / "vg/truth.json")["splits" if leaks == "left out" else "keep_leaks"]
    held_out = brute_force.karpathy_ids(sample / "coco/dataset_coco.json", {"val", "test"})
    found = brute_force.visual_genome(sample / "vg", held_out if leaks == "left out" else set())
    agree(truth["train"], found)
    assert truth["train"]["unattached_attributes"] == found.unattached > 0


def test_truth_of_sbu(sample: Path) -> None:
    found = brute_force.sbu(sample / "sbu/sbu-captions-all.json")
    agree(read(sample / "sbu/truth.json")["splits"]["train"], found)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("cc3m/Train_GCC-training.tsv", "train"),
        ("cc3m/Validation_GCC-1.1.0-Validation.tsv", "val"),
        ("cc12m/cc12m.tsv", "train"),
    ],
)
def test_truth_of_tsv_lists(sample: Path, name: str, split: str) -> None:
    source = name.split("/")[0]
    found = brute_force.tsv(sample / name, url_first=source == "cc12m")
    agree(read(sample / source / "truth.json")["splits"][split], found)


def test_truth_of_openimages(sample: Path) -> None:
    found = brute_force.openimages(sample / "openimages")
    agree(read(sample / "openimages/truth.json")["splits"]["train"], found)


def reasons(truth: dict[str, Any], kind: str) -> set[str]:
    counts = truth["splits"]["train"]["counts"][kind]
    return {*counts["filtered"], *counts["rejected"]}


def test_every_kind_of_spoilt_record_is_there(sample: Path) -> None:
    boxes = {"box_empty", "box_outside", "box_not_finite", "malformed", "unknown_image", "small"}
    coco, vg = read(sample / "coco/truth.json"), read(sample / "vg/truth.json")
    alone = {"malformed", "duplicate_image"}
    assert reasons(coco, "images") == {*alone, "other_split", "missing_record"}
    assert reasons(coco, "objects") == {*boxes, "crowd", "unknown_category", "other_split"}
    assert reasons(coco, "captions") == {"malformed", "empty_text", "unknown_image", "other_split"}
    assert reasons(vg, "regions") == {*boxes, "empty_text", "text_overlap", "leak"}
    assert reasons(vg, "objects") == {*boxes, "empty_text", "leak"}
    for name in ("coco", "vg", "objects365", "openimages"):
        assert read(sample / name / "truth.json")["splits"]["train"]["clipped_boxes"] > 0


def test_the_spoilt_share_is_the_one_asked_for(tmp_path: Path) -> None:
    truth = write(tmp_path, "objects365", scale=0.004, invalid=0.02)["objects365"]
    counts, clipped = truth["splits"]["train"]["counts"], truth["splits"]["train"]["clipped_boxes"]
    # An image without a usable record (a quarter of 2 %) takes its boxes along.
    lost = 0.25 * 0.02
    spoilt = sum(counts["objects"]["rejected"].values()) + clipped
    share = spoilt / counts["objects"]["raw"]
    assert share == pytest.approx(0.02 + lost, rel=0.12)
    not_finite = counts["objects"]["rejected"]["box_not_finite"] / counts["objects"]["raw"]
    assert not_finite == pytest.approx(0.02 / 20, rel=0.4)


def test_nothing_is_spoilt_when_nothing_is_asked_for(clean: Path) -> None:
    for source in SOURCES:
        for split in read(clean / source / "truth.json")["splits"].values():
            assert not any(kind["rejected"] for kind in split["counts"].values())
            assert split["clipped_boxes"] == 0


# Layout and size ----------------------------------------------------------------------------------


def key_orders(records: list[Any]) -> set[tuple[str, ...]]:
    return {tuple(record) for record in records}


@pytest.mark.parametrize("kind", ["instances", "captions"])
def test_coco_has_the_official_keys(clean: Path, kind: str) -> None:
    name = f"annotations/{kind}_train2017.json"
    ours, real = read(clean / "coco" / name), read(shared_path("fixtures/coco") / name)
    assert list(ours) == list(real)
    for array in ("licenses", "images", "annotations"):
        assert key_orders(ours[array]) == key_orders(real[array])
    if kind == "instances":
        assert ours["categories"] == real["categories"]


def test_karpathys_file_has_the_official_keys(clean: Path) -> None:
    ours = read(clean / "coco/dataset_coco.json")["images"]
    real = read(shared_path("fixtures/coco_karpathy/dataset_coco.json"))["images"]
    assert key_orders(ours) == key_orders(real)
    assert key_orders(ours[0]["sentences"]) == key_orders(real[0]["sentences"])


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("image_data", None),
        ("region_descriptions", "regions"),
        ("objects", "objects"),
        ("attributes", "attributes"),
    ],
)
def test_vg_has_the_official_keys(clean: Path, name: str, inner: str | None) -> None:
    ours, real = read(clean / f"vg/{name}.json"), read(shared_path(f"fixtures/vg/{name}.json"))
    assert key_orders(ours) == key_orders(real)
    if inner:
        parts = [[part for record in file for part in record[inner]] for file in (ours, real)]
        assert key_orders(parts[0]) == key_orders(parts[1])


def test_objects365_has_the_official_keys(clean: Path) -> None:
    ours = read(clean / "objects365/zhiyuan_objv2_train.json")
    real = read(shared_path("fixtures/objects365/zhiyuan_objv2_train.json"))
    assert list(ours) == list(real)
    for array in ("images", "annotations", "categories"):
        assert key_orders(ours[array]) == key_orders(real[array])
    assert len(ours["categories"]) == len(real["categories"]) == 365


def test_openimages_has_the_official_columns(clean: Path) -> None:
    name = "openimages/train-annotations-bbox.csv"
    with (clean / name).open() as ours, shared_path(f"fixtures/{name}").open() as real:
        assert ours.readline() == real.readline()
        row, real_row = ours.readline().split(","), real.readline().split(",")
    assert [len(value) for value in row[4:]] == [len(value) for value in real_row[4:]]


#: Bytes of the real file, and what it holds: published sizes, and reports of unpacked ones.
REAL_BYTES = {
    "coco/annotations/instances_train2017.json": 469_785_474,
    "coco/annotations/captions_train2017.json": 91_865_115,
    "coco/dataset_coco.json": 144_256_519,
    "vg/region_descriptions.json": 743_000_000,
    "objects365/zhiyuan_objv2_train.json": 5_260_000_000,
    "cc3m/Train_GCC-training.tsv": 564_607_502,
    "cc12m/cc12m.tsv": 2_707_204_412,
    "openimages/train-annotations-bbox.csv": 1_194_033_454,
}


@pytest.mark.parametrize("name", REAL_BYTES)
def test_files_are_as_large_as_the_real_ones(clean: Path, name: str) -> None:
    scale = SCALES.get(name.split("/")[0], 0.002)
    size = (clean / name).stat().st_size
    assert size / scale == pytest.approx(REAL_BYTES[name], rel=0.10)


@pytest.mark.parametrize(("name", "inner"), [("objects", "objects"), ("attributes", "attributes")])
def test_vg_records_are_as_long_as_the_real_ones(clean: Path, name: str, inner: str) -> None:
    def mean(path: Path) -> float:
        return statistics.mean(len(json.dumps(r)) for e in read(path) for r in e[inner])

    real = mean(shared_path(f"fixtures/vg/{name}.json"))
    assert mean(clean / f"vg/{name}.json") == pytest.approx(real, rel=0.10)


def test_counts_are_the_real_ones_at_scale(clean: Path) -> None:
    """The published counts, times 0.002."""
    coco = read(clean / "coco/truth.json")
    train = coco["without_karpathy"]["train"]["counts"]
    raw = [train[kind]["raw"] for kind in ("images", "captions", "objects")]
    assert raw == [237, 1186, 1720]  # of 118,287, 591,753 and 860,001
    vg = read(clean / "vg/truth.json")["splits"]["train"]["counts"]
    assert [vg[kind]["raw"] for kind in ("images", "regions", "objects")] == [216, 10_817, 7_605]
    assert vg["images"]["filtered"] == {"leak": 9}  # of 4,264
    splits = Counter(i["split"] for i in read(clean / "coco/dataset_coco.json")["images"])
    assert splits == {"train": 166, "restval": 61, "val": 10, "test": 10}


# What other programs make of it -------------------------------------------------------------------


def test_pycocotools_agrees_on_masks(clean: Path) -> None:
    coco = COCO(clean / "coco/annotations/instances_train2017.json")
    assert len(coco.anns) == 1720  # all ids differ
    crowds = 0
    for annotation in coco.anns.values():
        x, y, w, h = annotation["bbox"]
        if annotation["iscrowd"]:
            crowds += 1
            mask = coco.annToMask(annotation)
            rows, columns = np.nonzero(mask)
            assert [columns.min(), rows.min()] == [x, y]
            assert [np.ptp(columns) + 1, np.ptp(rows) + 1] == [w, h]
            assert mask.sum() == annotation["area"]
            assert annotation["id"] > 2**32
        else:
            outline = np.reshape(annotation["segmentation"][0], (-1, 2))
            extent = [*outline.min(axis=0), *np.ptp(outline, axis=0)]
            assert np.allclose(extent, [x, y, w, h], atol=0.03)
    assert crowds > 5
    large = [a for a in coco.anns.values() if not a["iscrowd"] and a["area"] > 5000]
    for annotation in large[:50]:
        masks = [
            coco.annToMask({**annotation, "segmentation": [polygon]}).sum()
            for polygon in annotation["segmentation"]
        ]
        assert sum(masks) == pytest.approx(annotation["area"], rel=0.05)


def test_pycocotools_reads_objects365(clean: Path) -> None:
    coco = COCO(clean / "objects365/zhiyuan_objv2_train.json")
    assert len(coco.anns) == 10_163 and len(coco.imgs) == 697
    for annotation in list(coco.anns.values())[:200]:
        _, _, w, h = annotation["bbox"]
        assert annotation["area"] == w * h


def test_karpathys_sentences_are_the_captions(clean: Path) -> None:
    captions = {
        record["id"]: record
        for part in ("train", "val")
        for record in read(clean / f"coco/annotations/captions_{part}2017.json")["annotations"]
    }
    for image in read(clean / "coco/dataset_coco.json")["images"]:
        assert len(image["sentences"]) == 5
        for sentence in image["sentences"]:
            record = captions[sentence["sentid"]]
            assert record["image_id"] == image["cocoid"]
            assert record["caption"] == sentence["raw"]


def test_annotations_of_an_image_are_far_apart(clean: Path) -> None:
    for name in ("instances", "captions"):
        records = read(clean / f"coco/annotations/{name}_train2017.json")["annotations"]
        places: dict[int, list[int]] = {}
        for place, record in enumerate(records):
            places.setdefault(record["image_id"], []).append(place)
        neighbours = sum(one["image_id"] == other["image_id"] for one, other in pairwise(records))
        assert neighbours < len(records) / 50
        spans = [max(p) - min(p) for p in places.values() if len(p) >= 5]
        assert statistics.median(spans) > len(records) / 2


def test_texts_are_like_the_real_ones(clean: Path) -> None:
    regions = [r for e in read(clean / "vg/region_descriptions.json") for r in e["regions"]]
    phrases = [region["phrase"] for region in regions]
    assert statistics.mean(len(phrase.split()) for phrase in phrases) == pytest.approx(5.3, abs=0.6)
    assert 0.05 < statistics.mean(p != p.strip() for p in phrases) < 0.2
    assert 0.002 < statistics.mean("\n" in p for p in phrases) < 0.03
    words = Counter(word for phrase in phrases for word in phrase.lower().split())
    frequent = [count for _, count in words.most_common(1000)]
    assert len(words) > 1000
    assert frequent[0] > 20 * frequent[99] > 20 * frequent[999]
    captions = [
        record["caption"]
        for record in read(clean / "coco/annotations/captions_train2017.json")["annotations"]
    ]
    assert statistics.mean(len(text.split()) for text in captions) == pytest.approx(10.5, abs=1)
    assert 0.08 < statistics.mean(text != text.strip() for text in captions) < 0.16
    assert 0.15 < statistics.mean("." not in text for text in captions) < 0.3
    assert any("\n" in text for text in captions) and any("  " in text for text in captions)


# Reproducible, complete or absent -----------------------------------------------------------------


def test_workers_do_not_change_a_byte_and_seeds_do(tmp_path: Path) -> None:
    # Enough records for a second process.
    for name, seed, workers in (("one", 0, 1), ("two", 0, 2), ("other", 1, 1)):
        write(tmp_path / name, "objects365", scale=0.005, seed=seed, workers=workers)
    one, two, other = (digests(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert all(one[name] != other[name] for name in one)


def test_a_sample_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    write(tmp_path, "sbu", scale=0.0001)
    before = digests(tmp_path)
    write(tmp_path, "sbu", scale=0.0001, seed=5)
    assert digests(tmp_path) != before
    foreign = tmp_path / "cc3m"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    before = digests(tmp_path)
    with pytest.raises(UserError, match="not a sample"):
        write(tmp_path, "sbu", "cc3m", scale=0.0001)
    assert digests(tmp_path) == before
    write(tmp_path, "cc3m", scale=0.0001, overwrite=True)
    assert not (foreign / "thesis.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cc3m", "sbu"]


def good_block(first: int, stop: int) -> Block:
    return Block(b"x" * (stop - first))


def dying_block(first: int, stop: int) -> Block:
    if first:
        os._exit(9)
    return good_block(first, stop)


def test_a_killed_process_ends_in_one_line(tmp_path: Path) -> None:
    file = File(tmp_path / "a.json", [Run(dying_block, 400_000, 50_000)])
    with pytest.raises(UserError, match="killed"):
        write_files([file], 2, lambda count: None)


def test_a_full_disk_ends_in_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left"):
        write_files([File(full, [b"[", Run(good_block, 100_000, 50_000)])], 1, lambda count: None)


# Command line -------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["sample", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_command_line_prints_the_truth(tmp_path: Path) -> None:
    given = ("--annotations-only", "--scale", "0.0005", "--out", str(tmp_path), "--source", "vg")
    status, output, _ = run(*given, "--json")
    assert status == 0
    assert json.loads(output) == {"vg": read(tmp_path / "vg/truth.json")}
    status, output, _ = run(*given)
    assert status == 0
    assert f"{2704:,}" in output  # 0.0005 of 5,408,689 regions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--annotations-only", "--images", "5"], "--images does not go with"),
        (["--scale", "0.1"], "--scale needs --annotations-only"),
        (["--invalid", "0.1"], "--invalid needs --annotations-only"),
        (["--annotations-only", "--scale", "much"], "no number"),
        (["--annotations-only", "--scale", "0"], "not above 0"),
        (["--annotations-only", "--scale", "nan"], "not above 0"),
        (["--annotations-only", "--scale", "1e9"], "at most 50"),
        (["--source", "cc12m"], "no miniature of cc12m"),
    ],
)
def test_command_line_says_what_is_wrong(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    status, _, errors = run(*arguments, "--out", str(tmp_path))
    assert status == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


# Chance -------------------------------------------------------------------------------------------


@given(st.integers(1, 3000), st.integers())
def test_permutations_permute(size: int, seed: int) -> None:
    permutation = Permutation.of(seed, "test", size)
    numbers = np.arange(size)
    assert sorted(permutation[numbers].tolist()) == numbers.tolist()
    assert permutation.inverse(permutation[numbers]).tolist() == numbers.tolist()


@given(st.integers(1, 200), st.integers(0, 5000), st.integers(0, 40), st.integers(0, 9))
def test_shares_add_up(owners: int, total: int, spread: int, seed: int) -> None:
    shares = Shares(seed, "test", total, owners, spread)
    numbers = np.arange(owners)
    counts = shares.counts(numbers)
    assert counts.min() >= 0
    assert counts.sum() == total
    assert shares.starts(numbers).tolist() == (np.cumsum(counts) - counts).tolist()
