"""A source of another package: found by its entry point, built, inspected and trained on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xvlm_data import sources
from xvlm_data.errors import UserError
from xvlm_data.manifest import open_manifest

from .raw_releases import jpeg, write_image

PACKAGE = Path(__file__).parents[1] / "plugin/xvlm-birds"
GUIDE = Path(__file__).parents[2] / "docs/guides/new-source.md"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of processes in which the package is installed, as `pip install -e` does."""
    folder = tmp_path / "site"
    shutil.copytree(PACKAGE, folder)
    setup = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "egg_info"]
    subprocess.run(setup, cwd=folder, check=True, capture_output=True)
    assert (folder / "xvlm_birds.egg-info/entry_points.txt").is_file()
    path = [str(folder), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1"}


def write_birds(root: Path) -> Path:
    lines: list[Any] = []
    for number in range(12):
        file = f"bird{number}.jpg"
        box = [10, 20, 50, 40, "robin", ["red"]] if number % 2 else [0, 0, 100, 80, "wren", []]
        lines.append({"file": file, "caption": f"Bird number {number}.", "boxes": [box]})
        write_image(root / "images" / file, jpeg(100, 80, "red" if number % 2 else "brown"))
    lines += [{"file": "gone.jpg", "caption": "Flown away."}, {"caption": "no file"}]
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def run(environment: dict[str, str], *args: Any, status: int = 0) -> str:
    module, *rest = map(str, args)
    done = subprocess.run(
        [sys.executable, "-m", module, *rest], capture_output=True, text=True, env=environment
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_found_built_inspected_and_trained_on(installed: dict[str, str], tmp_path: Path) -> None:
    listed = json.loads(run(installed, "xvlm_data", "sources", "--json"))
    birds = next(about for about in listed if about["name"] == "birds")
    assert birds["package"] == "xvlm-birds"
    assert birds["licence"] == "CC BY 4.0"

    root, out = write_birds(tmp_path / "raw"), tmp_path / "m"
    build = ["xvlm_data", "build", "--source", "birds", "--root", root, "--out", out]
    summary = json.loads(run(installed, *build, "--json", "--workers", 2))
    assert summary["counts"]["images"]["rejected"] == {"malformed": 1, "missing_image": 1}
    assert summary["concepts"] == {"image": 12, "region": 0, "object": 12}
    assert summary["citation"].startswith("@misc{birds")
    row = open_manifest(out)[1]
    assert row["id"] == "birds/bird1"
    assert row["concepts"][1]["attributes"] == ["red"]
    np.testing.assert_allclose(row["concepts"][1]["box"], [0.35, 0.5, 0.5, 0.5])

    assert "keep the schema's promises" in run(
        installed, "xvlm_data", "inspect", out, "--validate", "--decode"
    )
    small = [
        "--set=model.vision.name=resnet10t",
        "--set=model.vision.kwargs={output_stride: 16, channels: [8, 8, 16, 16], stem_width: 8}",
        *(f"--set={name}=64" for name in ("model.vision.image_size", "data.image_size")),
        *(f"--set=data.{name}" for name in ("batch_size=4", "max_images=4", "max_texts=8")),
        "--set=data.workers=0",
        "--set=train.log_every=1",
    ]
    pretrain = ["xvlm_train", "pretrain", "--manifest", out, "--preset", "tiny", "--steps", 2]
    run(installed, *pretrain, "--out", tmp_path / "run", *small)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    losses = [value for line in lines for key, value in json.loads(line).items() if "/box" in key]
    assert losses
    assert np.isfinite(losses).all()


def test_a_source_that_nobody_has_is_told_with_those_there_are(installed: dict[str, str]) -> None:
    build = ["xvlm_data", "build", "--source", "beasts"]
    assert "unknown source 'beasts'; choose from coco, vg" in (
        found := run(installed, *build, status=2)
    )
    assert "birds" in found


class _Broken(sources.Source):
    name = "other"
    licence = "none"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("nowhere_to_be_found:SOURCE", r"cannot be loaded \(ModuleNotFoundError"),
        ("json:loads", "json:loads is no Source"),
        ("tests.data.test_plugin:_Broken", "calls itself 'other'"),
        ("xvlm_data.sources.base:Source", "has no name"),
    ],
)
def test_a_package_that_cannot_be_used_is_one_clear_line(
    value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = sources.EntryPoint("mine", value, sources.PLUGINS)
    ours = sources.EntryPoint("coco", value, sources.PLUGINS)
    monkeypatch.setattr(sources, "entry_points", lambda group: [point, ours])
    with pytest.raises(UserError, match=rf"source 'mine' of the package .*: {problem}"):
        sources.get_source("mine")
    assert sources.get_source("coco").name == "coco"  # nobody takes its place


def test_the_guide_shows_the_package_as_it_is() -> None:
    guide = GUIDE.read_text()
    for name in ("xvlm_birds.py", "pyproject.toml"):
        assert (PACKAGE / name).read_text() in guide
    assert len((PACKAGE / "xvlm_birds.py").read_text().splitlines()) <= 50
