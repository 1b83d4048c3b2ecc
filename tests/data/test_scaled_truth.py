"""Builds of scaled releases come to the counts that their generator kept while writing them.

The generator and the builder share no code for what a record's outcome is.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.data.raw_releases import Silent, build_all
from xvlm_data.sample.annotations.plan import Request
from xvlm_data.sample.annotations.write import TRUTH, write_annotations

#: Scale, by source: what a second builds.
SCALES = {
    "coco": 0.003,
    "vg": 0.003,
    "objects365": 0.001,
    "sbu": 0.003,
    "cc3m": 0.002,
    "cc12m": 0.001,
    "openimages": 0.001,
}
#: (seed, share of invalid records): twice as released, and once mostly hostile.
REQUESTS = [(0, 0.002), (11, 0.002), (5, 0.2)]


def release(root: Path, source: str, seed: int, invalid: float) -> dict[str, Any]:
    request = Request(SCALES[source], seed, invalid)
    beside = ["coco"] if source == "vg" else []
    truths = write_annotations(root, request, [*beside, source], stage=Silent().reading)
    assert truths[source] == json.loads((root / source / TRUTH).read_text())
    return truths[source]


def hold(out: Path, built: tuple[Any, ...], truth: dict[str, Any]) -> None:
    """A build against the truth, and against itself: every record is in one place."""
    summary, rows, rejects = built
    assert {name: summary["counts"][name] for name in truth["counts"]} == truth["counts"]
    assert summary["clipped_boxes"] == truth["clipped_boxes"]
    boxes = summary["counts"]["objects"]["raw"] + summary["counts"]["regions"]["raw"]
    assert boxes == truth["boxes"]
    listed = Counter((reject["kind"], reject["reason"]) for reject in rejects)
    stored = Counter(c["granularity"] for row in rows for c in row["concepts"])
    names = {"captions": "image", "regions": "region", "objects": "object"}
    for kind, counted in summary["counts"].items():
        left_out = counted["filtered"] | counted["rejected"]
        assert counted["kept"] + sum(left_out.values()) == counted["raw"]
        for reason, count in left_out.items():
            assert listed.pop((kind[:-1], reason)) == count
        assert counted["kept"] == (len(rows) if kind == "images" else stored[names[kind]])
    assert summary["unattached_attributes"] == listed.pop(("attributes", "unknown_object"), 0)
    assert not listed
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == set()


@pytest.mark.parametrize(("seed", "invalid"), REQUESTS)
@pytest.mark.parametrize("source", SCALES)
def test_counts_are_the_generators(tmp_path: Path, source: str, seed: int, invalid: float) -> None:
    truth = release(tmp_path, source, seed, invalid)
    if invalid > 0.1:
        broken = truth["splits"]["train"]["counts"]
        assert sum(sum(kind["rejected"].values()) for kind in broken.values()) > 100
    options = {"images": "url"} if source in ("sbu", "cc3m", "cc12m") else {"check": "none"}
    built = build_all(source, tmp_path / source, tmp_path / "m", **options)
    hold(tmp_path / "m", built, truth["splits"]["train"])


@pytest.mark.parametrize("split", ["restval", "val", "test"])
def test_coco_by_the_other_parts_of_karpathy(tmp_path: Path, split: str) -> None:
    truth = release(tmp_path, "coco", 2, 0.05)
    built = build_all("coco", tmp_path / "coco", tmp_path / "m", split=split, check="none")
    hold(tmp_path / "m", built, truth["splits"][split])


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_without_karpathy(tmp_path: Path, split: str) -> None:
    truth = release(tmp_path, "coco", 2, 0.05)
    (tmp_path / "coco/dataset_coco.json").unlink()
    built = build_all("coco", tmp_path / "coco", tmp_path / "m", split=split, check="none")
    hold(tmp_path / "m", built, truth["without_karpathy"][split])


def test_vg_with_its_leaks(tmp_path: Path) -> None:
    truth = release(tmp_path, "vg", 4, 0.05)
    assert truth["splits"]["train"]["counts"]["images"]["filtered"]["leak"] > 0
    built = build_all("vg", tmp_path / "vg", tmp_path / "m", check="none", keep_leaks=True)
    hold(tmp_path / "m", built, truth["keep_leaks"]["train"])


@pytest.mark.parametrize(("seed", "invalid"), [(0, 0.002), (5, 0.2)])
def test_vg_attributes_of_no_object(tmp_path: Path, seed: int, invalid: float) -> None:
    truth = release(tmp_path, "vg", seed, invalid)["splits"]["train"]
    summary, _, _ = build_all("vg", tmp_path / "vg", tmp_path / "m", check="none")
    assert summary["unattached_attributes"] == truth["unattached_attributes"] > 0


@pytest.mark.parametrize("source", ["cc3m", "objects365"])
def test_other_splits(tmp_path: Path, source: str) -> None:
    truth = release(tmp_path, source, 6, 0.05)
    splits = set(truth["splits"]) - {"train"}
    assert splits
    options = {"images": "url"} if source == "cc3m" else {"check": "none"}
    for split in splits:
        out = tmp_path / split
        built = build_all(source, tmp_path / source, out, split=split, **options)
        hold(out, built, truth["splits"][split])
