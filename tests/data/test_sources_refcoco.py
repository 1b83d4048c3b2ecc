"""RefCOCO, RefCOCO+, RefCOCOg: expressions joined with boxes that another file holds."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.data.raw_releases import write_json
from tests.data.source_records import read_source
from tests.shared import shared_path
from xvlm_data.errors import UserError
from xvlm_data.raw.pickles import plain_text, read_pickle
from xvlm_data.records import QUESTION, REGION
from xvlm_data.sources import get_source
from xvlm_data.sources.base import Request
from xvlm_data.sources.references import REFS


def ref(number: int, split: str = "val", **more: Any) -> dict[str, Any]:
    sentences = [
        {"tokens": ["a"], "raw": f"The {w} #{number}", "sent": f"the {w} {number}", "sent_id": i}
        for i, w in enumerate(("man", "one"), 10 * number)
    ]
    return {
        "ref_id": number,
        "ann_id": 100 + number,
        "image_id": number,
        "split": split,
        "sentences": sentences,
        "sent_ids": [s["sent_id"] for s in sentences],
        "file_name": f"COCO_train2014_{number:012d}_16.jpg",
        "category_id": 1,
        **more,
    }


def release(
    root: Path, refs: list[Any], *, name: str = "refcoco", by: str = "unc", objects: Any = None
) -> Path:
    """The refs and an instances.json with object 100+n, box (n, 2, 30, 40), in image n."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    numbers = range(1, 10)
    if objects is None:
        objects = [
            {"id": 100 + n, "image_id": n, "bbox": [n, 2, 30, 40], "category_id": 1}
            for n in numbers
        ]
    document = {
        "images": [{"id": n, "width": 100, "height": 80, "file_name": "x"} for n in numbers],
        "annotations": objects,
        "categories": [{"id": 1, "name": "person"}],
    }
    write_json(folder / "instances.json", document)
    return root


def test_expressions_get_the_box_of_their_object(tmp_path: Path) -> None:
    refs = [ref(1, "train"), ref(2), ref(3), ref(4, "testA")]
    read = read_source("refcoco", release(tmp_path / "raw", refs), tmp_path / "r", "val")
    kept = [r for r in read.of_kind(REGION) if r["problem"] is None]
    assert [(r["text"], r["x"], r["y"], r["w"], r["h"], r["key"]) for r in kept] == [
        ("the man 2", 2, 2, 30, 40, 2),
        ("the one 2", 2, 2, 30, 40, 2),
        ("the man 3", 3, 2, 30, 40, 3),
        ("the one 3", 3, 2, 30, 40, 3),
    ]
    assert kept[1]["place"] == "[1].sentences[1]"
    assert [(r["id"], r["problem"], r["width"]) for r in read.images] == [
        ("refcoco/1", "other_split", 100),
        ("refcoco/2", None, 100),
        ("refcoco/3", None, 100),
        ("refcoco/4", "other_split", 100),
    ]
    assert read.images[0]["paths"] == ["train2014/COCO_train2014_000000000001.jpg"]
    assert read.extras(REFS)[0] == {
        "ref_id": 2,
        "ann_id": 102,
        "category": "person",
        "bbox": [2.0, 2.0, 30.0, 40.0],
        "sentences": [
            {"sent_id": 20, "text": "the man 2", "raw": "The man #2"},
            {"sent_id": 21, "text": "the one 2", "raw": "The one #2"},
        ],
    }
    assert {r["problem"] for r in read.annotations} == {None, "other_split"}


def test_of_an_image_in_two_splits_each_takes_its_own_objects(tmp_path: Path) -> None:
    objects = [{"id": i, "image_id": 1, "bbox": [0, 0, i, i], "category_id": 1} for i in (5, 6)]
    refs = [ref(1, "train", ann_id=5), ref(2, "val", ann_id=6, image_id=1)]
    root = release(tmp_path / "raw", refs, by="google", objects=objects)
    for split, width in (("train", 5), ("val", 6)):
        read = read_source("refcoco", root, tmp_path / split, f"google-{split}")
        assert [r["problem"] for r in read.images] == [None]
        widths = {r["w"] for r in read.of_kind(REGION) if r["problem"] is None}
        assert widths == {width}


def test_every_wrong_record_is_one_row_and_stops_nothing(tmp_path: Path) -> None:
    refs = [
        ref(1),
        ref(2, ann_id=999),
        ref(3, image_id=4),
        ref(5, ref_id="five"),
        "no reference",
        ref(6, sentences=[{"sent": "good", "sent_id": 1}, {"sent": 7}, None]),
        ref(7, sentences=3),
        ref(8, ann_id=2**70),
    ]
    read = read_source("refcoco", release(tmp_path / "raw", refs), tmp_path / "r", "val")
    questions = {r["place"]: (r["problem"], r["detail"]) for r in read.of_kind(QUESTION)}
    assert {place: problem for place, (problem, _) in questions.items()} == {
        "[0]": None,
        "[1]": "unknown_annotation",
        "[2]": "unknown_annotation",
        "[3]": "malformed",
        "[4]": "malformed",
        "[5]": None,
        "[6]": "malformed",
        "[7]": "malformed",
    }
    assert questions["[1]"][1] == "instances.json has no object 999"
    assert questions["[2]"][1] == "object 103 is of image 3"
    regions = [(r["place"], r["problem"]) for r in read.of_kind(REGION)]
    assert regions == [
        ("[0].sentences[0]", None),
        ("[0].sentences[1]", None),
        ("[1].sentences[0]", "unknown_annotation"),
        ("[1].sentences[1]", "unknown_annotation"),
        ("[2].sentences[0]", "unknown_annotation"),
        ("[2].sentences[1]", "unknown_annotation"),
        ("[3].sentences[0]", "malformed"),
        ("[3].sentences[1]", "malformed"),
        ("[5].sentences[0]", None),
        ("[5].sentences[1]", "malformed"),
        ("[5].sentences[2]", "malformed"),
        ("[7].sentences[0]", "malformed"),
        ("[7].sentences[1]", "malformed"),
    ]
    assert len(read.extras(REFS)[1]["sentences"]) == 1


def test_real_reference_without_instances_says_which_file_is_missing(tmp_path: Path) -> None:
    root = shared_path("fixtures/refcoco")
    with pytest.raises(UserError, match=r"instances\.json: no such file, and refs\(unc\)\.p holds"):
        read_source("refcoco", root, tmp_path)


def test_real_reference_with_its_object_from_coco(tmp_path: Path) -> None:
    excerpt = shared_path("fixtures/refcoco/refcoco")
    (truth,) = json.loads((excerpt / "refs_unc.json_view.json").read_text())
    root = tmp_path / "refcoco"
    (root / "refcoco").mkdir(parents=True)
    (root / "refcoco/refs(unc).p").write_bytes((excerpt / "refs(unc).p").read_bytes())
    box = {"id": truth["ann_id"], "image_id": truth["image_id"], "bbox": [1.5, 2, 3, 4]}
    document = {
        "images": [{"id": truth["image_id"], "width": 640, "height": 480}],
        "annotations": [box | {"category_id": truth["category_id"]}],
        "categories": [{"id": 1, "name": "person"}],
    }
    write_json(tmp_path / "coco/annotations/instances_train2014.json", document)
    (tmp_path / "coco/train2014").mkdir()
    read = read_source("refcoco", root, tmp_path / "r")
    assert [r["text"] for r in read.of_kind(REGION)] == [s["sent"] for s in truth["sentences"]]
    (element,) = read.extras(REFS)
    assert [s["raw"] for s in element["sentences"]] == [s["raw"] for s in truth["sentences"]]
    assert element["bbox"] == [1.5, 2, 3, 4]
    assert read.inputs == ["refs(unc).p", "instances_train2014.json"]


@pytest.mark.parametrize("name", ["train2014", "images/train2014", "train2017"])
def test_images_beside_the_release_are_found(tmp_path: Path, name: str) -> None:
    root = release(tmp_path / "refcoco", [ref(1)])
    (tmp_path / "coco" / name).mkdir(parents=True)
    source: Any = get_source("refcoco")
    request = Request(root, "val", lambda name, size: None)  # type: ignore[arg-type,return-value]
    assert source.image_root(request) == (tmp_path / "coco").resolve()
    read = read_source("refcoco", root, tmp_path / "r", "val")
    number = "000000000001.jpg"
    file = number if name == "train2017" else f"COCO_train2014_{number}"
    assert read.images[0]["paths"] == [f"{name}/{file}"]


def test_the_three_are_not_mixed_up(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for name, by in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        sentence = {"sent": f"of {name}", "sent_id": 1}
        release(root, [ref(1, sentences=[sentence])], name=name, by=by)
    for name in ("refcoco", "refcoco+", "refcocog"):
        for place in (root, root / name):
            read = read_source(name, place, tmp_path / "r" / name / place.name, "val")
            assert [r["text"] for r in read.of_kind(REGION)] == [f"of {name}"]
            assert read.images[0]["id"] == f"{name}/1"
    with pytest.raises(UserError, match="no list of references"):
        read_source("refcoco+", root / "refcoco", tmp_path / "x", "val")


def test_a_split_that_the_file_has_not(tmp_path: Path) -> None:
    root = release(tmp_path / "raw", [ref(1), ref(2, "train")])
    with pytest.raises(UserError, match="no split 'test'; choose from train, val"):
        read_source("refcoco", root, tmp_path / "r", "test")
    with pytest.raises(UserError, match=r"refs\(google\)\.p"):
        read_source("refcoco", root, tmp_path / "r2", "google-val")


# What Python 2 wrote: byte strings (S'…'), here UTF-8, Latin-1 and a unicode one.
PYTHON_2 = (
    b"(lp0\n(dp1\nS'ref_id'\nI1\nsS'ann_id'\nL101L\nsS'image_id'\nI1\nsS'split'\nS'val'\n"
    b"sS'sentences'\n(lp2\n(dp3\nS'sent'\nS'caf\\xc3\\xa9'\nsS'sent_id'\nI10\nsa"
    b"(dp4\nS'sent'\nS'caf\\xe9'\nsS'sent_id'\nI11\nsa"
    b"(dp5\nS'sent'\nVcaf\\u00e9\nsS'sent_id'\nI12\nsasa."
)


def test_pickles_of_python_2_in_any_encoding(tmp_path: Path) -> None:
    root = release(tmp_path / "raw", [])
    (root / "refcoco/refs(unc).p").write_bytes(PYTHON_2)
    read = read_source("refcoco", root, tmp_path / "r", "val")
    assert [r["text"] for r in read.of_kind(REGION)] == ["café"] * 3


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    root = release(tmp_path / "raw", [])
    data = pickle.dumps([ref(1, more=Evil(tmp_path / "ran"))], protocol=protocol)
    (root / "refcoco/refs(unc).p").write_bytes(data)
    with pytest.raises(UserError, match="wants to load"):
        read_source("refcoco", root, tmp_path / "r", "val")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps([1, 2], protocol=2)[:-3],
        b"\x80\x02q\xff.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of 2 GiB that is not there
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of 8 EiB
        b"\x80\x02Pabc\n.",
        b"hello",
    ],
)
def test_a_damaged_pickle_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.p"
    path.write_bytes(data)
    with pytest.raises(UserError, match="not a pickle of plain data"):
        read_pickle(path)


def test_texts_of_pickles_are_always_unicode() -> None:
    for text in ("plain", "caf\u00e9", "caf\udce9", "lone \ud800 one"):
        plain_text(text).encode("utf-8")
    assert plain_text("caf\udce9") == "café"


def test_real_google_release(tmp_path: Path) -> None:
    root = shared_path("fixtures/refcocog_google")
    truth = json.loads(next(root.glob("google_refexp_val*.json")).read_text())
    read = read_source("refcocog", root, tmp_path / "r", "google-val")
    assert [(r["id"], r["width"], r["height"]) for r in read.images] == [
        ("refcocog/546154", 640, 480)
    ]
    regions = read.of_kind(REGION)
    assert len(regions) == 4
    for region in regions:
        expression = truth["refexps"][str(region["annotation_id"])]
        assert region["text"] == expression["raw"]
        (owner,) = (
            a for a in truth["annotations"].values() if region["annotation_id"] in a["refexp_ids"]
        )
        assert [region[side] for side in "xywh"] == owner["bbox"]
    names = {c["id"]: c["name"] for c in truth["categories"]}
    assert {(e["ann_id"], e["category"]) for e in read.extras(REFS)} == {
        (int(number), names[a["category_id"]]) for number, a in truth["annotations"].items()
    }


def test_the_google_release_is_pointed_to_where_it_is_all_there_is(tmp_path: Path) -> None:
    root = shared_path("fixtures/refcocog_google")
    with pytest.raises(UserError, match="--split google-val"):
        read_source("refcocog", root, tmp_path, "val")


def google(root: Path, **changes: Any) -> Path:
    document = {
        "images": {"1": {"width": 10, "height": 8, "image_id": 1}},
        "annotations": {
            "5": {"image_id": 1, "bbox": [0, 1, 2, 3], "category_id": 1, "refexp_ids": [7]}
        },
        "refexps": {"7": {"raw": "the man", "tokens": []}},
        "categories": [{"id": 1, "name": "person"}],
    } | changes
    write_json(root / "google_refexp_val_201511_coco_aligned_catg.json", document)
    return root


def test_wrong_records_of_the_google_release(tmp_path: Path) -> None:
    good = {"image_id": 1, "bbox": [0, 1, 2, 3], "category_id": 1}
    root = google(
        tmp_path / "raw",
        images={"1": {"width": 10, "height": 8}, "2": {"width": "wide"}, "x": {}},
        annotations={
            "5": good | {"refexp_ids": [7, 8, 99]},
            "6": good | {"refexp_ids": None},
            "y": good | {"refexp_ids": []},
        },
        refexps={"7": {"raw": "the man"}, "8": {"raw": 8}, "9": {"raw": "nobody's"}},
        categories=[{"id": 1, "name": "person"}, {"id": "?"}],
    )
    read = read_source("refcocog", root, tmp_path / "r", "google-val")
    assert [r["problem"] for r in read.images] == ["malformed", None, "malformed"]
    assert [(r["index"], r["problem"]) for r in read.of_kind(REGION)] == [
        (7, None),
        (8, "malformed"),
        (9, "unknown_annotation"),
        (99, "malformed"),
    ]
    # In the order of their places; a key that is no number has none.
    assert [r["problem"] for r in read.of_kind(QUESTION)] == ["malformed", None, "malformed"]


@pytest.mark.parametrize("data", [b"[]", b'{"images": {}}', b'{"images": {"1": {', b"\xff\xfd{}"])
def test_what_is_no_google_release(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "google_refexp_val_201511_coco_aligned_catg.json").write_bytes(data)
    with pytest.raises(UserError, match="not the Google release"):
        read_source("refcocog", tmp_path, tmp_path / "r", "google-val")
