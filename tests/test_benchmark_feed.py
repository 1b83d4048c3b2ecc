"""``benchmarks/feed.py``: every method delivers, and the ratios are those of its own figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

FEED = Path(__file__).resolve().parent.parent / "benchmarks" / "feed.py"


def test_the_feed_is_measured_beside_the_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for n in range(3):
        pixels = rng.integers(0, 256, (60 + n, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{n}.jpg")
    done = subprocess.run(
        [
            *(sys.executable, FEED, "--photos", tmp_path / "photos", "--images", "130"),
            *("--rounds", "2", "--shortest-side", "40", "--json", tmp_path / "figures.json"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr  # 1: a goal was missed, as noise may be
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["versions"]["simplejpeg"]
    assert [(c["layout"], c["stream"]) for c in figures["contests"]] == [
        (layout, stream)
        for layout in ("references", "embedded", "embedded 40")
        for stream in ("image-text", "multi-grained")
    ]
    for contest in figures["contests"]:
        times = contest["milliseconds"]
        assert list(times) == ["bare", "feed", "exact", "published", "hf"]
        assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in times.values())
        ratio = median(b / a for a, b in zip(times["feed"], times["published"], strict=True))
        assert contest["over_published"] == pytest.approx(ratio)
        assert contest["of_bare"] < 1.5
        assert f"{contest['layout']} " in done.stdout


def test_a_folder_without_photographs_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, FEED, "--photos", tmp_path], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "no .jpg in it" in done.stderr
    assert "Traceback" not in done.stderr
