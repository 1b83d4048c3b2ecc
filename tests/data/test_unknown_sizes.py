"""Rows whose images nobody has looked at: no size, or no more than a web address."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.data.inspect_manifests import row as made
from tests.data.inspect_manifests import write
from tests.data.leaky_releases import encoded, sbu_with_pictures, scene
from tests.data.raw_releases import build_all, write_image
from tests.data.test_sources_openimages import release as openimages_release
from tests.data.test_sources_openimages import row as box
from tests.data.test_sources_refcoco import ref
from tests.data.test_sources_refcoco import release as refcoco_release
from xvlm_data.commands import main
from xvlm_data.errors import ManifestError
from xvlm_data.images.decode import ImageError, load_row_image
from xvlm_data.inspect.draw import draw_rows
from xvlm_data.inspect.statistics import collect
from xvlm_data.inspect.validate import validate
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.schema import VERSION_KEY


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def turned() -> bytes:
    """Stored 160 x 120, to be seen 120 x 160."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(scene(1), exif=exif.tobytes())


@pytest.fixture
def sbu(tmp_path: Path) -> Path:
    return sbu_with_pictures(tmp_path / "sbu", {"1_a.jpg": turned(), "2_a.jpg": encoded(scene(2))})


def pictures(rows: list[dict[str, Any]]) -> list[np.ndarray]:
    return [np.asarray(load_row_image(row["image"], row["width"], row["height"])) for row in rows]


def test_the_decoded_size_is_used(tmp_path: Path, sbu: Path) -> None:
    summary, unseen, _ = build_all("sbu", sbu, tmp_path / "unseen", check="none")
    assert summary["schema_version"] == 2
    assert [(r["width"], r["height"]) for r in unseen] == [(0, 0), (0, 0)]
    _, seen, _ = build_all("sbu", sbu, tmp_path / "seen")
    assert [(r["width"], r["height"]) for r in seen] == [(120, 160), (160, 120)]
    for one, other in zip(pictures(unseen), pictures(seen), strict=True):
        assert (one == other).all()


def test_boxes_of_stored_pixels_stay_on_them_where_the_size_is_known(tmp_path: Path) -> None:
    root = openimages_release(tmp_path / "raw", [box()])
    write_image(root / "train/00000000000000ff.jpg", turned())
    _, rows, _ = build_all("openimages", root, tmp_path / "m")
    assert [picture.shape[:2] for picture in pictures(rows)] == [(120, 160)]


def test_inspecting_and_drawing(tmp_path: Path, sbu: Path) -> None:
    build_all("sbu", sbu, tmp_path / "m", check="none")
    result = run("inspect", tmp_path / "m", "--validate", "--decode", "--draw", 2, tmp_path / "png")
    assert result.exit_code == 0, result.output
    squeezed = " ".join(result.stdout.split())
    assert "of unknown size 2" in squeezed
    assert "sbu/1_a size unknown" in squeezed
    assert "0 x 0" not in squeezed
    drawn = [Image.open(path).size for path in sorted((tmp_path / "png").iterdir())]
    assert [width < height for width, height in drawn] == [True, False]
    found = json.loads(run("inspect", tmp_path / "m", "--json").stdout)
    assert found["statistics"]["images"] == {
        "embedded": 0,
        "referenced": 2,
        "sizes_unknown": 2,
    }


def test_shapes_of_boxes_are_told_where_they_are_known(tmp_path: Path) -> None:
    root = openimages_release(tmp_path / "raw", [box(), box(image="00000000000000aa")])
    for name in ("ff", "aa"):
        write_image(root / f"train/00000000000000{name}.jpg", encoded(scene(1)))
    for check, counted in (("none", 0), ("decode", 2)):
        build_all("openimages", root, tmp_path / check, check=check)
        statistics = collect(open_manifest(tmp_path / check))
        assert statistics.box_area["object"].count == 2
        assert statistics.box_aspect["object"].count == counted
        assert statistics.box_aspect["object"].unusable == 0


def versioned(path: Path, version: int, *rows: dict[str, Any]) -> Manifest:
    table = pq.read_table(write(path, list(rows)))
    metadata = (table.schema.metadata or {}) | {VERSION_KEY: str(version).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return open_manifest(path)


@pytest.mark.parametrize(
    ("width", "height", "broken"),
    [(0, 0, {1}), (0, 5, {1, 2}), (5, 0, {1, 2}), (-1, -1, {1, 2}), (None, None, {1, 2})],
)
def test_both_sides_may_be_0_where_the_version_says_so(
    tmp_path: Path, width: int | None, height: int | None, broken: set[int]
) -> None:
    for version in (1, 2):
        rows = [made(0), made(1, width=width, height=height)]
        findings = validate(versioned(tmp_path / "m.parquet", version, *rows))
        assert findings.counts == ({"size": 1} if version in broken else {})


# Addresses


@pytest.fixture
def addresses(tmp_path: Path, sbu: Path) -> Path:
    build_all("sbu", sbu, tmp_path / "urls", images="url")
    return tmp_path / "urls"


def test_web_addresses_are_no_images_and_nobody_asks_for_them(
    tmp_path: Path, addresses: Path
) -> None:
    manifest = open_manifest(addresses)
    assert validate(manifest).ok
    assert validate(manifest, decode=True).counts == {"image_decode": 2}
    (row, _) = manifest.read_row_group(0, 0).to_pylist()
    with pytest.raises(ImageError, match=r"1_a\.jpg: a web address.*xvlm-data download") as caught:
        load_row_image(row["image"], row["width"], row["height"])
    assert caught.value.reason == "not_downloaded"
    result = run("inspect", addresses, "--draw", 1, tmp_path / "png")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "xvlm-data download" in result.stderr and "--image-root" not in result.stderr
    write_image(tmp_path / "eval/1.jpg", encoded(scene(1)))
    result = run("leaks", addresses, "--against", tmp_path / "eval", "--strict")
    assert result.exit_code == 1
    assert "not_downloaded" in result.stdout


@pytest.mark.parametrize("data", [None, encoded(scene(1))])
def test_downloaded_images_keep_their_addresses(tmp_path: Path, data: bytes | None) -> None:
    image = {"bytes": data, "path": "HTTPS://x.example/1.jpg"}
    manifest = open_manifest(
        write(tmp_path / "m.parquet", [made(1, image=image, width=160, height=120)])
    )
    if data is None:
        with pytest.raises(ManifestError, match=r"made: its images are web.*xvlm-data download"):
            manifest.require_images()
    else:
        manifest.require_images()
        assert draw_rows(manifest, 1, tmp_path / "png")[0].is_file()


# Columns beyond those of every manifest


def test_further_columns_are_shown(tmp_path: Path) -> None:
    root = refcoco_release(tmp_path / "refcoco", [ref(2), ref(4)])
    for number in (2, 4):
        write_image(root / f"train2014/COCO_train2014_{number:012d}.jpg")
    out = tmp_path / "m"
    command = ("build", "--source", "refcoco", "--root", root, "--out", out, "--split", "val")
    built = run(*command)
    assert built.exit_code == 0, built.output
    header = next(line for line in built.stdout.splitlines() if "images" in line)
    assert "questions" in header
    result = run("inspect", out)
    assert result.exit_code == 0, result.output
    squeezed = " ".join(result.stdout.split())
    assert "refs 2 2 list of (ref_id, ann_id, category" in squeezed
    found = json.loads(run("inspect", out, "--json").stdout)["statistics"]["further_columns"]
    assert (found["refs"]["rows"], found["refs"]["elements"]) == (2, 2)
    assert (
        json.loads(run("inspect", write(tmp_path / "x.parquet", [made()]), "--json").stdout)[
            "statistics"
        ]["further_columns"]
        == {}
    )


def test_further_columns_of_other_writers(tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", [made(n) for n in range(5)])
    table = pq.read_table(path)
    table = table.append_column("score", [[1.0, None, 2.0, None, None]])
    table = table.append_column("tags", [[["a", "b"], [], None, ["c"], None]])
    pq.write_table(table, path, row_group_size=2)
    further = collect(open_manifest(path)).further
    assert {name: (c.kind, c.rows, c.elements) for name, c in further.items()} == {
        "score": ("double", 2, 2),
        "tags": ("list of string", 2, 3),
    }
