"""Manifests in other people's formats and back: nothing is lost on the way."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from xvlm_data.engines import Processes
from xvlm_data.errors import UserError
from xvlm_data.formats.coco import export_coco
from xvlm_data.formats.command import _import
from xvlm_data.formats.importing import ImportOptions
from xvlm_data.formats.webdataset import export_webdataset
from xvlm_data.formats.xvlm_jsonl import export_jsonl, pixel_boxes
from xvlm_data.inspect.validate import validate
from xvlm_data.manifest import Manifest, open_manifest

from .raw_releases import Silent, jpeg, write_image, write_json
from .round_trips import encoded, import_back, manifest_rows, same_rows, write_rows

EXPORTS = {"coco": export_coco, "webdataset": export_webdataset, "xvlm-jsonl": export_jsonl}


def region(text: str, box: tuple[float, ...] = (0.5, 0.5, 0.5, 0.5), **more: Any) -> dict[str, Any]:
    return {"box": box, "text": text, "attributes": [], "granularity": "region", **more}


def caption(text: str) -> dict[str, Any]:
    return region(text, (0.5, 0.5, 1.0, 1.0), granularity="image")


def row(number: int, *concepts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    captions = [c["text"] for c in concepts if c["granularity"] == "image"]
    return {
        "id": f"made/{number}",
        "source": "made",
        "split": "train",
        "image": {"bytes": encoded((40, 30), number), "path": None},
        "width": 40,
        "height": 30,
        "caption": captions[0] if captions else None,
        "concepts": list(concepts),
        **changes,
    }


@pytest.mark.parametrize("form", EXPORTS)
@settings(max_examples=12)
@given(rows=manifest_rows())
def test_a_round_trip_keeps_every_image_caption_box_and_text(
    form: str, rows: list[dict[str, Any]]
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wanted = write_rows(folder / "m.parquet", rows)
        done = EXPORTS[form](wanted, folder / "export")
        assert done.images == len(rows)
        found = import_back(form, folder / "export", folder / "again")
        same_rows(found, wanted)
        assert validate(found, decode=True).ok
        summary = found.summary or {}
        assert summary["rejects"] == 0
        assert summary["concepts"] == {
            name: sum(c["granularity"] == name for r in rows for c in r["concepts"])
            for name in ("image", "region", "object")
        }


@settings(max_examples=12)
@given(rows=manifest_rows())
def test_the_original_takes_every_line_that_is_written_for_it(rows: list[dict[str, Any]]) -> None:
    """What its two readers ask of a line: see `RegionTextJsonDataset` and its base."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        manifest = write_rows(folder / "m.parquet", rows)
        export_jsonl(manifest, folder / "out", integer_boxes=True, files=2)
        for path in sorted((folder / "out").rglob("*.jsonl")):
            for text in path.open(encoding="ascii"):
                line = json.loads(text)
                with Image.open(io.BytesIO(base64.b64decode(line["binary"]))) as image:
                    width, height = image.size
                assert ("captions" in path.parent.name) == ("caption" in line)
                assert ("regions" in path.parent.name) == ("elems" in line)
                for said in [line, *line.get("elems", [])]:
                    if "caption" in said:
                        assert said["caption"]  # `random.choice` of it, or it is the text
                for elem in line.get("elems", []):
                    assert elem.get("attributes", ["some"])
                    x, y, w, h = map(int, elem["bb"])
                    assert x >= 0 and y >= 0 and w > 0 and h > 0
                    assert x + w <= width and y + h <= height


def test_whole_pixels_cover_the_box_and_no_more() -> None:
    boxes = np.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.01, 0.01], [0.995, 0.995, 0.01, 0.01]])
    found = pixel_boxes(boxes, (100, 40), outwards=True)
    assert found.tolist() == [[25, 10, 50, 20], [49, 19, 2, 2], [99, 39, 1, 1]]


def test_the_originals_own_lines_are_read(tmp_path: Path) -> None:
    """As its users have them: texts or lists of texts, no ids, no granularity."""
    data = base64.b64encode(encoded((50, 40))).decode()
    lines = [
        {"binary": data, "caption": "one text"},
        {"binary": data, "caption": ["first", "second"]},
        {
            "binary": data,
            "caption": "all of it",
            "elems": [
                {"caption": "a man in red", "bb": [5, 8, 20, 16]},
                {"caption": ["dog", "puppy"], "attributes": "brown", "bb": [0, 0, 50, 40]},
                {"caption": "cat", "attributes": ["old", "grey"], "bb": [49.5, 39.5, 5, 5]},
                {"caption": "gone", "bb": [60, 60, 5, 5]},
                {"caption": "odd", "bb": [1, 2, 3]},
            ],
        },
        {"binary": "no picture", "caption": "x"},
        {"caption": "no picture at all"},
        [],
    ]
    folder = tmp_path / "vg"
    folder.mkdir()
    (folder / "part-00000").write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    (folder / "part-00001").write_text("".join(json.dumps(line) + "\n" for line in lines[3:]))
    (folder / "_SUCCESS").write_text("")
    found = import_back("xvlm-jsonl", folder, tmp_path / "m")
    rows = list(found)
    assert [r["caption"] for r in rows] == ["one text", "first", "all of it"]
    assert len({r["id"] for r in rows}) == 3
    said = [(c["granularity"], c["text"], c["attributes"]) for c in rows[2]["concepts"]]
    assert said == [
        ("image", "all of it", []),
        ("region", "a man in red", []),
        ("object", "dog", ["brown"]),
        ("object", "puppy", ["brown"]),
        ("object", "cat", ["old", "grey"]),
    ]
    boxes = [c["box"] for c in rows[2]["concepts"][1:]]
    np.testing.assert_allclose(boxes[0], [0.3, 0.4, 0.4, 0.4], atol=1e-6)
    np.testing.assert_allclose(boxes[3], [0.995, 0.99375, 0.01, 0.0125], atol=1e-6)  # clipped
    counts = (found.summary or {})["counts"]
    assert counts["regions"]["rejected"] == {"box_outside": 1, "malformed": 1}
    assert counts["images"] == {
        "raw": 6,
        "kept": 3,
        "filtered": {},
        "rejected": {"malformed": 2, "not_an_image": 1},
    }
    as_objects = import_back("xvlm-jsonl", folder, tmp_path / "o", elements="object")
    assert (as_objects.summary or {})["concepts"]["region"] == 0


def test_paths_in_lines_stay_below_the_image_root(tmp_path: Path) -> None:
    root = tmp_path / "images"
    write_image(root / "a.jpg", jpeg(100, 80))
    write_image(tmp_path / "secret.jpg", jpeg(10, 10))
    lines = [
        {"image": "a.jpg", "caption": "relative"},
        {"image": str(root / "a.jpg"), "elems": [{"caption": "absolute", "bb": [0, 0, 50, 40]}]},
        {"image": "../secret.jpg", "elems": [{"caption": "outside", "bb": [0, 0, 5, 4]}]},
        {"image": str(tmp_path / "secret.jpg"), "caption": "outside"},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = import_back(
        "xvlm-jsonl", tmp_path / "x.jsonl", tmp_path / "m", image_root=root, embed=False
    )
    assert [r["image"] for r in found] == [{"bytes": None, "path": str(root / "a.jpg")}] * 2
    assert found[1]["concepts"][0]["box"] == [0.25, 0.25, 0.5, 0.5]
    assert (found.summary or {})["counts"]["images"]["rejected"] == {"unsafe_path": 2}


@pytest.mark.parametrize("form", ["webdataset", "xvlm-jsonl"])
def test_a_picture_that_exif_turns_is_written_upright(form: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {"bytes": encoded((30, 20), exif=exif), "path": None}
    box = (0.75, 0.25, 0.5, 0.5)
    manifest = write_rows(
        tmp_path / "m.parquet", [row(1, region("x", box), image=turned, width=20, height=30)]
    )
    assert EXPORTS[form](manifest, tmp_path / "out").turned == 1
    (again,) = import_back(form, tmp_path / "out", tmp_path / "again")
    with Image.open(io.BytesIO(again["image"]["bytes"])) as image:
        assert image.size == (20, 30)
        assert not image.getexif()
    assert (again["width"], again["height"]) == (20, 30)
    np.testing.assert_allclose(again["concepts"][0]["box"], box, atol=1e-6)


def test_ranges_of_a_file_read_each_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xvlm_data.formats import importing, xvlm_jsonl_lines

    data = base64.b64encode(encoded((8, 8))).decode()
    lines = [json.dumps({"binary": data, "caption": f"text {n}"}) for n in range(40)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    whole = list(import_back("xvlm-jsonl", tmp_path / "x.jsonl", tmp_path / "whole"))
    assert [r["caption"] for r in whole] == [f"text {n}" for n in range(40)]
    for size in (1000, len(lines[0]) + 1):  # the second cuts at ends of lines
        monkeypatch.setattr(importing, "TASK_BYTES", size)
        monkeypatch.setattr(xvlm_jsonl_lines, "TASK_BYTES", size)
        found = import_back("xvlm-jsonl", tmp_path / "x.jsonl", tmp_path / str(size))
        assert len(found.shards) > 5
        assert list(found) == whole


def test_an_interrupted_import_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xvlm_data.formats import importing

    rows = [row(n, caption(f"text {n}")) for n in range(12)]
    export_webdataset(
        write_rows(tmp_path / "m.parquet", rows), tmp_path / "tars", archive_samples=3
    )
    monkeypatch.setattr(importing, "TASK_BYTES", 1)
    import_back("webdataset", tmp_path / "tars", tmp_path / "whole")
    write, written = importing._write_shard, []

    def dying(plan: Any, number: int) -> dict[str, Any]:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        return write(plan, number)

    monkeypatch.setattr(importing, "_write_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        import_back("webdataset", tmp_path / "tars", tmp_path / "cut")
    assert not (tmp_path / "cut/manifest.json").exists()
    written.append(-1)
    import_back("webdataset", tmp_path / "tars", tmp_path / "cut")
    assert written == [0, 1, -1, 2, 3]
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes(), path.name


def test_imports_are_the_same_in_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xvlm_data.formats import importing

    rows = [row(n, caption(f"text {n}"), region("r")) for n in range(8)]
    manifest = write_rows(tmp_path / "m.parquet", rows)
    export_webdataset(manifest, tmp_path / "tars", archive_samples=2)
    monkeypatch.setattr(importing, "TASK_BYTES", 1)
    one = import_back("webdataset", tmp_path / "tars", tmp_path / "one")
    with Processes(2) as engine:
        options = ImportOptions("again", embed=True)
        _import(
            "webdataset",
            [tmp_path / "tars"],
            tmp_path / "two",
            options,
            {},
            engine=engine,
            progress=Silent(),
        )
    assert list(open_manifest(tmp_path / "two")) == list(one)


def tar_of(path: Path, *members: tuple[tarfile.TarInfo | str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_members_of_a_hostile_archive_never_leave_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    write_image(secret, jpeg(10, 10))
    picture = encoded((8, 8))
    tar_of(
        tmp_path / "x.tar",
        ("../../escape.jpg", picture),
        ("../../escape.txt", b"out of here"),
        ("/abs/olute.jpg", picture),
        ("/abs/olute.txt", b"absolute"),
        (link("linked.jpg", str(secret), tarfile.SYMTYPE), b""),
        ("linked.txt", b"a link"),
        (link("hard.jpg", "/etc/passwd", tarfile.LNKTYPE), b""),
        (link("device.jpg", "", tarfile.CHRTYPE), b""),
        ("no-picture.txt", b"alone"),
        ("broken.jpg", picture[:50]),
        ("bad.json", b"{"),
        ("bad.jpg", picture),
    )
    before = set(tmp_path.rglob("*"))
    found = import_back("webdataset", tmp_path / "x.tar", tmp_path / "deep/er/m")
    after = {path for path in tmp_path.rglob("*") if "deep" not in path.parts}
    assert after == before
    rows = list(found)
    assert [r["caption"] for r in rows] == ["out of here", "absolute"]
    for one in rows:
        assert ".." not in one["image"]["path"]
        assert not one["image"]["path"].startswith("/")
        assert one["image"]["bytes"] == picture
    assert (found.summary or {})["counts"]["images"]["rejected"] == {
        "malformed": 1,
        "missing_image": 1,
        "not_a_file": 3,
        "not_an_image": 1,
    }


def test_archives_of_img2dataset_are_read(tmp_path: Path) -> None:
    meta = {"caption": "from json", "url": "https://example.org", "width": 8, "height": 8}
    tar_of(
        tmp_path / "00000.tar",
        ("000000000.jpg", encoded((8, 8))),
        ("000000000.json", json.dumps(meta).encode()),
        ("000000000.txt", b" from text "),
        ("000000001.json", json.dumps(meta).encode()),
        ("000000001.webp", encoded((8, 8), form="WEBP")),
        ("000000002.png", encoded((8, 8), form="PNG")),
    )
    found = import_back("webdataset", tmp_path, tmp_path / "m", licence="CC BY 4.0")
    assert [r["caption"] for r in found] == ["from text", "from json", None]
    assert found.info["licence"] == "CC BY 4.0"


def test_a_cut_archive_is_one_clear_line(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", ("a.jpg", encoded((200, 200))), ("b.jpg", b"x" * 5000))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"x\.tar: not a readable archive"):
        import_back("webdataset", path, tmp_path / "m")


def coco_of(root: Path) -> Path:
    """Two parts whose image ids are the same numbers, as annotation tools write them."""
    for part, colour in (("train", "red"), ("val", "blue")):
        images = [{"id": 1, "file_name": f"{part}.jpg", "width": 100, "height": 80}]
        instances = [
            {"id": 1, "image_id": 1, "bbox": [0, 0, 50, 40], "category_id": 7, "iscrowd": 0},
            {"id": 2, "image_id": 1, "bbox": [0, 0, 50, 40], "category_id": 7, "iscrowd": 1},
            {"id": 3, "image_id": 9, "bbox": [0, 0, 50, 40], "category_id": 7},
            {"id": 4, "image_id": 1, "bbox": [0, 0, 50, 40], "category_id": 8},
            {"id": 5, "image_id": 1, "bbox": [0, 0, 50, 40]},
        ]
        write_json(
            root / f"annotations/instances_{part}2017.json",
            {
                "images": images,
                "annotations": instances,
                "categories": [{"id": 7, "name": "tea/cup", "supercategory": "x"}],
            },
        )
        captions = [{"id": 1, "image_id": 1, "caption": f"the {part} one"}]
        write_json(
            root / f"annotations/captions_{part}2017.json",
            {"images": images, "annotations": captions},
        )
        write_image(root / f"images/{part}2017/{part}.jpg", jpeg(100, 80, colour))
    return root


def test_coco_files_of_others_are_read(tmp_path: Path) -> None:
    found = import_back("coco", coco_of(tmp_path / "raw"), tmp_path / "m", name="mine")
    rows = list(found)
    assert [r["id"] for r in rows] == ["mine/train2017/1", "mine/val2017/1"]
    assert [r["split"] for r in rows] == ["train", "val"]
    assert [r["caption"] for r in rows] == ["the train one", "the val one"]
    for one in rows:
        assert [c["text"] for c in one["concepts"][1:]] == ["tea/cup"]
        assert one["concepts"][1]["box"] == [0.25, 0.25, 0.5, 0.5]
    counts = (found.summary or {})["counts"]["objects"]
    assert counts["filtered"] == {"crowd": 2}
    assert counts["rejected"] == {"malformed": 2, "unknown_category": 2, "unknown_image": 2}
    assert validate(found, decode=True).ok


def opened(tmp_path: Path) -> Manifest:
    rows = [
        row(391895, caption("a man"), caption("someone"), region("a red hat")),
        row(
            7,
            region("dog", (0.3, 0.4, 0.2, 0.4), granularity="object", attributes=["brown"]),
            region("dog", (0.6, 0.4, 0.2, 0.4), granularity="object"),
            region("cat", (0.6, 0.5, 0.2, 0.4), granularity="object"),
        ),
    ]
    return write_rows(tmp_path / "m.parquet", rows)


def test_pycocotools_reads_what_is_written(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco").COCO
    export_coco(opened(tmp_path), tmp_path / "out")
    instances = coco(tmp_path / "out/annotations/instances.json")
    assert sorted(instances.getImgIds()) == [7, 391895]  # the ids of the release
    names = {c["name"]: c["id"] for c in instances.loadCats(instances.getCatIds())}
    assert sorted(names) == ["cat", "dog"]
    dogs = instances.loadAnns(instances.getAnnIds(imgIds=[7], catIds=[names["dog"]]))
    np.testing.assert_allclose(dogs[0]["bbox"], [8, 6, 8, 12], atol=1e-5)
    assert len(dogs) == 2
    image = instances.loadImgs([7])[0]
    with Image.open(tmp_path / "out/images" / image["file_name"]) as picture:
        assert picture.size == (image["width"], image["height"]) == (40, 30)
    captions = coco(tmp_path / "out/annotations/captions.json")
    found = captions.loadAnns(captions.getAnnIds(imgIds=[391895]))
    assert [a["caption"] for a in found] == ["a man", "someone"]
    regions = coco(tmp_path / "out/annotations/regions.json")
    (hat,) = regions.loadAnns(regions.getAnnIds())
    assert (hat["caption"], hat["image_id"]) == ("a red hat", 391895)


def test_the_webdataset_library_reads_what_is_written(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    manifest = opened(tmp_path)
    export_webdataset(manifest, tmp_path / "out", archive_samples=1)
    urls = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    assert len(urls) == 2
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    for sample, one in zip(samples, manifest, strict=True):
        assert sample["jpg"].size == (one["width"], one["height"])
        assert sample["json"]["concepts"] == one["concepts"]
        assert sample.get("txt") == one["caption"]


def test_references_are_exported_as_they_lie(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    write_image(root / "sub/a.jpg", jpeg(40, 30))
    image = {"bytes": None, "path": str(root / "sub/a.jpg")}
    manifest = write_rows(
        tmp_path / "m.parquet", [row(1, region("x"), image=image)], image_root=str(root)
    )
    export_coco(manifest, tmp_path / "coco")
    told = json.loads((tmp_path / "coco/annotations/instances.json").read_bytes())
    assert told["images"][0]["file_name"] == "sub/a.jpg"
    assert not (tmp_path / "coco/images").exists()
    again = import_back("coco", tmp_path / "coco", tmp_path / "c", image_root=root, embed=False)
    assert again[0]["image"] == image
    export_coco(manifest, tmp_path / "copied", images="copy")
    assert (tmp_path / "copied/images/000000000001.jpg").read_bytes() == jpeg(40, 30)
    export_jsonl(manifest, tmp_path / "lines", images="path")
    lines = import_back(
        "xvlm-jsonl", tmp_path / "lines", tmp_path / "l", image_root=root, embed=False
    )
    assert lines[0]["image"] == image


def test_exports_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    rows = [row(1, caption("x")), row(2, caption("y"), image={"bytes": None, "path": "/none.jpg"})]
    manifest = write_rows(tmp_path / "m.parquet", rows)
    for export in EXPORTS.values():
        with pytest.raises(UserError, match=r"made/2: /none\.jpg: no such file"):
            export(
                manifest, tmp_path / "out", **({"images": "copy"} if export is export_coco else {})
            )
        assert [path.name for path in tmp_path.iterdir()] == ["m.parquet"]
    done = export_webdataset(manifest, tmp_path / "out", on_broken="skip")
    assert (done.images, dict(done.left_out)) == (1, {"missing_image": 1})
    with pytest.raises(UserError, match="is there already"):
        export_webdataset(manifest, tmp_path / "out", on_broken="skip")
