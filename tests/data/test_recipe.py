"""Recipes: strict reading, and the two that are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from xvlm_data.errors import UserError
from xvlm_data.recipe import QUANTITIES, Figure, read_recipe

SHIPPED = Path(__file__).resolve().parents[2] / "manifests"


def plain_recipe() -> dict[str, Any]:
    return {
        "name": "small",
        "sources": {"coco": {"expect": {"images": {"paper": 10}}}, "vg": {}},
        "streams": {
            "image_text": {"entries": [{"source": "coco", "granularity": ["image"]}]},
            "multi_grained": {
                "probability": 0.5,
                "entries": [{"source": "vg", "granularity": ["object", "region"]}],
            },
        },
    }


def write(path: Path, recipe: Any) -> Path:
    path.write_text(yaml.safe_dump(recipe))
    return path


def at(recipe: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The recipe with ``value`` at a place such as ``streams.image_text.entries.0.weight``."""
    *parents, last = place.split(".")
    branch: Any = recipe
    for key in parents:
        branch = branch[int(key)] if isinstance(branch, list) else branch.setdefault(key, {})
    branch[int(last) if isinstance(branch, list) else last] = value
    return recipe


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path / "r.yaml", plain_recipe()))
    assert recipe.manifest("vg", tmp_path) == str(tmp_path / "vg")
    assert recipe.sources["vg"].split == "train"
    assert recipe.streams.image_text.natural == "pairs"
    assert recipe.streams.multi_grained.natural == "images"
    assert Figure(paper=100).allowed == 0.05
    assert (Figure(paper=100, official=98).expected, Figure(official=98).allowed) == (98, 0.01)


def test_manifests_lie_beside_the_recipe_or_where_they_say(tmp_path: Path) -> None:
    tree = at(plain_recipe(), "sources.coco.manifest", "built/coco")
    at(tree, "sources.vg.manifest", "s3://bucket/vg")
    recipe = read_recipe(write(tmp_path / "r.yaml", tree))
    assert recipe.manifest("coco", Path("/data")) == "/data/built/coco"
    assert recipe.manifest("vg", Path("/data")) == "s3://bucket/vg"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("strems", {}, "unknown key strems; did you mean streams"),
        ("sources.coco.expct", {}, "unknown key sources.coco.expct; did you mean expect"),
        ("sources.coco.expect.image", {}, "sources.coco.expect.image; did you mean images"),
        ("sources.coco.expect.images.papr", 1, "images.papr; did you mean paper"),
        (
            "streams.image_text.entries.0.wieght",
            1,
            r"entries\[0\].wieght; did you mean weight",
        ),
        ("streams.image_text.entries.0.source", "cooc", "no source 'cooc'; did you mean coco"),
        ("streams.image_text.entries.0.granularity", ["images"], "'images'"),
        ("streams.image_text.entries.0.granularity", [], "length"),
        ("streams.image_text.entries.0.weight", 0, "weight"),
        ("streams.image_text.entries.0.weight", "2", "Expected `float"),
        ("streams.image_text.entries", [], "length"),
        ("streams.multi_grained.probability", 1.5, "probability"),
        ("streams.multi_grained.entries.0.granularity", ["image"], "captions have no boxes"),
        ("streams.multi_grained.entries.0.largest", 3, "largest belongs to one granularity"),
        ("sources.coco.expect.images.paper", -1, "paper"),
        ("sources.coco.expect.images.paper", "0.1M", "Expected `int"),
        ("sources.coco.expect.images.tolerance", 7, "tolerance"),
        ("sources", {}, "length"),
        ("name", None, "Expected `str`"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, place: str, value: Any, message: str) -> None:
    path = write(tmp_path / "r.yaml", at(plain_recipe(), place, value))
    with pytest.raises(UserError, match=message) as error:
        read_recipe(path)
    assert str(error.value).startswith(f"{path}: ")


def test_entries_of_a_stream_are_distinct_and_weighted_alike(tmp_path: Path) -> None:
    entry = {"source": "vg", "granularity": ["region"]}
    tree = at(plain_recipe(), "streams.multi_grained.entries", [entry, entry])
    with pytest.raises(UserError, match="vg region is there twice"):
        read_recipe(write(tmp_path / "r.yaml", tree))
    mixed = [{**entry, "weight": 2.0}, {"source": "coco", "granularity": ["object"]}]
    tree = at(plain_recipe(), "streams.multi_grained.entries", mixed)
    with pytest.raises(UserError, match="some entries have a weight"):
        read_recipe(write(tmp_path / "r.yaml", tree))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "'name' is there twice"),
        ("sources:\n  vg: {}\n  vg: {split: val}\n", "'vg' is there twice"),
        ("a: [", "not valid YAML"),
        ("- a\n", "not a mapping"),
        ("", "not a mapping"),
        ("name: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_recipe(path)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such recipe"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("name", ["4m", "16m"])
def test_shipped_figures_add_up(name: str) -> None:
    """The paper's sums are sums of its rows, as far as its rounding lets them be."""
    recipe = read_recipe(SHIPPED / f"{name}.yaml")
    paper = {
        quantity: sum(
            figure.paper or 0
            for source in recipe.sources.values()
            if (figure := getattr(source.expect, quantity)) is not None
        )
        for quantity in QUANTITIES
    }
    totals = recipe.totals
    assert totals.images and totals.captions and totals.annotations
    assert paper["images"] == pytest.approx(totals.images.paper, rel=0.01)
    assert paper["objects"] + paper["regions"] == pytest.approx(totals.annotations.paper, rel=0.02)
    # VG's region texts make up the rest of the captions: 8 of each of its 0.1M images.
    (vg,) = [e for e in recipe.streams.image_text.entries if e.source == "vg"]
    images = recipe.sources["vg"].expect.images
    assert images and images.paper and vg.largest
    assert paper["captions"] + vg.largest * images.paper == pytest.approx(
        totals.captions.expected, rel=0.01
    )


def test_official_coco_figures_are_karpathys() -> None:
    coco = read_recipe(SHIPPED / "4m.yaml").sources["coco"]
    assert coco.expect.images and coco.expect.captions and coco.release.captions
    assert coco.expect.images.official == 82_783 + 30_504
    assert coco.release.captions.official == 591_753 + 25_014
    assert coco.expect.captions.official == coco.release.captions.official - 2 * 25_010
