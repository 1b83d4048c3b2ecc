"""Annotation files of other people's tools in COCO's layout, made into manifests."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from xvlm_data.engines import Inline, Processes
from xvlm_data.errors import UserError
from xvlm_data.formats import command
from xvlm_data.formats.coco import export_coco
from xvlm_data.formats.coco_parts import annotation_files, find_parts
from xvlm_data.formats.importing import ImportOptions
from xvlm_data.inspect.validate import validate
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.sources.base import Request

from .inspect_manifests import png, row, write
from .raw_releases import Silent, box, caption, jpeg, write_image, write_json

RED, BLUE = (254, 0, 0), (0, 0, 254)


def import_files(out: Path, *paths: Path, engine: Any = None, **options: Any) -> Manifest:
    """What `xvlm-data import --from coco` makes of some paths; its counts add up and ids differ."""
    command._import(
        "coco",
        list(paths),
        out,
        ImportOptions(**{"name": "mine"} | options),
        {},
        engine=engine or Inline(),
        progress=Silent(),
    )
    found = open_manifest(out)
    summary = found.summary or {}
    for counts in summary["counts"].values():
        left_out = sum(counts["filtered"].values()) + sum(counts["rejected"].values())
        assert counts["raw"] == counts["kept"] + left_out
    assert pq.read_table(out / "rejects.parquet").num_rows == summary["rejects"]
    ids = [r["id"] for r in found]
    assert len(set(ids)) == len(ids)
    return found


def image(number: Any, name: str) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": 100, "height": 80}


def listing(
    path: Path, names: Sequence[str], texts: str = "{}", first: int = 0, category: str = "thing"
) -> Path:
    """A file of some pictures, numbered from ``first``, each with one box or one caption."""
    images = [image(first + place, name) for place, name in enumerate(names)]
    if path.stem.startswith("captions"):
        said = [
            caption(place, first + place, texts.format(name)) for place, name in enumerate(names)
        ]
    else:
        said = [box(place, first + place, [10, 10, 50, 40]) for place in range(len(names))]
    categories = [{"id": 0, "name": "all"}, {"id": 1, "name": category}]
    return write_json(path, {"images": images, "annotations": said, "categories": categories})


def said(manifest: Manifest) -> dict[str, list[str]]:
    return {r["id"]: [c["text"] for c in r["concepts"]] for r in manifest}


def colour(found: dict[str, Any]) -> tuple[int, ...]:
    data = found["image"]["bytes"] or Path(found["image"]["path"]).read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        pixel = picture.getpixel((5, 5))
    assert isinstance(pixel, tuple)
    return pixel


def roboflow(root: Path) -> list[Path]:
    """An export of Roboflow: a folder a split, ids from 0 in each; here with the same names."""
    files = []
    for split, names, tint in (("train", "abc", "red"), ("valid", "ab", "blue")):
        for name in names:
            write_image(root / split / f"{name}.jpg", jpeg(100, 80, tint))
        names_here = [f"{name}.jpg" for name in names]
        path = root / split / "_annotations.coco.json"
        files.append(listing(path, names_here, category=f"{split} thing"))
    return files


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("embed", [True, False])
def test_folders_of_roboflow_are_images_of_their_own(
    tmp_path: Path, given: bool, embed: bool
) -> None:
    files = roboflow(tmp_path / "rf")
    root = tmp_path / "rf" if given else None
    found = import_files(tmp_path / "m", *files, image_root=root, embed=embed)
    assert said(found) == {
        "mine/train/0": ["train thing"],
        "mine/train/1": ["train thing"],
        "mine/train/2": ["train thing"],
        "mine/valid/0": ["valid thing"],
        "mine/valid/1": ["valid thing"],
    }
    assert [r["split"] for r in found] == ["train"] * 3 + ["valid"] * 2
    assert [colour(r) for r in found] == [RED] * 3 + [BLUE] * 2
    assert validate(found, decode=True).ok
    assert (found.summary or {})["notes"] == [
        "the files are of 2 sets of images, whose ids begin with mine/train/, mine/valid/"
    ]


def test_one_folder_alone_needs_no_name_in_its_ids(tmp_path: Path) -> None:
    files = roboflow(tmp_path / "rf")
    found = import_files(tmp_path / "m", files[1], split="val")
    assert [r["id"] for r in found] == ["mine/0", "mine/1"]
    assert {r["split"] for r in found} == {"val"}


def test_tasks_of_cvat_are_images_of_their_own(tmp_path: Path) -> None:
    """Each has the same file names, ids from 1 and its pictures in a folder of its own."""
    for task, tint in (("one", "red"), ("two", "blue")):
        folder = tmp_path / "cvat" / task
        write_image(folder / "images/default/frame_0.jpg", jpeg(100, 80, tint))
        listing(
            folder / "annotations/instances_default.json", ["frame_0.jpg"], first=1, category=task
        )
        listing(
            folder / "annotations/captions_default.json", ["frame_0.jpg"], f"of {task}", first=1
        )
    tasks = [tmp_path / "cvat/one", tmp_path / "cvat/two"]
    found = import_files(tmp_path / "m", *tasks)
    assert said(found) == {"mine/one/1": ["of one", "one"], "mine/two/1": ["of two", "two"]}
    assert [colour(r) for r in found] == [RED, BLUE]
    assert {r["split"] for r in found} == {"train"}  # folders that are no splits say nothing of it
    again = import_files(tmp_path / "again", *tasks[:1])
    assert list(said(again)) == ["mine/1"]
    write_image(tmp_path / "moved/one/frame_0.jpg", jpeg(100, 80, "red"))
    write_image(tmp_path / "moved/two/frame_0.jpg", jpeg(100, 80, "blue"))
    moved = import_files(tmp_path / "n", *tasks, image_root=tmp_path / "moved")
    assert [colour(r) for r in moved] == [RED, BLUE]


def test_without_an_image_root_nothing_outside_the_folders_is_opened(tmp_path: Path) -> None:
    one = listing(tmp_path / "a/instances_x.json", ["mine.jpg", "b/theirs.jpg", "common.jpg"])
    two = listing(tmp_path / "b/instances_x.json", ["theirs.jpg"])
    for place in ("a/mine.jpg", "b/theirs.jpg", "common.jpg"):
        write_image(tmp_path / place, jpeg(100, 80))
    found = import_files(tmp_path / "m", one, two)
    assert list(said(found)) == ["mine/a/0", "mine/b/0"]
    assert (found.summary or {})["counts"]["images"]["rejected"] == {"missing_image": 2}


def test_a_second_picture_of_an_id_is_a_reject(tmp_path: Path) -> None:
    images = [image(1, "a.jpg"), image(1, "b.jpg"), image(2, "c.jpg")]
    for name in "abc":
        write_image(tmp_path / f"{name}.jpg", jpeg(100, 80))
    content = {
        "images": images,
        "annotations": [box(1, 1, [10, 10, 50, 40]), box(2, 2, [10, 10, 50, 40])],
        "categories": [{"id": 1, "name": "thing"}],
    }
    found = import_files(tmp_path / "m", write_json(tmp_path / "instances.json", content))
    assert said(found) == {"mine/1": ["thing"], "mine/2": ["thing"]}
    assert found[0]["image"]["path"] == str(tmp_path / "a.jpg")
    assert (found.summary or {})["counts"]["images"]["rejected"] == {"duplicate_image": 1}
    (reject,) = pq.read_table(tmp_path / "m/rejects.parquet").to_pylist()
    assert (reject["location"], reject["reason"]) == ("images[1]", "duplicate_image")


@pytest.mark.parametrize("processes", [False, True])
def test_files_of_one_part_are_one_only_where_the_pictures_are(
    tmp_path: Path, processes: bool
) -> None:
    """What a file says of another picture must not be said of the one that has its id."""
    names = [f"{n}.jpg" for n in range(6)]
    for name in [*names, "other.jpg", "more.jpg"]:
        write_image(tmp_path / name, jpeg(100, 80))
    listing(tmp_path / "captions_x.json", names)
    listing(tmp_path / "instances_x.json", [*names[:4], "other.jpg", names[5], "more.jpg"])
    if processes:
        with Processes(2) as engine:
            found = import_files(tmp_path / "m", tmp_path, engine=engine)
    else:
        found = import_files(tmp_path / "m", tmp_path)
    wanted = {f"mine/{n}": [f"{n}.jpg", "thing"] for n in range(6)}
    assert said(found) == wanted | {"mine/4": ["4.jpg"], "mine/6": ["thing"]}
    counts = (found.summary or {})["counts"]
    assert counts["images"]["rejected"] == {"duplicate_image": 1}
    assert counts["objects"]["rejected"] == {"unknown_image": 1}
    rejects = pq.read_table(tmp_path / "m/rejects.parquet").to_pylist()
    assert {(r["source_file"], r["location"], r["message"]) for r in rejects} == {
        ("instances_x.json", "images[4]", "another file has id 4 for another file_name"),
        ("instances_x.json", "annotations[4] id=4", "image 4 of this file was left out"),
    }


def test_files_of_any_name_are_parts_where_their_pictures_differ(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        for name in "ab":
            write_image(tmp_path / f"{folder}/{folder}_{name}.jpg", jpeg(100, 80))
    files = [
        listing(
            tmp_path / f"{folder}.json",
            [f"{folder}_a.jpg", f"{folder}_b.jpg"],
            category=folder,
        )
        for folder in ("train", "val")
    ]
    more = listing(tmp_path / "more_of_val.json", ["val_a.jpg"], category="more")
    found = import_files(tmp_path / "m", *files, more)
    assert {id_: sorted(texts) for id_, texts in said(found).items()} == {
        "mine/train/0": ["train"],
        "mine/train/1": ["train"],
        "mine/val/0": ["more", "val"],
        "mine/val/1": ["val"],
    }
    assert [r["split"] for r in found] == ["train", "train", "val", "val"]


def test_files_of_any_name_are_one_where_their_pictures_are_the_same(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", jpeg(100, 80))
    one = listing(tmp_path / "boxes.json", ["a.jpg"])
    two = listing(tmp_path / "captions.json", ["a.jpg"])
    assert said(import_files(tmp_path / "m", one, two)) == {"mine/0": ["a.jpg", "thing"]}


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", jpeg(100, 80))
    file = listing(tmp_path / "annotations/instances_x.json", ["a.jpg"])
    link = tmp_path / "linked"
    link.symlink_to(tmp_path / "annotations")
    paths = [tmp_path, file, tmp_path / "annotations/../annotations", link]
    found = import_files(tmp_path / "m", *paths)
    assert said(found) == {"mine/0": ["thing"]}
    assert (found.summary or {})["counts"]["objects"]["raw"] == 1


LAYOUTS = {
    "official": (
        [
            *("annotations/instances_train2017", "annotations/captions_train2017"),
            *("annotations/instances_val2017", "annotations/captions_val2017"),
        ],
        [("train2017", "train"), ("val2017", "val")],
    ),
    "alone": (["annotations/instances_train2017"], [("", None)]),
    "one split, two folders": (["a/instances_val", "b/instances_val"], [("a", None), ("b", None)]),
    "both": (
        ["a/instances_train", "a/instances_val", "b/instances_train", "b/instances_val"],
        [("a/train", "train"), ("a/val", "val"), ("b/train", "train"), ("b/val", "val")],
    ),
    "official and others": (
        ["coco/instances_train2017", "coco/instances_val2017", "a/x", "b/x"],
        [("train2017", "train"), ("val2017", "val"), ("a", None), ("b", None)],
    ),
    "deep": (
        ["sets/a/test/annotations/x", "sets/b/test/annotations/x"],
        [("a", None), ("b", None)],
    ),
    "one in the other": (
        ["x", "in/x", "in/in/x"],
        [("root", None), ("root/in", None), ("root/in/in", None)],
    ),
    "a folder called as a suffix": (
        ["instances_a", "a/instances", "b/instances"],
        [("a", "a"), ("root/a", None), ("root/b", None)],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_name_what_differs(tmp_path: Path, layout: str) -> None:
    files, wanted = LAYOUTS[layout]
    paths = [
        listing(tmp_path / f"root/{file}.json", [f"{Path(file).parent}{file[-4:]}.jpg"])
        for file in files
    ]
    request = Request(tmp_path, "train", Silent().reading)
    found = find_parts(annotation_files(paths), "mine", request)
    assert [(part.label, part.split) for part in found.parts] == wanted


def exported(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    export_coco(open_manifest(write(folder / "m.parquet", list(rows))), folder / "coco")
    return folder / "coco"


def test_ids_of_manifests_stay_where_they_tell_images_apart(tmp_path: Path) -> None:
    one = exported(tmp_path / "1", row(1), row(2))
    two = exported(tmp_path / "2", row(1, id="theirs/1", source="theirs"))
    found = import_files(tmp_path / "m", one, two)
    assert [(r["id"], r["source"]) for r in found] == [
        ("made/1", "made"),
        ("made/2", "made"),
        ("theirs/1", "theirs"),
    ]
    assert (found.summary or {})["notes"] == []
    black = {"bytes": png(colour="black"), "path": None}
    three = exported(tmp_path / "3", row(2, image=black))
    both = import_files(tmp_path / "n", one, three)
    assert [r["id"] for r in both] == ["mine/1/1", "mine/1/2", "mine/3/2"]
    assert colour(both[2]) != colour(both[1])
    assert {r["source"] for r in both} == {"mine"}
    assert any("ids are made anew" in note for note in (both.summary or {})["notes"])


def test_repeated_ids_of_an_export_are_told(tmp_path: Path) -> None:
    folder = exported(tmp_path / "1", row(1), row(1, caption="another"), row(2))
    out = tmp_path / "m"
    options = ImportOptions("mine")
    command._import("coco", [folder], out, options, {}, engine=Inline(), progress=Silent())
    found = open_manifest(out)
    assert [r["id"] for r in found] == ["made/1", "made/1", "made/2"]
    assert (found.summary or {})["notes"] == [
        "1 images have the id of another one: `xvlm-data merge --on-repeat first` keeps one of each"
    ]


def of_pandas(value: Any) -> Any:
    """What `DataFrame.to_json` makes of integers in columns that have lacked one."""
    if isinstance(value, dict):
        return {key: of_pandas(v) for key, v in value.items()}
    if isinstance(value, list):
        return [of_pandas(v) for v in value]
    return float(value) if isinstance(value, int) else value


def test_numbers_and_crowds_mean_what_they_say(tmp_path: Path) -> None:
    content = {
        "images": [image(n, f"{n}.jpg") for n in range(3)],
        "annotations": [
            box(1, 0, [10, 10, 50, 40]),
            box(2, 1, [10, 10, 50, 40], iscrowd=1),
            box(3, 1, [10, 10, 20, 40]),
            {"id": 4, "image_id": 2, "caption": "two"},
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    for n in range(3):
        write_image(tmp_path / f"{n}.jpg", jpeg(100, 80))
    plain = import_files(
        tmp_path / "plain", write_json(tmp_path / "a/x.json", content), image_root=tmp_path
    )
    assert said(plain) == {"mine/0": ["thing"], "mine/1": ["thing"], "mine/2": ["two"]}
    floats = write_json(tmp_path / "b/x.json", of_pandas(content))
    assert "100.0" in floats.read_text()
    assert list(import_files(tmp_path / "floats", floats, image_root=tmp_path)) == list(plain)
    for crowd, no_crowd in ((True, False), (1.0, None), (1, 0.0), (2, float("nan"))):
        for one in content["annotations"]:
            if "iscrowd" in one:
                one["iscrowd"] = crowd if one["id"] == 2 else no_crowd
        file = write_json(tmp_path / "c/x.json", content)
        found = import_files(tmp_path / f"m{crowd}", file, image_root=tmp_path)
        assert list(found) == list(plain)
        assert (found.summary or {})["counts"] == (plain.summary or {})["counts"]
    assert (plain.summary or {})["counts"]["objects"]["filtered"] == {"crowd": 1}


def test_numbers_that_are_none_are_rejects(tmp_path: Path) -> None:
    content = {
        "images": [
            image(1, "a.jpg") | {"width": None, "height": None},
            image(2.5, "b.jpg"),
            image(1e300, "c.jpg"),
            image(True, "d.jpg"),
            image(2**48, "e.jpg"),
        ],
        "annotations": [
            box(1, 1, [10, 10, 50, 40]),
            box(2, 1, [10, 10, 50, 40], iscrowd="no"),
            box(3, 1.5, [10, 10, 50, 40]),  # type: ignore[arg-type]
            box(4, 2, [10, 10, 50, 40]),
            box(5, 1, [10, 10, 50, 40], category_id=1.5),
            box(6.5, 1, [10, 10, 20, 40]),  # type: ignore[arg-type]
            box(7, 1e300, [10, 10, 50, 40]),  # type: ignore[arg-type]
        ],
        "categories": [{"id": 1.0, "name": "thing"}, {"id": 1e300, "name": "far"}],
    }
    write_image(tmp_path / "a.jpg", jpeg(100, 80))
    found = import_files(tmp_path / "m", write_json(tmp_path / "x.json", content))
    assert said(found) == {"mine/1": ["thing", "thing"]}
    assert (found[0]["width"], found[0]["height"]) == (100, 80)  # the picture tells
    counts = (found.summary or {})["counts"]
    assert counts["images"]["rejected"] == {"malformed": 4}
    assert counts["objects"]["rejected"] == {
        "malformed": 3,
        "unknown_image": 2,
    }


def test_paths_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        annotation_files([tmp_path / "none.json"])
    write_json(tmp_path / "other.json", json.loads("{}"))
    with pytest.raises(UserError, match=r"no instances\*\.json, captions\*\.json"):
        annotation_files([tmp_path])
