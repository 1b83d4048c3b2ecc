"""`xvlm-data leaks`: every planted leak is found, as exactly the planted pairs, nothing else."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageOps

from tests.data.leaky_releases import (
    build,
    coco_with_pictures,
    encoded,
    sbu_with_pictures,
    scene,
    vg_with_pictures,
    with_comment,
)
from tests.data.raw_releases import caption, coco_image, jpeg, write_coco, write_image, write_json
from tests.shared import shared_path
from xvlm_data.commands import main

Pair = tuple[str, str, str]


def leaks(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["leaks", *map(str, arguments)])


def found(tmp_path: Path, *arguments: Any) -> tuple[int, set[Pair], list[dict[str, Any]]]:
    """(exit status, leaks as (row, evaluation image, evidence), unproven ones)."""
    out = tmp_path / "report.json"
    result = leaks(*arguments, "--out", out)
    assert result.exit_code in (0, 1), result.output
    findings = json.loads(out.read_text())
    pairs = [(f["id"], f["evaluation"], f["evidence"]) for f in findings if f["finding"] == "leak"]
    assert len(pairs) == len(set(pairs))
    return result.exit_code, set(pairs), [f for f in findings if f["finding"] == "unproven"]


@pytest.fixture
def coco_val(tmp_path: Path) -> str:
    """COCO images 11, 12, … 15 as an evaluation set, built."""
    pictures = {10 + n: encoded(scene(n)) for n in range(1, 6)}
    root = coco_with_pictures(tmp_path / "coco_raw", pictures, "val2017")
    return build("coco", root, tmp_path / "coco_val", split="val")


# Ids


def test_vg_rows_are_known_by_their_coco_and_flickr_ids(tmp_path: Path) -> None:
    pictures = {n: encoded(scene(100 + n)) for n in range(1, 6)}
    root = vg_with_pictures(
        tmp_path / "vg",
        pictures,
        coco={1: 391895, 2: 522418, 3: 7},
        flickr={3: 1007129816, 4: 2007129816},
    )
    manifest = build("vg", root, tmp_path / "m", keep_leaks=True)
    coco = write_json(
        tmp_path / "dataset_coco.json",
        {
            "images": [
                {"split": split, "cocoid": n, "filename": f"COCO_val2014_{n:012d}.jpg"}
                for n, split in [(391895, "test"), (522418, "restval"), (8, "val")]
            ],
            "dataset": "coco",
        },
    )
    flickr = write_json(
        tmp_path / "dataset_flickr30k.json",
        {"images": [{"split": "test", "filename": "1007129816.jpg"}], "dataset": "flickr30k"},
    )
    code, pairs, _ = found(tmp_path, manifest, "--against", coco, flickr)
    assert code == 1
    assert pairs == {
        ("vg/1", "COCO image 391895", "coco_id"),
        ("vg/3", "Flickr photo 1007129816", "flickr_id"),
    }
    clean = build("vg", root, tmp_path / "clean", exclude=(coco, flickr))
    assert found(tmp_path, clean, "--against", coco, flickr)[:2] == (0, set())
    # That VG names no COCO image says that there is none; that it names no photo says nothing.
    assert leaks(clean, "--against", coco, "--strict").exit_code == 0
    report = json.loads(leaks(clean, "--against", flickr, "--json").stdout)["comparisons"][0]
    assert (report["rows"], report["by_ids"], report["not_compared"]) == (3, 1, 2)
    write_json(root / "image_data.json", [{"image_id": 2}])
    report = json.loads(leaks(clean, "--against", coco, "--json").stdout)["comparisons"][0]
    assert (report["rows"], report["by_ids"], report["not_compared"]) == (3, 1, 2)


def test_ids_meet_across_releases(tmp_path: Path) -> None:
    """A photo of SBU that COCO's val part also has, and RefCOCO's image in COCO's training part."""
    sbu = sbu_with_pictures(
        tmp_path / "sbu",
        {"5148648301_1174ef59bc.jpg": jpeg(), "5148648302_1174ef59bc.jpg": jpeg()},
    )
    sbu_manifest = build("sbu", sbu, tmp_path / "sbu_m")
    url = "http://farm9.staticflickr.com/8186/5148648302_aa11bb22cc_z.jpg"
    val = write_json(
        tmp_path / "captions_val2017.json",
        {"images": [coco_image(5) | {"flickr_url": url}], "annotations": []},
    )
    train = write_coco(tmp_path / "coco", images=[coco_image(3), coco_image(4)])
    coco_manifest = build("coco", train, tmp_path / "coco_m")
    refs = tmp_path / "refs(unc).p"
    entries = [{"image_id": 3, "split": "testB"}, {"image_id": 4, "split": "train"}]
    refs.write_bytes(pickle.dumps(entries, protocol=2))
    code, pairs, _ = found(tmp_path, sbu_manifest, coco_manifest, "--against", val, refs)
    assert code == 1
    assert pairs == {
        ("sbu/5148648302_1174ef59bc", "Flickr photo 5148648302", "flickr_id"),
        ("coco/3", "COCO image 3", "coco_id"),
    }


def test_coco_rows_are_flickr_photos_by_their_own_files(tmp_path: Path) -> None:
    """COCO's ``flickr_url``, found in the manifest's image root."""
    urls = {1: "http://farm9.staticflickr.com/8/77_aa_z.jpg", 2: "http://x.example/none"}
    images = [coco_image(n) | {"flickr_url": url} for n, url in urls.items()]
    root = write_coco(tmp_path / "raw", images=images, captions=[caption(1, 1, "a")])
    manifest = build("coco", root, tmp_path / "m")
    photos = tmp_path / "test.txt"
    photos.write_text("77\n78.jpg\n")
    _, pairs, _ = found(tmp_path, manifest, "--against", photos)
    assert pairs == {("coco/1", "Flickr photo 77", "flickr_id")}


def test_openimages_rows_by_their_image_list(tmp_path: Path) -> None:
    from tests.data.test_verify import write_manifest

    folder = write_manifest(tmp_path / "m", "openimages", [{"object": 1}] * 2)
    ids = ["000002b66c9c498e", "ffff02b66c9c498e"]
    table = pq.read_table(folder / "manifest-00000.parquet")
    column = [f"openimages/{number}" for number in ids]
    table = table.set_column(0, table.schema.field("id"), [column])
    pq.write_table(table, folder / "manifest-00000.parquet")
    listed = tmp_path / "train-images-boxable-with-rotation.csv"
    rows = [["ImageID", "Subset", "OriginalURL"]]
    rows += [
        [number, "train", f"https://f.example/1/{77 + n}_ab_o.jpg"] for n, number in enumerate(ids)
    ]
    with listed.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    photos = tmp_path / "test.txt"
    photos.write_text("78\n")
    result = leaks(folder, "--against", photos)
    assert result.exit_code == 2
    assert "OriginalURL" in result.stderr
    code, pairs, _ = found(tmp_path, folder, "--against", photos, "--ids", listed)
    assert (code, pairs) == (1, {("openimages/ffff02b66c9c498e", "Flickr photo 78", "flickr_id")})


def test_vg_without_its_ids_is_not_called_proven(tmp_path: Path) -> None:
    root = vg_with_pictures(tmp_path / "vg", {1: jpeg()}, coco={1: 7})
    manifest = build("vg", root, tmp_path / "m", keep_leaks=True, images="embed")
    names = tmp_path / "val.txt"
    names.write_text("COCO_val2014_000000000007.jpg\n")
    result = leaks(manifest, "--against", names)
    assert result.exit_code == 2
    assert "image_data.json with --ids" in result.stderr
    code, pairs, _ = found(
        tmp_path, manifest, "--against", names, "--ids", root / "image_data.json"
    )
    assert (code, pairs) == (1, {("vg/1", "COCO image 7", "coco_id")})


# Content


def test_planted_copies_are_found_and_nothing_else(tmp_path: Path, coco_val: str) -> None:
    """One web release with copies of the evaluation images, each hidden in another way."""
    original = {10 + n: encoded(scene(n)) for n in range(1, 6)}
    half = scene(4).resize((80, 60), Image.Resampling.BICUBIC)
    pictures = {
        "1_a.jpg": original[11],
        "2_a.jpg": with_comment(original[12]),
        "3_a.png": encoded(
            Image.open(Path(coco_val).parent / "coco_raw/val2017/000000000013.jpg"), kind="PNG"
        ),
        "4_a.jpg": encoded(half, quality=60),
        "5_a.jpg": encoded(ImageOps.mirror(scene(5))),  # nothing is claimed of mirrored ones
        "6_a.jpg": encoded(scene(50)),
        "7_a.jpg": jpeg(160, 120),
    }
    manifest = build("sbu", sbu_with_pictures(tmp_path / "sbu", pictures), tmp_path / "m")
    exact = {
        ("sbu/1_a", "coco/11", "bytes"),
        ("sbu/2_a", "coco/12", "pixels"),
        ("sbu/3_a", "coco/13", "pixels"),
    }
    near = {("sbu/4_a", "coco/14", "perceptual")}
    assert found(tmp_path, manifest, "--against", coco_val) == (1, exact, [])
    assert found(tmp_path, manifest, "--against", coco_val, "--perceptual") == (1, exact | near, [])
    only_bytes = {("sbu/1_a", "coco/11", "bytes")}
    assert found(tmp_path, manifest, "--against", coco_val, "--no-pixels")[1] == only_bytes
    assert found(tmp_path, manifest, "--against", coco_val, "--no-content")[1] == set()


@pytest.mark.parametrize("images", ["reference", "embed"])
def test_embedded_and_referenced_images_are_the_same_to_it(tmp_path: Path, images: str) -> None:
    data = {"1_a.jpg": encoded(scene(1)), "2_a.jpg": encoded(scene(2))}
    root = sbu_with_pictures(tmp_path / "sbu", data)
    manifest = build("sbu", root, tmp_path / "m", images=images)
    for folder, number in (("one", 1), ("other", 2)):
        write_image(tmp_path / folder / "deep/x.jpg", data[f"{number}_a.jpg"])
    code, pairs, _ = found(tmp_path, manifest, "--against", tmp_path / "other")
    assert (code, pairs) == (1, {("sbu/2_a", "deep/x.jpg", "bytes")})


@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_does_not_hide_a_copy(tmp_path: Path, orientation: int) -> None:
    """The tag lost, and the tag carried out: both have other bytes than the tagged original."""
    picture = scene(1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    tagged = encoded(picture, kind="PNG", exif=exif)
    shown = ImageOps.exif_transpose(Image.open(write(tmp_path / "t.png", tagged)))
    copies = {"1_a.png": encoded(picture, kind="PNG"), "2_a.png": encoded(shown, kind="PNG")}
    manifest = build("sbu", sbu_with_pictures(tmp_path / "sbu", copies), tmp_path / "m")
    write_image(tmp_path / "eval/x.png", tagged)
    _, pairs, _ = found(tmp_path, manifest, "--against", tmp_path / "eval")
    assert pairs == {("sbu/1_a", "x.png", "pixels"), ("sbu/2_a", "x.png", "pixels")}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_folder_of_coco_images_tells_ids_too(tmp_path: Path) -> None:
    write_image(tmp_path / "val2014/COCO_val2014_000000000003.jpg", encoded(scene(9)))
    root = write_coco(tmp_path / "coco", images=[coco_image(3), coco_image(4)])
    manifest = build("coco", root, tmp_path / "m")
    _, pairs, _ = found(tmp_path, manifest, "--against", tmp_path / "val2014")
    assert pairs == {("coco/3", "COCO_val2014_000000000003.jpg", "coco_id")}


# What could not be told


def test_what_cannot_be_looked_at_is_listed_and_fails_when_strict(
    tmp_path: Path, coco_val: str
) -> None:
    pictures = {f"{n}_a.jpg": encoded(scene(60 + n)) for n in range(1, 5)}
    root = sbu_with_pictures(tmp_path / "sbu", pictures)
    manifest = build("sbu", root, tmp_path / "m")
    strict = (manifest, "--against", coco_val, "--strict")
    assert found(tmp_path, *strict) == (0, set(), [])
    (root / "images/1_a.jpg").unlink()
    (root / "images/3_a.jpg").write_bytes(b"no picture")
    code, pairs, unproven = found(tmp_path, manifest, "--against", coco_val)
    assert (code, pairs) == (0, set())
    assert {(f["id"], f["row"], f["evidence"]) for f in unproven} == {
        ("sbu/1_a", 0, "missing_image"),
        ("sbu/3_a", 2, "not_an_image"),
    }
    assert found(tmp_path, *strict)[0] == 1
    assert "1 images could not be looked at: missing_image" in leaks(*strict).stdout


def test_evaluation_images_that_cannot_be_looked_at(tmp_path: Path) -> None:
    manifest = build(
        "sbu", sbu_with_pictures(tmp_path / "sbu", {"1_a.jpg": jpeg()}), tmp_path / "m"
    )
    write_image(tmp_path / "eval/good.jpg", encoded(scene(1)))
    write_image(tmp_path / "eval/bad.jpg", b"no picture")
    code, pairs, unproven = found(tmp_path, manifest, "--against", tmp_path / "eval", "--strict")
    assert (code, pairs) == (1, set())
    assert [(f["evaluation"], f["evidence"]) for f in unproven] == [("bad.jpg", "not_an_image")]


def test_rows_without_ids_are_not_comparable_with_a_list(tmp_path: Path) -> None:
    from tests.data.test_verify import write_manifest

    folder = write_manifest(tmp_path / "m", "cc3m", [{"image": 1}] * 3)
    names = write(tmp_path / "val.txt", b"COCO_val2014_000000000007.jpg\n")
    result = leaks(folder, "--against", names, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["complete"]) == (0, False)
    assert report["comparisons"][0]["not_compared"] == 3
    assert leaks(folder, "--against", names, "--strict").exit_code == 1


def test_a_list_that_tells_flickr_ids_of_some_images_proves_nothing_of_a_photo(
    tmp_path: Path,
) -> None:
    manifest = build(
        "sbu", sbu_with_pictures(tmp_path / "sbu", {"1_a.jpg": jpeg()}), tmp_path / "m"
    )
    url = "http://farm9.staticflickr.com/8186/5_aa_z.jpg"
    images = [coco_image(5) | {"flickr_url": url}, coco_image(6) | {"flickr_url": url}]
    for complete in (True, False):
        if not complete:
            del images[1]["flickr_url"]
        val = write_json(tmp_path / "captions_val2017.json", {"images": images, "annotations": []})
        report = json.loads(leaks(manifest, "--against", val, "--json").stdout)
        assert report["complete"] is complete


# The report


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json"])
def test_reports_hold_every_pair_with_its_place(tmp_path: Path, coco_val: str, suffix: str) -> None:
    pictures = {f"{n}_a.jpg": encoded(scene(n)) for n in (7, 1, 2)}
    root = sbu_with_pictures(tmp_path / "sbu", pictures)
    manifest = build("sbu", root, tmp_path / "m", shard_rows=2)
    out = tmp_path / f"report.{suffix}"
    assert leaks(manifest, "--against", coco_val, "--out", out).exit_code == 1
    if suffix == "parquet":
        findings = pq.read_table(out).to_pylist()
    elif suffix == "json":
        findings = json.loads(out.read_text())
    else:
        with out.open(newline="") as file:
            findings = list(csv.DictReader(file))
    for finding in findings:
        rows = pq.read_table(str(finding["shard"]).removeprefix("file://"))["id"].to_pylist()
        assert rows[int(finding["row"])] == finding["id"]
    assert {(f["id"], f["evaluation"]) for f in findings} == {
        ("sbu/1_a", "coco/11"),
        ("sbu/2_a", "coco/12"),
    }
    assert not list(tmp_path.glob(".*.part"))


def test_bad_input_is_one_line(tmp_path: Path, coco_val: str) -> None:
    (tmp_path / "empty").mkdir()
    cases = [
        ([], "no MANIFEST"),
        ([coco_val], "--against is missing"),
        ([coco_val, "--against", tmp_path / "none.json"], "no such file"),
        ([coco_val, "--against", tmp_path / "none"], f"{tmp_path}/none: no such file, folder or"),
        ([coco_val, "--against", f"{coco_val}x"], f"did you mean {coco_val}?"),
        ([coco_val, "--against", tmp_path / "empty"], "neither a manifest nor a folder"),
        ([tmp_path / "empty", "--against", coco_val], "without manifest.json"),
        ([coco_val, "--against", coco_val, "--out", tmp_path / "r.xlsx"], "no known kind"),
        ([coco_val, "--against", coco_val, "--out", tmp_path / "no/r.csv"], "cannot be written"),
        ([coco_val, "--against", coco_val, "--distance", "3"], "belongs to --perceptual"),
        ([coco_val, "--against", coco_val, "--ids", write(tmp_path / "x.json", b"7")], "no ids"),
    ]
    for arguments, message in cases:
        result = leaks(*arguments)
        assert (result.exit_code, message in result.stderr) == (2, True), (arguments, result.output)
        assert "Traceback" not in result.output


def test_several_values_after_one_against(tmp_path: Path, coco_val: str) -> None:
    names = write(tmp_path / "val.txt", b"COCO_val2014_000000000011.jpg\n")
    code, pairs, _ = found(tmp_path, coco_val, "--against", names, coco_val, "--no-content")
    assert code == 1
    assert ("coco/11", "COCO image 11", "coco_id") in pairs
    assert ("coco/11", "coco/11", "coco_id") in pairs
    assert len(pairs) == 1 + 5
    assert found(tmp_path, coco_val, "--against", names, "--against", coco_val)[0] == 1


def test_the_same_whatever_the_number_of_threads(tmp_path: Path, coco_val: str) -> None:
    out = {}
    for workers in (1, 4):
        path = tmp_path / f"{workers}.csv"
        leaks(coco_val, "--against", coco_val, "--perceptual", "--workers", workers, "--out", path)
        out[workers] = path.read_bytes()
    assert out[1] == out[4]
    assert len(out[1].splitlines()) == 1 + 2 * 5


# Real excerpts


def test_real_excerpts(tmp_path: Path) -> None:
    """Karpathy's excerpt repeats eight val2017 images; of the train2017 excerpt only those leak
    that his lists name.
    """
    val = build("coco", shared_path("fixtures/coco"), tmp_path / "val", split="val")
    train = build("coco", shared_path("fixtures/coco"), tmp_path / "train")
    karpathy = shared_path("fixtures/coco_karpathy")
    copies = sorted((karpathy / "val2014").glob("*.jpg"))
    numbers = [int(path.stem[-12:]) for path in copies]
    code, pairs, _ = found(tmp_path, val, "--against", karpathy / "val2014")
    assert code == 1
    assert {(row, how) for row, _, how in pairs} == {
        (f"coco/{number}", how) for number in numbers for how in ("coco_id", "bytes")
    }
    lists = [karpathy / f"splits/karpathy_{part}_images.txt" for part in ("val", "test")]
    listed = {int(line.split()[1]) for path in lists for line in path.read_text().splitlines()}
    here = {
        image["id"]
        for image in json.loads(
            (shared_path("fixtures/coco") / "annotations/captions_val2017.json").read_text()
        )["images"]
    }
    _, pairs, _ = found(tmp_path, val, "--against", *lists)
    assert pairs == {(f"coco/{n}", f"COCO image {n}", "coco_id") for n in listed & here}
    evaluation = [
        *lists,
        karpathy / "dataset_coco.json",
        shared_path("fixtures/refcoco/refcoco/refs(unc).p"),
        *shared_path("fixtures/refcocog_google").glob("*.json"),
        shared_path("fixtures/flickr30k/entities_splits/test.txt"),
        shared_path("fixtures/vqa_v2/v2_OpenEnded_mscoco_val2014_questions.json"),
        karpathy / "val2014",
    ]
    code, pairs, unproven = found(
        tmp_path, train, "--against", *evaluation, "--perceptual", "--strict"
    )
    in_train = {int(path.stem) for path in shared_path("fixtures/coco/train2017").glob("*.jpg")}
    assert {row for row, _, _ in pairs} == {f"coco/{n}" for n in listed & in_train}
    assert unproven == []
