"""Manifests of other writers, with nulls anywhere: shown, exported, or told in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from xvlm_data.commands import main
from xvlm_data.manifest import open_manifest

from .inspect_manifests import SIZE, concept, row, write

#: Rows that break the schema, and what is said of them where that is the answer.
NULLS: dict[str, dict[str, Any]] = {
    "id": {"id": None},
    "split": {"split": None},
    "size": {"width": None, "height": None},
    "image": {"image": None},
    "concepts": {"caption": None, "concepts": None},
    "concept": {"concepts": [None]},
    "box": {"concepts": [concept(box=None)]},
    "side of a box": {"concepts": [concept(box=[None, 0.5, 0.5, 0.5])]},
    "box of a caption": {"concepts": [concept(granularity="image") | {"box": None}]},
    "text": {"concepts": [concept(text=None, granularity="object")]},
    "granularity": {"concepts": [concept(granularity=None)]},
    "attributes": {"concepts": [concept() | {"attributes": None}]},
    "attribute": {"concepts": [concept(granularity="object") | {"attributes": [None, "old"]}]},
}


def run(*args: Any) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, [str(arg) for arg in args])
    if done.exit_code == 2:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    return done.exit_code, done.stdout, done.stderr


def manifest(folder: Path, what: str) -> Path:
    return write(folder / "m.parquet", [row(0, **NULLS[what]), row(1)])


@pytest.mark.parametrize("what", NULLS)
def test_head_shows_whatever_there_is(tmp_path: Path, what: str) -> None:
    status, told, _ = run("head", manifest(tmp_path, what))
    assert status == 0
    assert "made/1  train  40 x 30" in told
    assert ("null" in told) == (
        what in ("id", "split", "concept", "side of a box", "text", "granularity", "attribute")
    )


#: What no format can say.
PROBLEMS = {
    "image": "made/0: the row has neither image bytes nor a path",
    "concept": "made/0: concept 0 is null",
    "box": "made/0: concept 0 has no box",
    "side of a box": "made/0: concept 0 has a box that is not finite",
    "text": "made/0: concept 0 has no text",
    "granularity": "made/0: concept 0 has no granularity",
}


@pytest.mark.parametrize("form", ["webdataset", "xvlm-jsonl"])
@pytest.mark.parametrize("what", NULLS)
def test_other_formats_take_what_can_be_said(tmp_path: Path, what: str, form: str) -> None:
    out = tmp_path / "out"
    status, _, error = run("export", manifest(tmp_path, what), "--to", form, "--out", out)
    assert status == (2 if what in PROBLEMS else 0), error
    assert PROBLEMS.get(what, "") in error
    assert out.exists() == (what not in PROBLEMS)


@pytest.mark.parametrize("what", NULLS)
def test_coco_takes_what_can_be_said_and_tells_the_rest(tmp_path: Path, what: str) -> None:
    status, _, error = run(
        "export", manifest(tmp_path, what), "--to", "coco", "--out", tmp_path / "out"
    )
    if what in PROBLEMS:
        assert status == 2
        assert PROBLEMS[what] in error
        assert not (tmp_path / "out").exists()
        return
    assert status == 0
    told = json.loads((tmp_path / "out/annotations/instances.json").read_bytes())
    assert [(i["width"], i["height"]) for i in told["images"]] == [SIZE] * 2  # the picture tells
    assert all(None not in a.get("attribute_names", []) for a in told["annotations"])


@pytest.mark.parametrize("what", NULLS)
def test_the_hub_gets_rows_that_keep_the_schema(tmp_path: Path, what: str) -> None:
    status, _, error = run(
        "export", manifest(tmp_path, what), "--to", "hf", "--out", tmp_path / "out"
    )
    if what in ("id", "split"):
        assert status == 2
        assert f"breaks the schema (Casting field '{what}' with null" in error
    elif what == "image":
        assert status == 2
        assert "neither image bytes nor a path" in error
    else:
        assert status == 0
        assert [(r["width"], r["height"]) for r in open_manifest(tmp_path / "out")] == [SIZE] * 2


@pytest.mark.parametrize("what", NULLS)
def test_diff_compares_what_keeps_the_schema(tmp_path: Path, what: str) -> None:
    path = manifest(tmp_path, what)
    status, _, error = run("diff", path, path)
    if what in ("id", "split", "size"):
        assert status == 2
        assert "breaks the schema (Casting field" in error
    else:
        assert status == 0


@pytest.mark.parametrize("verb", ["diff", "merge"])
def test_a_damaged_file_is_told(tmp_path: Path, verb: str) -> None:
    whole = manifest(tmp_path, "attributes")
    data = bytearray(whole.read_bytes())
    data[8:120] = b"\xff" * 112  # the first pages; the footer is as it was
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(data)
    out = ("--out", tmp_path / "out") if verb == "merge" else ()
    status, _, error = run(verb, damaged, whole, *out)
    assert status == 2
    assert "damaged.parquet: not a readable Parquet file" in error


def test_diff_refuses_ids_that_come_twice(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", [row(0), row(1)])
    two = write(tmp_path / "two.parquet", [row(0), row(1), row(2), row(1), row(0)])
    for pair in ((one, two), (two, one)):
        status, _, error = run("diff", *pair)
        assert status == 2
        assert "made: id made/0 comes twice" in error
