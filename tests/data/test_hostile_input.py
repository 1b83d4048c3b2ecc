"""Whatever a raw file holds, a build ends with a manifest whose sums add up, or with one line."""

from __future__ import annotations

import copy
import json
import os
import random
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.data.raw_releases import (
    box,
    build_all,
    caption,
    coco_image,
    region,
    write_coco,
    write_image,
    write_json,
    write_vg,
)
from xvlm_data.commands import main
from xvlm_data.errors import UserError

JUNK: list[Any] = [
    *[None, True, -1, 0, 1.5, "1", "", [], {}, [1], {"a": 1}],
    *[1e308, -1e308, 10**30, 2**31, 2**63, float("nan"), float("inf"), -904],
    *["x" * 300, "a/../../b", "/etc/passwd", "\0", "\ud800", "\u00e9\u2028"],
]
THING = {"x": 10, "y": 10, "w": 50, "h": 40}


def mutate(value: Any, rng: random.Random) -> Any:
    """``value`` with one place somewhere in it broken."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            del value[key]
        else:
            value[key] = mutate(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.9:
        index = rng.randrange(len(value))
        value[index] = mutate(value[index], rng)
        if rng.random() < 0.05:
            value.append(copy.deepcopy(value[index]))
        return value
    return copy.deepcopy(rng.choice(JUNK))


def coco(root: Path) -> None:
    write_coco(
        root,
        images=[coco_image(i) for i in (1, 2, 3)],
        boxes=[box(i, i % 3 + 1, [5, 5, 30 + i, 30]) for i in range(6)],
        captions=[caption(i, i % 3 + 1, f"caption {i}") for i in range(6)],
    )


def vg(root: Path) -> None:
    write_vg(
        root,
        {1: [region(1, "a b"), region(2, "c d e")], 2: [region(3, "q")]},
        {
            1: [{"object_id": 5, "names": ["k"], "merged_object_ids": [6], **THING}],
            2: [{"object_id": 9, "names": ["z"], **THING}],
        },
        {1: [{"object_id": 6, "names": ["k"], "attributes": ["r", "s"], **THING}]},
    )


def sbu(root: Path) -> None:
    urls = [f"http://static.flickr.com/1/{i}_a.jpg" for i in range(4)]
    columns = {"image_urls": urls, "user_ids": [], "captions": ["a", "b", "c", "d"]}
    write_json(root / "sbu-captions-all.json", columns)
    for i in range(3):
        write_image(root / f"images/{i}_a.jpg")


def objects365(root: Path) -> None:
    name = "images/v1/patch8/objects365_v1_00000001.jpg"
    document = {
        "images": [coco_image(1) | {"file_name": name}],
        "annotations": [box(1, 1, [0, 0, 50, 50])],
        "categories": [{"id": 1, "name": "A/B "}],
    }
    write_json(root / "zhiyuan_objv2_train.json", document)
    write_image(root / "train/patch8/objects365_v1_00000001.jpg")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("write", [coco, vg, sbu, objects365], ids=lambda f: f.__name__)
@pytest.mark.parametrize("seeds", [range(0, 12), range(12, 24)], ids=str)
def test_broken_json_never_ends_in_a_traceback(
    tmp_path: Path, write: Callable[[Path], None], seeds: range
) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        # Brackets and stars are pattern characters to some readers.
        root, out = tmp_path / f"ra[w]*{seed}", tmp_path / f"o[u]t {seed}"
        write(root)
        for path in sorted(root.rglob("*.json")):
            document = json.loads(path.read_text())
            for _ in range(rng.randint(0, 3)):
                document = mutate(document, rng)
            text = json.dumps(document)
            path.write_text(text[: rng.randrange(len(text))] if rng.random() < 0.05 else text)
        source = write.__name__
        try:
            summary, rows, rejects = build_all(source, root, out)
        except UserError as error:
            assert "\n" not in str(error), seed
            assert not out.exists(), seed
        else:
            assert summary["rejects"] == len(rejects), seed
            assert all(str(root) in row["image"]["path"] for row in rows), seed


def test_broken_lines_never_end_in_a_traceback(tmp_path: Path) -> None:
    good = b"\n".join(b"caption %d\thttp://example.org/%d.jpg" % (i, i) for i in range(5))
    for seed in range(30):
        rng = random.Random(seed)
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.choice([0, 9, 10, 13, 34, 195, 255])
        root = tmp_path / str(seed)
        root.mkdir()
        (root / "GCC-training.tsv").write_bytes(data)
        summary, rows, rejects = build_all("cc3m", root, tmp_path / "out")
        assert rows == []
        assert summary["rejects"] == len(rejects)
        lines = {r["location"] for r in rejects if r["kind"] == "image"}
        assert len(lines) == summary["counts"]["images"]["raw"]


def test_absurd_boxes_are_described_as_they_are(tmp_path: Path) -> None:
    """Rounding overflows beyond a float's range divided by its own power of ten."""
    boxes = [[1e305, 0, 5, 5], [-1.7e308, 0, 5, 5], [300.123456, 0, 5, 5]]
    root = write_coco(
        tmp_path / "raw",
        images=[coco_image(1)],
        boxes=[box(n, 1, bbox) for n, bbox in enumerate(boxes)],
    )
    _, _, rejects = build_all("coco", root, tmp_path / "out")
    told = [re.findall("x=([^ ]*)", r["message"]) for r in rejects if r["kind"] == "object"]
    assert told == [["1e+305"], ["-1.7e+308"], ["300.1235"]]


@pytest.mark.parametrize("names", [("ra[/w]", "o[/u]t"), ("[red]", "[/]")])
def test_brackets_in_names_are_no_markup(tmp_path: Path, names: tuple[str, str]) -> None:
    root, out = (tmp_path / name / "m" for name in names)
    vg(root)
    done = CliRunner().invoke(
        main, ["build", "--source", "vg", "--root", str(root), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert f"{out}: 2 images in 1 file(s)" in done.stdout
    assert str(root) in "".join(done.stdout.split())


@pytest.mark.parametrize("place", ["--root", "--out"])
def test_names_that_are_no_text_are_refused(tmp_path: Path, place: str) -> None:
    vg(tmp_path / "raw")
    given = {"--root": str(tmp_path / "raw"), "--out": str(tmp_path / "out")}
    given[place] = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    done = CliRunner().invoke(main, ["build", "--source", "vg", *chain(*given.items())])
    assert done.exit_code == 2
    assert "caf\\udce9': not a name in UTF-8" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--min-area", "--max-text-overlap"])
def test_what_is_no_number_is_refused(tmp_path: Path, option: str) -> None:
    vg(tmp_path / "raw")
    command = ["build", "--source", "vg", "--root", str(tmp_path / "raw"), "--out", "out"]
    done = CliRunner().invoke(main, [*command, option, "nan"])
    assert done.exit_code == 2
    assert "'nan' is not a finite number" in done.stderr
