"""Every promise of the schema is broken once, and only the broken one is reported."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.inspect_manifests import concept, manifest_of, png, row, write, write_folder
from tests.shared import shared_path
from xvlm_data.inspect.validate import OFFENDERS_KEPT, RULES, validate
from xvlm_data.manifest import open_manifest

WHOLE = concept("two shapes", "image")
TRUNCATED = png((64, 64), form="JPEG")[:400]
BROKEN: dict[str, list[dict[str, Any]]] = {
    "id_missing": [{"id": ""}, {"id": None}],
    "id_prefix": [{"id": "other/1"}, {"id": "made/"}, {"id": "made"}, {"id": "madeup/1"}],
    "source_missing": [{"source": None}, {"source": ""}],
    "split_missing": [{"split": None}, {"split": ""}],
    "size": [{"width": 0}, {"height": -1}, {"width": None}],
    "image_missing": [
        {"image": None},
        {"image": {"bytes": None, "path": None}},
        {"image": {"bytes": None, "path": ""}},
    ],
    "image_bytes": [
        {"image": {"bytes": b"<html>", "path": None}},
        {"image": {"bytes": b"", "path": None}},
        {"image": {"bytes": b"RIFF....WAVE", "path": None}},
    ],
    "image_path": [{"image": {"bytes": None, "path": "nowhere/1.jpg"}}],
    "caption": [
        {"caption": "another"},
        {"caption": None},
        {"concepts": [concept()]},
        {"concepts": None},
        {"concepts": [concept(), concept("later", "image"), WHOLE]},
    ],
    "concept_granularity": [
        {"concepts": [WHOLE, concept(granularity="pixel")]},
        {"concepts": [WHOLE, concept(granularity=None)]},
    ],
    "box_finite": [
        {"concepts": [WHOLE, concept(box=(float("nan"), 0.5, 0.1, 0.1))]},
        {"concepts": [WHOLE, concept(box=(0.5, 0.5, float("inf"), 0.1))]},
        {"concepts": [WHOLE, concept(box=None)]},
    ],
    "box_size": [
        {"concepts": [WHOLE, concept(box=(0.5, 0.5, 0.0, 0.1))]},
        {"concepts": [WHOLE, concept(box=(0.5, 0.5, 0.1, -0.1))]},
    ],
    "box_range": [
        {"concepts": [WHOLE, concept(box=(0.1, 0.5, 0.21, 0.1))]},
        {"concepts": [WHOLE, concept(box=(0.5, 0.95, 0.1, 0.1001))]},
        {"concepts": [WHOLE, concept(box=(320, 240, 10, 10))]},
    ],
    "box_whole_image": [
        {"concepts": [concept("two shapes", "image", (0.5, 0.5, 1.0, 0.999))]},
    ],
    "text_empty": [
        {"concepts": [WHOLE, concept(text="")]},
        {"concepts": [WHOLE, concept(text=None)]},
        {"concepts": [WHOLE, concept(text=" \t\u00a0\n")]},
    ],
    "text_space": [
        {"concepts": [WHOLE, concept(text="a cat ")]},
        {"concepts": [WHOLE, concept(text="\u00a0a cat")]},
    ],
    "text_unicode": [
        {"concepts": [WHOLE, concept(text=unicodedata.normalize("NFD", "caf\u00e9"))]},
    ],
}
CASES = [(rule, changes) for rule, cases in BROKEN.items() for changes in cases]


def test_good_rows_pass(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(png(form="JPEG"))
    formats = [png(form=form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]
    rows = [row(i, image={"bytes": data, "path": None}) for i, data in enumerate(formats)]
    rows += [
        row(10, image={"bytes": None, "path": str(tmp_path / "a.jpg")}),
        row(11, caption=None, concepts=[]),
        row(12, caption=None, concepts=None),
        row(13, caption="b", concepts=[concept(), concept("b", "image"), WHOLE]),
        # Touching the border as float32 does, and a region as large as the image.
        row(14, concepts=[WHOLE, concept(box=(0.950000001, 0.5, 0.1000001, 1.0))]),
        row(15, concepts=[WHOLE, concept(box=(0.5, 0.5, 1.0, 1.0))]),
        row(16, concepts=[WHOLE, concept(text="caf\u00e9 \u732b")]),
    ]
    findings = validate(manifest_of(tmp_path, *rows), decode=True)
    assert findings.to_dict() == {"ok": True, "rows": len(rows), "offences": {}}


@pytest.mark.parametrize(("rule", "changes"), CASES)
def test_each_broken_promise_is_found_alone(
    tmp_path: Path, rule: str, changes: dict[str, Any]
) -> None:
    findings = validate(manifest_of(tmp_path, row(0), row(1), row(2), row(3, **changes), row(4)))
    if rule == "source_missing":  # without a source no id can begin with it
        findings.counts.pop("id_prefix")
    assert findings.counts == {rule: 1}
    (offender,) = findings.first[rule]
    assert offender.row == 3
    assert offender.shard.endswith("made.parquet")
    assert offender.id == changes.get("id", "made/3")


def test_every_rule_has_a_test() -> None:
    elsewhere = {"no_rows", "id_duplicate", "image_decode", "shard_rows", "shard_checksum"}
    assert set(BROKEN) | elsewhere == set(RULES)


def test_offenders_tell_the_concept_and_its_value(tmp_path: Path) -> None:
    bad = concept(box=(0.1, 0.5, 0.5, 0.25))
    findings = validate(manifest_of(tmp_path, row(0), row(1, concepts=[WHOLE, concept(), bad])))
    (offender,) = findings.first["box_range"]
    assert offender.detail == "concept 2: box (0.1, 0.5, 0.5, 0.25)"
    assert (offender.row, offender.id) == (1, "made/1")


def test_all_offences_are_counted_and_the_first_kept(tmp_path: Path) -> None:
    bad = [WHOLE, *[concept(text="")] * 4]
    findings = validate(manifest_of(tmp_path, *[row(i, concepts=bad) for i in range(20)]))
    assert findings.counts == {"text_empty": 80}
    kept = [(o.row, o.detail) for o in findings.first["text_empty"]]
    assert len(kept) == OFFENDERS_KEPT
    assert kept[:2] == [(0, "concept 1: text ''"), (0, "concept 2: text ''")]
    assert kept[4] == (1, "concept 1: text ''")


def test_rows_are_numbered_within_their_shard(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(i) for i in range(70)])
    write(tmp_path / "b.parquet", [row(100 + i) for i in range(70)] + [row(9, split="", image={})])
    findings = validate(open_manifest(str(tmp_path / "*.parquet")))
    for rule in ("split_missing", "image_missing"):
        (offender,) = findings.first[rule]
        assert (Path(offender.shard).name, offender.row) == ("b.parquet", 70)


def test_duplicate_ids_are_found_across_shards(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [row(0), row(1), row(2)])
    write(tmp_path / "b.parquet", [row(3), row(1), row(4), row(1), row(3)])
    findings = validate(open_manifest(str(tmp_path / "*.parquet")))
    assert findings.counts == {"id_duplicate": 3}
    first, second = findings.first["id_duplicate"]
    assert (first.id, first.row, first.shard.endswith("b.parquet")) == ("made/1", 3, True)
    assert first.detail.startswith("also row 1 of ") and first.detail.endswith("a.parquet")
    assert (second.id, second.row) == ("made/3", 4)


def test_an_empty_manifest_breaks_a_promise(tmp_path: Path) -> None:
    assert validate(manifest_of(tmp_path)).counts == {"no_rows": 1}


def test_decode_finds_what_the_first_bytes_hide(tmp_path: Path) -> None:
    swapped = {"bytes": png((30, 40)), "path": None}
    rows = [row(0), row(1, image={"bytes": TRUNCATED, "path": None}), row(2, image=swapped)]
    manifest = manifest_of(tmp_path, *rows)
    assert validate(manifest).ok
    findings = validate(manifest, decode=True)
    assert findings.counts == {"image_decode": 2}
    details = [offender.detail for offender in findings.first["image_decode"]]
    assert details[0].startswith(("corrupt_image", "not_an_image", "size_mismatch"))
    assert details[1].startswith("size_mismatch")


def test_image_paths_are_left_alone_on_request(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, row(0, image={"bytes": None, "path": "nowhere.jpg"}))
    assert validate(manifest).counts == {"image_path": 1}
    assert validate(manifest, check_images=False).ok


def test_image_paths_may_be_urls(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    here, gone = (tmp_path / name for name in ("a.png", "b.png"))
    rows = [row(i, image={"bytes": None, "path": p.as_uri()}) for i, p in enumerate((here, gone))]
    rows.append(row(2, image={"bytes": None, "path": "nosuchprotocol://a/b"}))
    findings = validate(manifest_of(tmp_path, *rows))
    assert [offender.row for offender in findings.first["image_path"]] == [1, 2]


def test_moved_images_are_found_below_the_image_root(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.png").write_bytes(png())
    info = {"name": "made", "image_root": "/old/place"}
    moved = row(0, image={"bytes": None, "path": "/old/place/a.png"})
    path = write(tmp_path / "m.parquet", [moved], info)
    assert validate(open_manifest(path)).counts == {"image_path": 1}
    assert validate(open_manifest(path, image_root=str(tmp_path / "new")), decode=True).ok


def test_manifest_json_must_agree_with_the_shards(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", [row(0)], [row(1)])
    assert validate(open_manifest(folder)).ok
    write(folder / "manifest-00001.parquet", [row(1), row(2)])
    findings = validate(open_manifest(folder))
    assert findings.counts == {"shard_rows": 1, "shard_checksum": 1}
    found = hashlib.sha256((folder / "manifest-00001.parquet").read_bytes()).hexdigest()
    assert found in findings.first["shard_checksum"][0].detail
    summary = json.loads((folder / "manifest.json").read_text())
    summary["shards"][1] |= {"rows": 2, "sha256": found}
    (folder / "manifest.json").write_text(json.dumps(summary))
    assert validate(open_manifest(folder)).ok


def test_progress_tells_every_row_twice(tmp_path: Path) -> None:
    told: list[int] = []
    validate(manifest_of(tmp_path, *[row(i) for i in range(7)]), advance=told.append)
    assert sum(told) == 14


def test_real_boxes_of_coco_keep_the_promises(tmp_path: Path) -> None:
    root = shared_path("fixtures/coco")
    found = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    rows = []
    for image in found["images"]:
        width, height = image["width"], image["height"]
        concepts = [
            concept(
                "thing",
                "object",
                ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height),
            )
            for x, y, w, h in (
                a["bbox"] for a in found["annotations"] if a["image_id"] == image["id"]
            )
        ]
        path = str(root / "train2017" / image["file_name"])
        changes = {"width": width, "height": height, "caption": None, "concepts": concepts}
        rows.append(row(image["id"], image={"bytes": None, "path": path}, **changes))
    assert validate(manifest_of(tmp_path, *rows), decode=True).ok
    turned = [r | {"width": r["height"], "height": r["width"]} for r in rows]
    findings = validate(manifest_of(tmp_path, *turned), decode=True)
    not_square = sum(r["width"] != r["height"] for r in rows)
    assert findings.counts == {"image_decode": not_square}
