"""Builds that are killed at any moment and started again end with the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.raw_releases import Silent
from tests.data.test_build import mixed_coco
from xvlm_data.sample.annotations.plan import Request
from xvlm_data.sample.annotations.write import write_annotations

ROOT = Path(__file__).resolve().parents[2]


def drive(tmp_path: Path, **what: Any) -> dict[str, Any]:
    (tmp_path / "work").mkdir()
    what["folder"] = str(tmp_path / "work")
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.crash_driver", json.dumps(what)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    # Standard error is not looked at: a fork server whose parent is killed while it asks for a
    # worker prints a traceback of its own, and a build that fails is among the wrong ones.
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def job(source: str, root: Path, ranges: int, workers: int = 1, **options: Any) -> dict[str, Any]:
    return {
        "source": source,
        "root": str(root),
        "range": ranges,
        "workers": workers,
        "options": options,
    }


def scaled(tmp_path: Path, source: str, scale: float) -> Path:
    write_annotations(tmp_path, Request(scale, 1, 0.02), [source], stage=Silent().reading)
    return tmp_path / source


@pytest.mark.parametrize("source", ["coco", "cc3m"])
def test_a_build_that_dies_at_any_step_goes_on_to_the_same_bytes(
    tmp_path: Path, source: str
) -> None:
    if source == "coco":
        build = job("coco", mixed_coco(tmp_path / "raw", 8), 2_500, shard_rows=4)
    else:  # images and captions in one file: they are cut by shard when all images are known
        root = scaled(tmp_path, "cc3m", 0.00002)
        build = job("cc3m", root, 6_000, shard_rows=40, images="url")
    found = drive(tmp_path, mode="steps", job=build, last=1_000)
    assert found["steps"] > 40
    assert found["wrong"] == []


def test_a_rebuild_that_dies_leaves_one_whole_manifest_or_none(tmp_path: Path) -> None:
    root = mixed_coco(tmp_path / "raw", 12)
    found = drive(
        tmp_path,
        mode="steps",
        job=job("coco", root, 1 << 20, shard_rows=5),
        former=job("coco", root, 1 << 20, shard_rows=3, keep_leaks=True),
        last=40,
    )
    assert found["steps"] >= 40
    assert found["wrong"] == []


def test_fifty_kills_at_random_moments(tmp_path: Path) -> None:
    root = scaled(tmp_path, "coco", 0.003)
    build = job("coco", root, 50_000, workers=2, shard_rows=20, check="none")
    found = drive(tmp_path, mode="kills", job=build, kills=50, seed=7)
    assert found["killed"] == 50
    # Neither other bytes, nor a task that a run had done and the next did not find done.
    assert found["wrong"] == []
    assert found["most"] > 3
