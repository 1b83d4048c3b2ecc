"""The commands of the README, from raw files to a trained model, as a user runs them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.data.raw_releases import build_all, caption, write_coco
from tests.shared import shared_path
from xvlm_data.schema import SCHEMA_VERSION, VERSION_KEY

SOURCES = ("coco", "vg", "sbu", "cc3m", "objects365")
LOSSES = ("contrastive", "matching", "mlm", "box_l1", "box_giou")
#: The tiny preset, made smaller still.
SMALL = [
    "--set=model.vision.name=resnet10t",
    "--set=model.vision.kwargs={output_stride: 16, channels: [8, 8, 16, 16], stem_width: 8}",
    "--set=model.vision.image_size=64",
    "--set=data.image_size=64",
    "--set=data.batch_size=4",
    "--set=data.max_images=4",
    "--set=data.max_texts=12",
    "--set=data.workers=0",
    "--set=train.log_every=1",
]


def run(*args: Any, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    module, *rest = (str(arg) for arg in args)
    return subprocess.run(
        [sys.executable, "-m", module, *rest], capture_output=True, text=True, cwd=cwd
    )


def succeed(*args: Any, cwd: Path | None = None) -> str:
    done = run(*args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fail(*args: Any) -> str:
    done = run(*args)
    assert done.returncode not in (0, 1), done
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def losses(run_folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in (run_folder / "metrics.jsonl").read_text().splitlines():
        for key, value in json.loads(line).items():
            found.setdefault(key, []).append(value)
    return found


def opens_everywhere(file: Path, cache: Path) -> None:
    """pandas, DuckDB and `datasets` read the manifest as it is, and the images show."""
    datasets = pytest.importorskip("datasets")
    frame = pd.read_parquet(file)
    assert len(frame) >= 10
    with duckdb.connect() as db:
        query = f"SELECT id, width, len(concepts), concepts[1].box FROM '{file}'"
        rows = db.execute(query).fetchall()
    assert [row[0] for row in rows] == frame["id"].tolist()
    assert [row[2] for row in rows] == [len(concepts) for concepts in frame["concepts"]]
    loaded = datasets.load_dataset(
        "parquet", data_files=str(file), split="train", cache_dir=str(cache)
    )
    for row, (_, width, concepts, _) in zip(loaded, rows, strict=True):
        assert row["image"].size == (row["width"], row["height"])
        assert row["image"].convert("L").getextrema()[1] > 0
        assert (row["width"], len(row["concepts"])) == (width, concepts)


def test_from_sample_to_pictures_with_the_default_folders(tmp_path: Path) -> None:
    succeed("xvlm_data", "sample", "--images", 12, "--seed", 3, cwd=tmp_path)
    for source in SOURCES:
        succeed("xvlm_data", "build", "--source", source, cwd=tmp_path)
        folder = tmp_path / "manifests" / source
        report = json.loads(succeed("xvlm_data", "inspect", folder, "--json", cwd=tmp_path))
        assert report
        succeed("xvlm_data", "inspect", folder, "--validate", "--decode", cwd=tmp_path)
        opens_everywhere(folder / "manifest-00000.parquet", tmp_path / "cache")
    succeed(
        "xvlm_data",
        "build",
        "--source",
        "vg",
        "--root",
        "raw/vg_val",
        "--split",
        "val",
        "--out",
        "manifests/vg_val",
        cwd=tmp_path,
    )
    manifests = [arg for name in SOURCES for arg in ("--manifest", f"manifests/{name}")]
    succeed(
        "xvlm_train",
        "pretrain",
        *manifests,
        "--val-manifest",
        "manifests/vg_val",
        "--preset",
        "tiny",
        "--out",
        "run",
        "--steps",
        3,
        *SMALL,
        cwd=tmp_path,
    )
    found = losses(tmp_path / "run")
    for name in LOSSES:
        assert all(math.isfinite(value) for value in found[f"multi_grained/{name}"])
    for name in LOSSES[:3]:
        assert len(found[f"image_text/{name}"]) == 3
    result = json.loads(
        succeed(
            "xvlm_train",
            "evaluate",
            "run",
            "--manifest",
            "manifests/vg_val",
            "--json",
            "--pictures",
            2,
            "pictures",
            cwd=tmp_path,
        )
    )
    assert 0 <= result["grounding_accuracy"] <= 1
    assert result["grounding_chance_constant"] > 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    succeed("xvlm_train", "curves", "run", "losses.png", cwd=tmp_path)
    assert (tmp_path / "losses.png").stat().st_size > 1000


def test_twenty_steps_on_the_real_coco_and_vg_excerpts(tmp_path: Path) -> None:
    manifests = []
    for source in ("coco", "vg"):
        out = tmp_path / source
        root = shared_path(f"fixtures/{source}")
        succeed("xvlm_data", "build", "--source", source, "--root", root, "--out", out)
        manifests += ["--manifest", out]
    succeed(
        "xvlm_train",
        "pretrain",
        *manifests,
        "--preset",
        "tiny",
        "--out",
        tmp_path / "run",
        "--steps",
        20,
        *SMALL,
        "--set=train.iter_perc=1.0",
    )
    found = losses(tmp_path / "run")
    for name in LOSSES:
        values = found[f"multi_grained/{name}"]
        assert len(values) == 20
        assert all(math.isfinite(value) for value in values)


@pytest.fixture
def captions_only(tmp_path: Path) -> Path:
    root = write_coco(tmp_path / "raw", captions=[caption(1, 1, "a picture")])
    build_all("coco", root, tmp_path / "captions")
    return tmp_path / "captions"


def test_training_on_bad_manifests_is_one_clear_line(tmp_path: Path, captions_only: Path) -> None:
    pretrain = ["xvlm_train", "pretrain", "--preset", "tiny", "--out", tmp_path / "run", *SMALL]
    assert "no such manifest" in fail(*pretrain, "--manifest", tmp_path / "nothing")
    line = fail(*pretrain, "--image-text", captions_only, "--multi-grained", captions_only)
    assert "coco" in line
    assert "box" in line or "region" in line
    build_all("coco", write_coco(tmp_path / "none", images=[]), tmp_path / "empty")
    assert "empty" in fail(*pretrain, "--manifest", tmp_path / "empty")
    shard = captions_only / "manifest-00000.parquet"
    table = pq.read_table(shard)
    footer = {**table.schema.metadata, VERSION_KEY: str(SCHEMA_VERSION + 1).encode()}
    newer, cut = tmp_path / "newer.parquet", tmp_path / "cut.parquet"
    pq.write_table(table.replace_schema_metadata(footer), newer)
    cut.write_bytes(shard.read_bytes()[:-30])
    for manifest, words in ((newer, "upgrade"), (cut, "not a readable Parquet")):
        assert words in fail(*pretrain, "--manifest", manifest)
        assert words in fail("xvlm_data", "inspect", manifest)
    assert "learning" in fail(*pretrain, "--manifest", captions_only, "--set", "learning=1")


def test_inspect_tells_of_images_that_went_away(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "raw", captions=[caption(1, 1, "a picture")])
    build_all("coco", root, tmp_path / "m")
    succeed("xvlm_data", "inspect", tmp_path / "m", "--validate")
    image = root / "train2017/000000000001.jpg"
    image.write_bytes(image.read_bytes()[:300])
    done = run("xvlm_data", "inspect", tmp_path / "m", "--validate", "--decode")
    assert done.returncode == 1
    image.unlink()
    done = run("xvlm_data", "inspect", tmp_path / "m", "--validate")
    assert done.returncode == 1
    assert "coco/1" in done.stdout + done.stderr


def test_the_checkouts_own_command_line() -> None:
    cli = Path(__file__).parents[1] / "cli.py"
    for package in ("data", "train"):
        done = subprocess.run(
            [sys.executable, cli, package, "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"cli.py {package}" in done.stdout
    assert subprocess.run([sys.executable, cli, "nope"], capture_output=True).returncode == 2


def test_xvlm_train_imports_without_the_data_extra() -> None:
    code = (
        "import sys; sys.modules['datasets'] = None; sys.modules['pycocotools'] = None;"
        "import xvlm_train.commands, xvlm_train.run, xvlm_train.verify, xvlm_train.evaluate"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
