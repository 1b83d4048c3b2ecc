"""`build --exclude-images`: evaluation images are left out by content, and nothing else is."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageOps

import xvlm_data.build as build_module
from tests.data.leaky_releases import (
    build,
    coco_with_pictures,
    encoded,
    sbu_with_pictures,
    scene,
    vg_with_pictures,
    with_comment,
)
from tests.data.raw_releases import Silent, build_all, jpeg, write_image
from xvlm_data.commands import main
from xvlm_data.errors import UserError
from xvlm_data.images.check import ImageChecker
from xvlm_data.images.decode import ImageError
from xvlm_data.leaks import exclusion as exclusion_module
from xvlm_data.leaks import fingerprint as fingerprint_module
from xvlm_data.leaks.content import Seen
from xvlm_data.leaks.content_index import ContentIndex
from xvlm_data.leaks.exclusion import Exclusion, look_at
from xvlm_data.leaks.fingerprint import Fingerprint

ORIGINAL = {10 + n: encoded(scene(n)) for n in range(1, 6)}
#: One of each way in which a copy hides; 5 is mirrored, of which nothing is claimed.
PICTURES = {
    "1_a.jpg": ORIGINAL[11],
    "2_a.jpg": with_comment(ORIGINAL[12]),
    "3_a.png": encoded(Image.open(io.BytesIO(ORIGINAL[13])), kind="PNG"),
    "4_a.jpg": encoded(scene(4).resize((80, 60), Image.Resampling.BICUBIC), quality=60),
    "5_a.jpg": encoded(ImageOps.mirror(scene(5))),
    "6_a.jpg": encoded(scene(50)),
    "7_a.jpg": jpeg(160, 120),
}


@pytest.fixture
def coco_val(tmp_path: Path) -> str:
    """COCO images 11, 12, … 15 as an evaluation set, built."""
    root = coco_with_pictures(tmp_path / "coco_raw", ORIGINAL, "val2017")
    return build("coco", root, tmp_path / "coco_val", split="val")


@pytest.fixture
def sbu(tmp_path: Path) -> Path:
    return sbu_with_pictures(tmp_path / "sbu", PICTURES)


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"].removeprefix("sbu/") for row in rows]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_copies_are_left_out_with_their_captions_and_nothing_else_is(
    tmp_path: Path, sbu: Path, coco_val: str
) -> None:
    out = tmp_path / "m"
    summary, rows, rejects = build_all("sbu", sbu, out, exclude_images=(coco_val,))
    assert names(rows) == ["4_a", "5_a", "6_a", "7_a"]
    assert summary["counts"]["images"]["filtered"] == {"leak": 3}
    assert summary["counts"]["captions"]["filtered"] == {"leak": 3}
    told = {r["record_id"]: r["message"] for r in rejects if r["kind"] == "image"}
    assert told == {
        "sbu/1_a": f"images/1_a.jpg: the same bytes as coco/11 of {coco_val}",
        "sbu/2_a": f"images/2_a.jpg: the same pixels as coco/12 of {coco_val}",
        "sbu/3_a": f"images/3_a.png: the same pixels as coco/13 of {coco_val}",
    }
    assert {r["reason"] for r in rejects} == {"leak"}
    assert summary["evaluation_images"]["images"] == 5
    # The search over manifests, which has its own way to the images, finds nothing any more.
    assert CliRunner().invoke(main, ["leaks", str(out), "--against", coco_val]).exit_code == 0


def test_what_looks_like_one_is_left_out_when_asked_for(
    tmp_path: Path, sbu: Path, coco_val: str
) -> None:
    options: dict[str, Any] = {"exclude_images": (coco_val,), "exclude_distance": 4}
    _, rows, rejects = build_all("sbu", sbu, tmp_path / "m", **options)
    assert names(rows) == ["5_a", "6_a", "7_a"]
    (near,) = [
        r["message"] for r in rejects if r["record_id"] == "sbu/4_a" and r["kind"] == "image"
    ]
    assert near.startswith(f"images/4_a.jpg: looks like coco/14 of {coco_val} (")
    leaks = ["leaks", str(tmp_path / "m"), "--against", coco_val, "--perceptual"]
    assert CliRunner().invoke(main, leaks).exit_code == 0


def test_a_folder_of_images_does_as_well_and_several_sets_too(
    tmp_path: Path, sbu: Path, coco_val: str
) -> None:
    folder = tmp_path / "flickr/test"
    write_image(folder / "deep/1.jpg", PICTURES["6_a.jpg"])
    write_image(folder / "2.png", PICTURES["3_a.png"])
    (folder / "list.txt").write_text("no image")
    given = (str(folder), coco_val)
    summary, rows, rejects = build_all("sbu", sbu, tmp_path / "m", exclude_images=given)
    assert names(rows) == ["4_a", "5_a", "7_a"]
    told = {r["record_id"]: r["message"] for r in rejects if r["kind"] == "image"}
    assert told["sbu/6_a"] == f"images/6_a.jpg: the same bytes as deep/1.jpg of {folder}"
    # The surest evidence is told: these are the bytes of the one, and the pixels of the other.
    assert told["sbu/3_a"] == f"images/3_a.png: the same bytes as 2.png of {folder}"
    assert summary["evaluation_images"]["images"] == 7


def test_regions_and_objects_go_with_their_image(tmp_path: Path, coco_val: str) -> None:
    root = vg_with_pictures(tmp_path / "vg", {1: ORIGINAL[11], 2: encoded(scene(70))})
    summary, rows, rejects = build_all("vg", root, tmp_path / "m", exclude_images=(coco_val,))
    assert [row["id"] for row in rows] == ["vg/2"]
    assert summary["counts"]["regions"]["filtered"] == {"leak": 1}
    assert {(r["kind"], r["reason"]) for r in rejects} == {("image", "leak"), ("region", "leak")}


@pytest.mark.parametrize("options", [{"images": "embed"}, {"images": "embed", "shortest_side": 32}])
def test_embedded_images_too(
    tmp_path: Path, sbu: Path, coco_val: str, options: dict[str, Any]
) -> None:
    plain, without, _ = build_all("sbu", sbu, tmp_path / "without", **options)
    out = tmp_path / "m"
    summary, rows, _ = build_all("sbu", sbu, out, exclude_images=(coco_val,), **options)
    assert names(rows) == ["4_a", "5_a", "6_a", "7_a"]
    # What is kept is stored as it would have been.
    assert [r["image"] for r in rows] == [r["image"] for r in without[3:]]
    assert summary["image_bytes"]["stored"] < plain["image_bytes"]["stored"]


def test_a_copy_that_lost_its_exif_orientation(tmp_path: Path) -> None:
    picture = scene(9)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(picture, exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))
    stored = Image.open(io.BytesIO(turned))
    stored.load()
    folder = tmp_path / "eval"
    write_image(folder / "x.jpg", turned)
    root = sbu_with_pictures(
        tmp_path / "sbu",
        {
            "1_a.png": encoded(upright, kind="PNG"),
            "2_a.png": encoded(Image.fromarray(np.asarray(stored)), kind="PNG"),
            "3_a.jpg": encoded(scene(8), exif=exif.tobytes()),
        },
    )
    _, rows, _ = build_all("sbu", root, tmp_path / "m", exclude_images=(str(folder),))
    assert names(rows) == ["3_a"]
    # The other way round: the evaluation image is upright, the training image is to be turned.
    write_image(folder / "x.jpg", encoded(upright, kind="PNG"))
    root = sbu_with_pictures(tmp_path / "sbu2", {"1_a.jpg": turned, "2_a.jpg": encoded(scene(8))})
    _, rows, _ = build_all("sbu", root, tmp_path / "m2", exclude_images=(str(folder),))
    assert names(rows) == ["2_a"]


# One pass, and small tasks


def test_an_image_is_decoded_once(
    tmp_path: Path, sbu: Path, coco_val: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = look_at([coco_val], tmp_path, distance=4, stage=Silent().stage)

    def decode(*args: Any, **kwargs: Any) -> Image.Image:
        raise AssertionError("decoded again")

    monkeypatch.setattr(fingerprint_module, "decode", decode)
    checker = ImageChecker(sbu, exclusion=evaluated.exclusion)
    for name, data in PICTURES.items():
        found = checker.check_one(build_record(f"images/{name}"))
        assert (found.problem == "leak") == (name[0] in "1234"), found
        assert found.problem == "leak" or found.size == Image.open(io.BytesIO(data)).size


def build_record(path: str) -> Any:
    from xvlm_data.images.check import ImageRecord

    return ImageRecord([path], None)


def test_tasks_carry_the_names_of_folders_only(tmp_path: Path, coco_val: str) -> None:
    evaluated = look_at([coco_val], tmp_path, distance=12, stage=Silent().stage)
    ((_, place),) = evaluated.exclusion.indexes
    assert sum(file.stat().st_size for file in place.iterdir()) > 100_000
    assert len(pickle.dumps(ImageChecker(tmp_path, exclusion=evaluated.exclusion))) < 2_000
    for file in place.iterdir():
        np.load(file, mmap_mode="r", allow_pickle=False)
    # Mapped, not read: the arrays of a loaded index are views of the files.
    index = ContentIndex.load(place)
    assert index._looks is not None
    base: Any = index._looks.bands[0][0]
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)


def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path, sbu: Path, coco_val: str) -> None:
    options: dict[str, Any] = {"exclude_images": (coco_val,), "exclude_distance": 4}
    for workers in (1, 2):
        build_all("sbu", sbu, tmp_path / str(workers), workers=workers, shard_rows=2, **options)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


@pytest.mark.parametrize("distance", [None, 0, 3, 12])
def test_a_saved_index_finds_what_the_one_in_memory_does(
    tmp_path: Path, distance: int | None
) -> None:
    """Truth by comparing all with all; digests that end in zeros, names of every kind."""
    rng = np.random.default_rng(7)

    def image(number: int) -> Fingerprint:
        data = rng.integers(0, 4, 32, np.uint8)
        data[rng.integers(1, 32) :] = 0
        pixels = tuple(rng.integers(0, 3, 32, np.uint8).tobytes() for _ in range(number % 3))
        looks = tuple(int(x) for x in rng.integers(0, 1 << 8, number % 3))
        return Fingerprint(data.tobytes(), (3, 4 + number % 5), pixels, looks)

    known = [(name, Seen(image(n))) for n, name in enumerate(["a", "", "ü/x", "\udce9"] * 20)]
    known.append(("broken", Seen(None, "corrupt_image")))
    queries = [Seen(image(n)) for n in range(50)] + [known[5][1], Seen(None, "missing_image")]
    queries += (
        [Seen(Fingerprint(b"x", pixels=known[7][1].print.pixels))] if known[7][1].print else []
    )
    index = ContentIndex.of(known, distance)
    found = index.matches(queries)
    expected = []
    for place, query in enumerate(queries):
        for number, (_, seen) in enumerate(known[:-1]):
            if query.print is None or seen.print is None:
                continue
            both = {query.print.data, *query.print.pixels} & {seen.print.data, *seen.print.pixels}
            far = [(a ^ b).bit_count() for a in query.print.looks for b in seen.print.looks]
            if query.print.data in both:
                expected.append((place, number, "bytes", None))
            elif both:
                expected.append((place, number, "pixels", None))
            elif distance is not None and far and min(far) <= distance:
                expected.append((place, number, "perceptual", min(far)))
    assert found == expected
    assert {"bytes", "pixels"} <= {evidence for _, _, evidence, _ in found}
    place = index.save(tmp_path)
    assert place == index.save(tmp_path)
    loaded = ContentIndex.load(place)
    assert loaded.matches(queries) == expected
    assert list(loaded.names) == [name for name, _ in known[:-1]]
    assert loaded.sides == index.sides == {(3, n) for n in range(4, 9)}
    assert index.problems == [("broken", "corrupt_image")]
    other = ContentIndex.of(known[1:], distance).save(tmp_path)
    assert other != place


def test_the_function_for_bytes_that_nobody_has_decoded(tmp_path: Path, coco_val: str) -> None:
    exclusion = look_at([coco_val], tmp_path, stage=Silent().stage).exclusion
    exclusion = pickle.loads(pickle.dumps(exclusion))
    assert isinstance(exclusion, Exclusion)
    for data in (ORIGINAL[11], with_comment(ORIGINAL[12])):
        with pytest.raises(ImageError, match=r"coco/1[12] of") as caught:
            exclusion.check(data, "http://x.example/1.jpg")
        assert caught.value.reason == "leak"
    exclusion.check(encoded(scene(50)), "good")
    with pytest.raises(ImageError) as caught:
        exclusion.check(b"<html>", "page")
    assert caught.value.reason == "not_an_image"


# Interrupted


def interrupted(*args: Any) -> Any:
    raise KeyboardInterrupt


def test_an_interrupted_build_looks_at_the_evaluation_images_once_and_notices_changes(
    tmp_path: Path, sbu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "eval"
    for number, data in ORIGINAL.items():
        write_image(folder / f"{number}.jpg", data)
    options: dict[str, Any] = {"exclude_images": (str(folder),), "exclude_distance": 4}
    build_all("sbu", sbu, tmp_path / "whole", **options)
    out = tmp_path / "m"
    with monkeypatch.context() as patched:
        patched.setattr(build_module, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_all("sbu", sbu, out, **options)
    with pytest.raises(UserError, match=r"other settings.*exclude_distance"):
        build_all("sbu", sbu, out, **options | {"exclude_distance": 5})
    before = (folder / "11.jpg").stat()
    write_image(folder / "11.jpg", encoded(scene(90)))
    with pytest.raises(UserError, match=r"other settings.*evaluation_images"):
        build_all("sbu", sbu, out, **options)
    write_image(folder / "11.jpg", ORIGINAL[11])
    os.utime(folder / "11.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
    with monkeypatch.context() as patched:
        patched.setattr(exclusion_module, "look_at", interrupted)
        build_all("sbu", sbu, out, **options)
    assert digests(out) == digests(tmp_path / "whole")


def test_a_change_behind_a_manifest_of_references_is_noticed(
    tmp_path: Path, sbu: Path, coco_val: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(build_module, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_all("sbu", sbu, tmp_path / "m", exclude_images=(coco_val,))
    write_image(tmp_path / "coco_raw/val2017/000000000011.jpg", encoded(scene(90), quality=50))
    with pytest.raises(UserError, match=r"other settings.*evaluation_images"):
        build_all("sbu", sbu, tmp_path / "m", exclude_images=(coco_val,))


def test_the_result_does_not_say_where_or_when_the_evaluation_images_were_copied(
    tmp_path: Path, sbu: Path
) -> None:
    folder = tmp_path / "eval"
    for number, data in ORIGINAL.items():
        write_image(folder / f"{number}.jpg", data)
    first, *_ = build_all("sbu", sbu, tmp_path / "a", exclude_images=(str(folder),))
    shutil.move(folder, tmp_path / "moved")
    for file in (tmp_path / "moved").iterdir():
        os.utime(file, (1, 1))
    again, *_ = build_all("sbu", sbu, tmp_path / "b", exclude_images=(str(tmp_path / "moved"),))
    assert first["evaluation_images"] == again["evaluation_images"]
    write_image(tmp_path / "moved/11.jpg", encoded(scene(90)))
    other, *_ = build_all("sbu", sbu, tmp_path / "c", exclude_images=(str(tmp_path / "moved"),))
    assert other["evaluation_images"]["digest"] != first["evaluation_images"]["digest"]


# Bad input, and the flags


def test_evaluation_images_that_cannot_be_read_are_told(tmp_path: Path, sbu: Path) -> None:
    folder = tmp_path / "eval"
    write_image(folder / "bad.jpg", b"junk")
    with pytest.raises(
        UserError, match=r"none of its 1 images can be read \(not_an_image, first b"
    ):
        build_all("sbu", sbu, tmp_path / "m", exclude_images=(str(folder),))
    assert not (tmp_path / "m").exists()
    write_image(folder / "good.jpg", ORIGINAL[11])
    write_image(folder / "plain.jpg", jpeg(40, 40))
    options: dict[str, Any] = {"exclude_images": (str(folder),), "exclude_distance": 4}
    summary, rows, _ = build_all("sbu", sbu, tmp_path / "m", **options)
    assert "1_a" not in names(rows)
    notes = " ".join(summary["notes"])
    assert "1 image(s)" in notes and "not_an_image, first bad.jpg" in notes
    assert "too plain to be known by their looks, first plain.jpg" in notes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--check", "find"], "--exclude-images needs --check decode, not find"),
        (["--check", "none"], "--exclude-images needs --check decode, not none"),
        (["--images", "url"], "with --images url there is no image to look at"),
    ],
)
def test_without_decoding_there_is_one_clear_error(
    tmp_path: Path, sbu: Path, flags: list[str], message: str
) -> None:
    (tmp_path / "eval").mkdir()
    command = ["build", "--source", "sbu", "--root", str(sbu), "--out", str(tmp_path / "m")]
    done = run(*command, "--exclude-images", str(tmp_path / "eval"), *flags)
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert message in line
    assert run(*command, "--exclude-images", "x", *flags, "--keep-leaks").exit_code == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing", "no such folder or manifest"),
        ("empty", "neither a manifest nor a folder with images"),
        ("list.txt", "give lists with --exclude"),
        ("none.parquet", "no such manifest"),
    ],
)
def test_what_is_no_set_of_images(tmp_path: Path, sbu: Path, given: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("77\n")
    with pytest.raises(UserError, match=message):
        build_all("sbu", sbu, tmp_path / "m", exclude_images=(str(tmp_path / given),))
    assert not (tmp_path / "m").exists()


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def test_on_the_command_line(tmp_path: Path, sbu: Path, coco_val: str) -> None:
    def kept(*flags: str) -> int:
        command = ["build", "--source", "sbu", "--root", str(sbu), "--out", str(tmp_path / "m")]
        done = run(*command, *flags)
        assert done.exit_code == 0, done.stderr
        return len(pq.read_table(tmp_path / "m/manifest-00000.parquet"))

    images = ("--exclude-images", coco_val)
    assert kept() == 7
    assert kept(*images) == 4
    assert kept(*images, "--exclude-perceptual") == 3
    assert kept(*images, "--keep-leaks") == 7
    done = run("build", "--source", "sbu", "--exclude-perceptual")
    assert "belongs to --exclude-images" in done.stderr
    done = run("build", "--source", "sbu", *images, "--exclude-distance", "3")
    assert "belongs to --exclude-perceptual" in done.stderr
