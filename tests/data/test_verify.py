"""`xvlm-data verify`: counts against a recipe, on manifests whose content is known by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tests.data.raw_releases import (
    box,
    build_all,
    caption,
    coco_image,
    region,
    write_coco,
    write_vg,
)
from tests.shared import shared_path
from xvlm_data.commands import main
from xvlm_data.manifest import SUMMARY_NAME, open_manifest
from xvlm_data.schema import FIELDS, manifest_schema
from xvlm_data.storage import write_json
from xvlm_data.verify.counts import recount
from xvlm_data.write import SHARD_NAME, ShardWriter

SHIPPED = Path(__file__).resolve().parents[2] / "manifests"


def verify(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def as_json(*arguments: Any) -> tuple[int, dict[str, Any]]:
    result = verify(*arguments, "--json")
    return result.exit_code, json.loads(result.stdout)


def lines(report: dict[str, Any], source: str, part: str = "expect") -> dict[str, Any]:
    (found,) = [s for s in report["sources"] if s["name"] == source]
    return {line["quantity"]: line for line in found[part]}


def write_manifest(
    folder: Path, source: str, images: list[dict[str, int]], raw: dict[str, int] | None = None
) -> Path:
    """A manifest whose images have the given numbers of concepts by granularity."""
    folder.mkdir(parents=True)
    info = {"name": f"{source}-train", "source": source, "split": "train"}
    rows = [
        {
            "id": f"{source}/{number}",
            "source": source,
            "split": "train",
            "image": {"bytes": None, "path": f"{number}.jpg"},
            "width": 10,
            "height": 10,
            "caption": "a" if concepts.get("image") else None,
            "concepts": [
                {"box": [0.5, 0.5, 1, 1], "text": "a", "attributes": [], "granularity": name}
                for name, count in concepts.items()
                for _ in range(count)
            ],
        }
        for number, concepts in enumerate(images)
    ]
    shards = []
    for number, start in enumerate(range(0, max(len(rows), 1), 7)):
        with ShardWriter(folder / SHARD_NAME.format(number), manifest_schema(info)) as writer:
            writer.write(pa.Table.from_pylist(rows[start : start + 7], schema=FIELDS))
        shards.append(writer.entry())
    names = {"image": "captions", "object": "objects", "region": "regions"}
    kept = {n: sum(image.get(n, 0) for image in images) for n in names}
    counts: dict[str, Any] = {names[n]: {"raw": total} for n, total in kept.items()}
    counts["images"] = {"raw": len(images)}
    for name, number in (raw or {}).items():
        counts[name] = {"raw": number}
    summary = {
        **info,
        "schema_version": 1,
        "rows": len(rows),
        "concepts": kept,
        "counts": counts,
        "shards": shards,
    }
    write_json(folder / SUMMARY_NAME, summary)
    return folder


def write_recipe(path: Path, **sources: Any) -> Path:
    first = next(iter(sources))
    tree = {
        "name": "test",
        "sources": sources,
        "streams": {
            "image_text": {"entries": [{"source": first, "granularity": ["image"]}]},
            "multi_grained": {
                "entries": [{"source": s, "granularity": ["object", "region"]} for s in sources]
            },
        },
        "totals": {name: {"paper": 1} for name in ("images", "captions", "annotations")},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def test_counts_of_built_releases_beside_the_recipe(tmp_path: Path) -> None:
    """Two COCO images (three boxes, one of them tiny) and one VG image, counted by hand."""
    images = [coco_image(1), coco_image(2)]
    boxes = [box(1, 1, [0, 0, 50, 40]), box(2, 2, [5, 5, 60, 60]), box(3, 2, [1, 1, 2, 2])]
    captions = [caption(n, image, f"text {n}") for n, image in enumerate([1, 1, 2])]
    build_all(
        "coco",
        write_coco(tmp_path / "coco", images=images, boxes=boxes, captions=captions),
        tmp_path / "m/coco",
    )
    phrases = ["a red car", "two dogs on grass", "a red car"]
    vg = write_vg(tmp_path / "vg", {1: [region(n, text) for n, text in enumerate(phrases)]})
    build_all("vg", vg, tmp_path / "m/vg")
    recipe = write_recipe(
        tmp_path / "r.yaml",
        coco={
            "expect": {
                "images": {"paper": 2},
                "captions": {"official": 3},
                "objects": {"paper": 4},
            },
            "release": {"objects": {"official": 3}, "captions": {"official": 4}},
        },
        vg={"expect": {"regions": {"paper": 2}}},
    )
    code, report = as_json("--recipe", recipe, "--manifests", tmp_path / "m", "--recount")
    assert code == 1
    coco = lines(report, "coco")
    assert {q: (line["found"], line["status"]) for q, line in coco.items()} == {
        "images": (2, "ok"),
        "captions": (3, "ok"),
        "objects": (2, "outside"),
        "regions": (0, "unchecked"),
    }
    assert coco["objects"]["difference"] == -0.5
    release = lines(report, "coco", "release")
    assert (release["objects"]["found"], release["objects"]["status"]) == (3, "ok")
    assert (release["captions"]["found"], release["captions"]["status"]) == (3, "outside")
    assert lines(report, "vg")["regions"]["found"] == 2
    left_out = {s["name"]: s["left_out"] for s in report["sources"]}
    assert left_out["coco"]["objects"] == {"small": 1}
    assert left_out["vg"]["regions"] == {"text_overlap": 1}
    totals = {line["quantity"]: line["found"] for line in report["totals"]}
    assert totals == {"images": 3, "captions": 3, "annotations": 2 + 2}
    shown = verify("--recipe", recipe, "--manifests", tmp_path / "m")
    assert "small" in shown.stdout and "--min-area 0" in shown.stdout


def scaled_4m(folder: Path) -> None:
    """The paper's table at a ten-thousandth, with official counts where there are any."""
    coco = [{"image": 5, "object": 4}] * 10 + [{"image": 7, "object": 5}]
    write_manifest(folder / "coco", "coco", coco, {"images": 12, "captions": 62, "objects": 90})
    vg = [{"region": 37, "object": 20}] * 10
    raw = {"images": 11, "regions": 541, "objects": 380}
    write_manifest(folder / "vg", "vg", vg, raw)
    write_manifest(folder / "sbu", "sbu", [{"image": 1}] * 86, {"captions": 100})
    write_manifest(folder / "cc3m", "cc3m", [{"image": 1}] * 290, {"captions": 332})


def test_a_set_at_scale_agrees_with_the_scaled_recipe(tmp_path: Path) -> None:
    scaled_4m(tmp_path)
    arguments = ("--recipe", SHIPPED / "4m.yaml", "--manifests", tmp_path, "--scale", 0.0001)
    code, report = as_json(*arguments)
    assert {line["quantity"]: line["found"] for line in report["totals"]} == {
        "images": 11 + 10 + 86 + 290,
        "captions": 57 + 8 * 10 + 86 + 290,  # of VG the eight largest regions of each image
        "annotations": 45 + 200 + 370,
    }
    assert (code, report["ok"]) == (0, True), report
    assert verify(*arguments, "--recount").exit_code == 0
    assert verify("--recipe", SHIPPED / "4m.yaml", "--manifests", tmp_path).exit_code == 1


def test_sources_that_are_not_built_are_listed_with_their_command(tmp_path: Path) -> None:
    scaled_4m(tmp_path)
    for file in (tmp_path / "sbu").iterdir():
        file.unlink()
    (tmp_path / "sbu").rmdir()
    (tmp_path / "cc3m/manifest.json").unlink()
    (tmp_path / "cc3m/.building").mkdir()  # a build that did not finish
    arguments = ("--recipe", SHIPPED / "4m.yaml", "--manifests", tmp_path, "--scale", 0.0001)
    code, report = as_json(*arguments)
    assert code == 1
    assert [s["name"] for s in report["sources"] if not s["built"]] == ["sbu", "cc3m"]
    assert {line["status"] for line in report["totals"]} == {"incomplete", "ok"}
    shown = verify(*arguments)
    assert f"xvlm-data build --source sbu --out {tmp_path / 'sbu'}" in shown.stdout
    assert "did not finish" in shown.stdout


def test_manifest_json_is_proven_by_counting(tmp_path: Path) -> None:
    write_manifest(tmp_path / "vg", "vg", [{"region": 3}] * 9)
    recipe = write_recipe(tmp_path / "r.yaml", vg={"expect": {"regions": {"paper": 27}}})
    tree = yaml.safe_load(recipe.read_text())
    del tree["totals"]
    recipe.write_text(yaml.safe_dump(tree))
    assert verify("--recipe", recipe, "--recount").exit_code == 0
    path = tmp_path / "vg/manifest.json"
    summary = json.loads(path.read_text())
    summary["concepts"]["region"] = 28
    path.write_text(json.dumps(summary))
    assert verify("--recipe", recipe).exit_code == 0  # within the tolerance, and not looked at
    code, report = as_json("--recipe", recipe, "--recount")
    assert code == 1
    assert report["sources"][0]["warnings"] == ["manifest.json tells 28 regions, the files hold 27"]


def test_a_manifest_that_is_one_file_is_counted(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m", "coco", [{"image": 2, "object": 1}] * 5)
    (tmp_path / "m/manifest-00000.parquet").rename(tmp_path / "coco.parquet")
    recipe = write_recipe(
        tmp_path / "r.yaml",
        coco={"manifest": "coco.parquet", "expect": {"captions": {"official": 10}}},
    )
    _, report = as_json("--recipe", recipe)
    assert lines(report, "coco")["captions"]["status"] == "ok"
    assert "no manifest.json" in report["sources"][0]["warnings"][0]


def test_a_build_by_other_rules_is_told(tmp_path: Path) -> None:
    vg = write_vg(tmp_path / "raw", {1: [region(1, "a red car")]})
    from xvlm_data.rules import Rules

    build_all("vg", vg, tmp_path / "vg", rules=Rules(min_area=0.2), keep_leaks=True)
    recipe = write_recipe(tmp_path / "r.yaml", vg={})
    tree = yaml.safe_load(recipe.read_text()) | {"rules": {"min_area": 0.01}}
    recipe.write_text(yaml.safe_dump(tree))
    _, report = as_json("--recipe", recipe)
    assert report["sources"][0]["warnings"] == [
        "built with min_area 0.2, the recipe is meant for 0.01",
        "built with --keep-leaks: images of evaluation sets are in it",
    ]


def test_real_excerpts_stand_beside_the_papers_table(tmp_path: Path) -> None:
    """Raw counts as the fixtures' README has them; the paper's figures as printed in it."""
    for source in ("coco", "vg", "sbu", "cc3m"):
        build_all(source, shared_path(f"fixtures/{source}"), tmp_path / source)
    code, report = as_json("--recipe", SHIPPED / "4m.yaml", "--manifests", tmp_path, "--recount")
    assert code == 1
    raw = {
        source: {q: line["found"] for q, line in lines(report, source, "release").items()}
        for source in ("coco", "vg", "sbu", "cc3m")
    }
    assert raw == {
        "coco": {"images": 26, "captions": 130, "objects": 333},
        "vg": {"images": 3, "objects": 119, "regions": 773},
        "sbu": {"images": 3, "captions": 3},
        "cc3m": {"images": 5, "captions": 5},
    }
    paper = {
        (s["name"], line["quantity"]): line["paper"]
        for s in report["sources"]
        for line in s["expect"]
        if line["paper"] is not None
    }
    assert paper == {
        ("coco", "images"): 110_000,
        ("coco", "captions"): 550_000,
        ("coco", "objects"): 450_000,
        ("vg", "images"): 100_000,
        ("vg", "objects"): 2_000_000,
        ("vg", "regions"): 3_700_000,
        ("sbu", "images"): 860_000,
        ("sbu", "captions"): 860_000,
        ("cc3m", "images"): 2_900_000,
        ("cc3m", "captions"): 2_900_000,
    }
    # Every raw record is either in the manifest or left out for a reason that is told.
    for source in report["sources"]:
        kept = {line["quantity"]: line["found"] for line in source["expect"]}
        for line in source["release"]:
            quantity = line["quantity"]
            gone = sum(source["left_out"].get(quantity, {}).values())
            assert line["found"] == kept[quantity] + gone
    shown = verify("--recipe", SHIPPED / "4m.yaml", "--manifests", tmp_path).stdout
    assert "3,700,000" in shown and "5,114,489" in shown and "missing_image" in shown


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["image", "region", "object"]), st.integers(0, 12)),
        max_size=30,
    ),
    st.integers(1, 15),
)
def test_counting_agrees_with_a_loop(
    tmp_path_factory: pytest.TempPathFactory, images: list[dict[str, int]], largest: int
) -> None:
    folder = write_manifest(tmp_path_factory.mktemp("m") / "x", "x", images)
    content = recount(open_manifest(folder))
    assert content.kept["images"] == len(images)
    for name in ("image", "region", "object"):
        numbers = [image.get(name, 0) for image in images]
        assert content.texts(name, None) == sum(numbers)
        assert content.texts(name, largest) == sum(min(n, largest) for n in numbers)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--recipe", "none.yaml"],
        [],
        ["--recipe", str(SHIPPED / "4m.yaml"), "--scale", "0"],
    ],
)
def test_bad_usage(arguments: list[str]) -> None:
    result = verify(*arguments)
    assert result.exit_code == 2
    assert "rror:" in result.stderr


def test_a_damaged_manifest_json_is_one_line_and_not_the_end(tmp_path: Path) -> None:
    scaled_4m(tmp_path)
    path = tmp_path / "vg/manifest.json"
    summary = json.loads(path.read_text()) | {"concepts": {"region": "many"}}
    path.write_text(json.dumps(summary))
    code, report = as_json(
        "--recipe", SHIPPED / "4m.yaml", "--manifests", tmp_path, "--scale", 0.0001
    )
    assert code == 1
    (vg,) = [s for s in report["sources"] if s["name"] == "vg"]
    assert not vg["built"] and "damaged" in vg["warnings"][0]
    assert lines(report, "coco")["images"]["found"] == 11
