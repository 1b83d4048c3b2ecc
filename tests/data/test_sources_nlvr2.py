"""NLVR2: a statement belongs to two images, and images to several statements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.source_records import read_source
from tests.shared import shared_path
from xvlm_data.errors import UserError
from xvlm_data.records import QUESTION
from xvlm_data.sources.nlvr2 import PAIRS


def line(identifier: str, **more: Any) -> dict[str, Any]:
    return {"sentence": "Two dogs.", "label": "True", "identifier": identifier, **more}


def release(root: Path, lines: list[Any], split: str = "train") -> Path:
    (root / "data").mkdir(parents=True)
    texts = [text if isinstance(text, str) else json.dumps(text) for text in lines]
    (root / f"data/{split}.json").write_text("\n".join(texts) + "\n")
    return root


def test_real_lines(tmp_path: Path) -> None:
    root = shared_path("fixtures/nlvr2")
    truth = [json.loads(text) for text in (root / "data/dev.json").read_text().splitlines()]
    assert len(truth) == 44
    read = read_source("nlvr2", root, tmp_path / "r", "dev")
    assert read.extras(PAIRS) == [
        {
            "identifier": item["identifier"],
            "sentence": " ".join(item["sentence"].split()),
            "label": item["label"] == "True",
            "right": f"nlvr2/{item['identifier'].rsplit('-', 1)[0]}-img1",
        }
        for item in truth
    ]
    pairs = {item["identifier"].rsplit("-", 1)[0] for item in truth}
    names = [f"{pair}-img{side}" for pair in pairs for side in (0, 1)]
    assert sorted(r["id"] for r in read.images) == sorted(f"nlvr2/{name}" for name in names)
    keys = {r["key"]: r["id"] for r in read.images}
    assert len(keys) == len(names)
    for row in read.annotations:
        element = json.loads(row["extra"])
        assert keys[row["key"]] == element["right"].replace("img1", "img0")
    assert read_source("nlvr2", root, tmp_path / "r2", "val").inputs == ["dev.json"]


def test_left_and_right_stand_side_by_side_and_only_once(tmp_path: Path) -> None:
    lines = [line("train-5-0-0", directory=3), line("train-5-1-0"), line("train-5-0-1")]
    read = read_source("nlvr2", release(tmp_path / "raw", lines), tmp_path / "r")
    ordered = sorted(read.images, key=lambda row: row["index"])
    assert [r["id"] for r in ordered] == [
        "nlvr2/train-5-0-img0",
        "nlvr2/train-5-0-img1",
        "nlvr2/train-5-1-img0",
        "nlvr2/train-5-1-img1",
    ]
    assert len({r["index"] for r in ordered}) == 4
    assert ordered[1]["paths"] == [
        "images/train/3/train-5-0-img1.png",
        "images/train/train-5-0-img1.png",
    ]
    assert [e["identifier"] for e in read.extras(PAIRS)] == [v["identifier"] for v in lines]


@pytest.mark.parametrize("folder", ["images/dev", "dev"])
def test_image_folders(tmp_path: Path, folder: str) -> None:
    root = release(tmp_path / "raw", [line("dev-1-0-0")], "dev")
    (root / folder).mkdir(parents=True)
    read = read_source("nlvr2", root, tmp_path / "r", "dev")
    assert read.images[0]["paths"][0] == f"{folder}/dev-1-0-img0.png"


def test_every_wrong_line_is_one_row(tmp_path: Path) -> None:
    lines = [
        line("train-1-0-0", label=False),
        "{not json",
        line("train-1-0"),
        line("../../etc-1-0-0"),
        line("train-2-0-0", label="maybe"),
        line("train-3-0-0", sentence=None),
        "",
        line("train-1-0-0"),
        line("train-4-0-0", label=None),
        "[" * 5000,
    ]
    read = read_source("nlvr2", release(tmp_path / "raw", lines), tmp_path / "r")
    assert {r["place"]: r["problem"] for r in read.of_kind(QUESTION)} == {
        "line 1": None,
        "line 2": "malformed",
        "line 3": "malformed",
        "line 4": "malformed",
        "line 5": "malformed",
        "line 6": "malformed",
        "line 8": "duplicate_question",
        "line 9": None,
        "line 10": "malformed",
    }
    assert [e["label"] for e in read.extras(PAIRS)] == [False, None]
    assert len(read.images) == 4


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"looked for data/test1\.json"):
        read_source("nlvr2", tmp_path, tmp_path / "r", "test")
    with pytest.raises(UserError, match="no split 'testA'"):
        read_source("nlvr2", tmp_path, tmp_path / "r2", "testA")
