"""Manifests without a single image: written, but no success."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from tests.data.downloads import write_list
from tests.data.hostile_server import HostileServer
from tests.data.inspect_manifests import row, write_folder
from tests.data.raw_releases import coco_image, write_coco, write_json
from xvlm_data.commands import main
from xvlm_data.download.rows import fingerprint
from xvlm_data.manifest import open_manifest


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(done: Result, *told: str) -> str:
    """One line on standard error, and status 2."""
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    for words in ("the manifest is empty", *told):
        assert words in done.stderr, done.stderr
    return done.stderr


@pytest.fixture
def addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CC3M as it is downloaded: a list, and no images."""
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "raw/cc3m"
    raw.mkdir(parents=True)
    lines = [f"dog {n}\thttp://192.0.2.1/{n}.jpg\n" for n in range(3)]
    (raw / "Train_GCC-training.tsv").write_text("".join(lines))
    return raw


def test_a_list_whose_images_nobody_has_downloaded(addresses: Path) -> None:
    done = run("build", "--source", "cc3m", "--workers", 1)
    error = refused(
        done,
        "manifests/cc3m: ",
        "all 3 images of the release were left out as missing_image",
        ".jpg: no such file), looked for in raw/cc3m",
        "manifests/cc3m/rejects.parquet",
    )
    assert "0 images" in done.stdout  # the table is there as ever
    rejects = pq.read_table("manifests/cc3m/rejects.parquet").to_pylist()
    first = next(r for r in rejects if r["kind"] == "image")
    assert f"{first['record_id']}: {first['message']}" in error
    # What it says to do is done: the second command fails for want of a network, and says so.
    build, download = (shlex.split(words) for words in error.split("`")[1::2])
    assert (build[0], download[0]) == ("xvlm-data", "xvlm-data")
    assert run(*build[1:], "--workers", 1).exit_code == 0
    assert len(open_manifest("manifests/cc3m_urls")) == 3
    done = run(*download[1:], "--retries", 0, "--connect-timeout", 1, "--timeout", 1)
    refused(done, "all 3 images of the list were left out as", "rejects.parquet")


def test_json_stays_json(addresses: Path) -> None:
    done = run("build", "--source", "cc3m", "--workers", 1, "--json")
    refused(done, "missing_image")
    assert json.loads(done.stdout)["rows"] == 0
    assert json.loads(done.stdout) == json.loads(Path("manifests/cc3m/manifest.json").read_text())


def test_a_release_without_its_images(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "raw", images=[coco_image(1), coco_image(2)])
    out = tmp_path / "m"
    build = ("build", "--source", "coco", "--root", root, "--out", out, "--workers", 1)
    refused(run(*build, "--max-pixels", 9), "as too_many_pixels", "see --max-pixels")
    for number in (1, 2):
        (root / f"train2017/00000000000{number}.jpg").unlink()
    told = "000000000001.jpg: no such file"
    refused(run(*build), "all 2 images", told, f"unpack the images of the release in {root}")
    assert len(open_manifest(out)) == 0  # it is there, to look at


def test_the_most_frequent_reason_is_told(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "raw", images=[coco_image(n) for n in (1, 2, 3)])
    (root / "train2017/000000000001.jpg").unlink()
    for number in (2, 3):
        (root / f"train2017/00000000000{number}.jpg").write_bytes(b"")
    done = run("build", "--source", "coco", "--root", root, "--out", tmp_path / "m")
    refused(done, "all 3 images", "left out, 2 of them as empty_image (first: coco/2: ")


def test_a_rule_that_leaves_everything_out(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "raw", images=[coco_image(1)])
    held_out = tmp_path / "captions_val2014.json"
    write_json(held_out, {"images": [coco_image(1)], "annotations": []})
    build = ("build", "--source", "coco", "--root", root, "--out", tmp_path / "m")
    refused(run(*build, "--exclude", held_out), "as leak", "if that is not meant, see --keep-leaks")


def test_a_download_of_which_nothing_arrives(tmp_path: Path) -> None:
    with HostileServer() as server:
        path = write_list(tmp_path / "l.parquet", [server.url(f"/404/{n}") for n in (1, 2)]).path
        arguments = ("download", path, "--url-column", "url", "--out", tmp_path / "out")
        done = run(*arguments, "--json")  # without --allow-private
        refused(done, "all 2 images of the list were left out as private_address")
        assert json.loads(done.stdout)["rows"] == 0
        refused(run(*arguments), "private_address")  # the same again, though there is nothing to do


def test_an_import_of_which_nothing_is_left(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"caption": "a dog", "image": "none.jpg"}\n' * 2)
    arguments = ("import", lines, "--from", "xvlm-jsonl", "--image-root", tmp_path)
    done = run(*arguments, "--out", tmp_path / "m", "--workers", 1)
    refused(done, "all 2 images of the files were left out as missing_image", "--image-root")


def test_files_of_one_name_of_two_manifests_are_two_inputs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folder(tmp_path / name, [row(0, id=f"{name}/0")])
    found = fingerprint(f"{tmp_path}/*")
    assert sorted(found) == ["a/manifest-00000.parquet", "b/manifest-00000.parquet"]
    assert len(set(found.values())) == 2
    assert list(fingerprint(str(tmp_path / "a"))) == ["manifest-00000.parquet"]
