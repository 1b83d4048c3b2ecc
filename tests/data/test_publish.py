"""What a manifest says of itself to others: Croissant, dataset card, and what is pushed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import xvlm_data
from xvlm_data.commands import main
from xvlm_data.manifest import Manifest
from xvlm_data.publish.card import card
from xvlm_data.sources import SOURCES, get_source

from .raw_releases import box, build_all, caption, coco_image, write_coco
from .round_trips import encoded, write_rows
from .test_formats import region


def run(*args: Any, status: int = 0) -> str:
    done = CliRunner().invoke(main, [str(arg) for arg in args])
    assert done.exit_code == status, done.output
    return done.output


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of references, as a build leaves it."""
    folder = tmp_path_factory.mktemp("built")
    root = write_coco(
        folder / "raw",
        images=[coco_image(1), coco_image(2), coco_image(3)],
        captions=[caption(1, 1, "a picture"), caption(2, 2, "another")],
        boxes=[box(1, 1, [10, 20, 50, 40]), box(2, 1, [0, 0, 30, 30])],
    )
    build_all("coco", root, folder / "m")
    return folder / "m"


@pytest.fixture(scope="module")
def exported(built: Path) -> Path:
    out = built.parent / "hf"
    run("export", built, "--to", "hf", "--out", out)
    return out


def records(folder: Path) -> list[dict[str, Any]]:
    mlcroissant = pytest.importorskip("mlcroissant")
    logging.getLogger("absl").setLevel(logging.ERROR)
    dataset = mlcroissant.Dataset(str(folder / "croissant.json"))
    assert not dataset.metadata.issues.errors
    missing = "\n".join(dataset.metadata.issues.warnings)
    assert "datePublished" in missing  # a build knows no date; and that is all that is missing
    assert len(dataset.metadata.issues.warnings) == 1
    return list(dataset.records("images"))


def text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def test_croissants_own_library_reads_a_build_by_its_description(built: Path) -> None:
    found = records(built)
    manifest = xvlm_data.open(built)
    assert len(found) == 3
    for record, row in zip(found, manifest, strict=True):
        for name in ("id", "source", "split", "caption"):
            assert text(record[f"images/{name}"]) == row[name]
        assert record["images/width"] == row["width"]
        assert text(record["images/image"]) == row["image"]["path"]
        concepts = record["images/concepts"] or []
        assert [text(c["images/concepts/text"]) for c in concepts] == [
            c["text"] for c in row["concepts"]
        ]
        for concept, wanted in zip(concepts, row["concepts"], strict=True):
            assert list(concept["images/concepts/box"]) == wanted["box"]


def test_croissants_own_library_shows_pictures(exported: Path) -> None:
    assert [r["images/image"].size for r in records(exported)] == [(100, 80)] * 3


def test_licence_and_citation_are_carried_along(exported: Path) -> None:
    coco = get_source("coco")
    summary = json.loads((exported / "manifest.json").read_text())
    described = json.loads((exported / "croissant.json").read_text())
    for shard in xvlm_data.open(exported).shards:
        assert shard.info["licence"] == coco.licence
        assert shard.info["citation"] == coco.citation
    assert summary["licence"] == described["license"] == coco.licence
    assert described["citeAs"] == coco.citation
    assert described["url"] == coco.homepage
    told = (exported / "README.md").read_text()
    assert coco.citation in told
    assert coco.licence in told


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_a_licence_and_a_citation(name: str) -> None:
    source = get_source(name)
    assert len(source.licence) > 10
    assert source.citation.count("@") >= 1
    assert source.citation.count("{") == source.citation.count("}")
    assert "year = {" in source.citation
    assert source.homepage.startswith("https://")


def front_of(readme: str) -> dict[str, Any]:
    _, front, _ = readme.split("---\n", 2)
    loaded: dict[str, Any] = yaml.safe_load(front)
    return loaded


def test_what_is_pushed_loads_as_a_data_set(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "repository"
    told = json.loads(run("push", exported, out, "--json"))
    assert told["files"] == sorted(path.name for path in out.iterdir())
    assert "rejects.parquet" not in told["files"]
    assert front_of((out / "README.md").read_text())["size_categories"] == ["n<1K"]
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]
    assert found["train"][0]["image"].size == (100, 80)
    assert found["train"]["id"][:] == ["coco/1", "coco/2", "coco/3"]
    again = xvlm_data.open(out)
    assert [row["caption"] for row in again] == ["a picture", "another", None]
    assert run("inspect", out, "--validate", "--decode")
    assert "is not empty" in run("push", exported, out, status=2)


def test_pictures_that_stay_behind_are_not_pushed(built: Path, tmp_path: Path) -> None:
    told = run("push", built, tmp_path / "out", status=2)
    assert "export --to hf" in told
    assert not (tmp_path / "out").exists()
    run("push", built, tmp_path / "out", "--references")
    assert len(xvlm_data.open(tmp_path / "out")) == 3


def test_a_missing_picture_stops_an_export_to_a_hub(tmp_path: Path) -> None:
    row = {
        "id": "made/1",
        "source": "made",
        "split": "train",
        "image": {"bytes": encoded((8, 8)), "path": None},
        "width": 8,
        "height": 8,
        "caption": None,
        "concepts": [region("x")],
    }
    gone = row | {"id": "made/2", "image": {"bytes": None, "path": str(tmp_path / "gone.jpg")}}
    write_rows(tmp_path / "m.parquet", [row, gone])
    args = ["export", tmp_path / "m.parquet", "--to", "hf", "--out", tmp_path / "out"]
    assert "made/2" in run(*args, status=2)
    assert not (tmp_path / "out").exists()
    run(*args, "--on-broken", "skip")
    summary = xvlm_data.open(tmp_path / "out").summary or {}
    assert summary["counts"]["images"]["filtered"] == {"broken_image": 1}


def test_a_card_is_no_place_for_markup(built: Path) -> None:
    manifest: Manifest = xvlm_data.open(built)
    hostile = "<script>alert(1)</script>`` [x](javascript:x)\n---\nlicense: mit"
    summary = (manifest.summary or {}) | {"name": hostile, "licence": hostile, "citation": "```x"}
    text = card(manifest, summary)
    front, body = front_of(text), text.split("---\n", 2)[2]
    assert front["pretty_name"] == " ".join(hostile.split())
    assert front["license"] == "other"
    assert "<script>" not in body
    assert "](javascript" not in body
    assert body.count("```") % 2 == 0
