"""Flickr30K: Karpathy's captions, and Entities, whose boxes are counted from 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.raw_releases import write_json
from tests.data.source_records import read_source
from tests.shared import shared_path
from xvlm_data.errors import UserError
from xvlm_data.records import CAPTION, QUESTION, REGION
from xvlm_data.sources.flickr30k_entities import PHRASES, parse_phrases, read_boxes

LINE = "[/EN#1/people Two men] in [/EN#2/clothing/other red hats] see [/EN#0/notvisual it] ."


def picture(number: int, split: str = "train", raw: str = "Two men .") -> dict[str, Any]:
    sentence = {"tokens": [], "raw": raw, "imgid": 0, "sentid": 5 * number}
    return {"filename": f"{number}.jpg", "split": split, "sentences": [sentence], "imgid": 0}


def drawn(chains: list[int], corners: list[Any]) -> str:
    names = "".join(f"<name>{chain}</name>" for chain in chains)
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    return (
        f"<object>{names}<bndbox>"
        + "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        + "</bndbox></object>"
    )


def not_drawn(chain: int, scene: int = 0) -> str:
    flags = f"<scene>{scene}</scene><nobndbox>1</nobndbox>"
    return f"<object><name>{chain}</name>{flags}</object>"


def annotation(*objects: str) -> str:
    size = "<size><width>500</width><height>375</height><depth>3</depth></size>"
    return f"<annotation><filename>1.jpg</filename>{size}{''.join(objects)}</annotation>"


def release(
    root: Path,
    pictures: list[Any],
    sentences: dict[int, str] | None = None,
    boxes: dict[int, str] | None = None,
) -> Path:
    write_json(root / "dataset_flickr30k.json", {"images": pictures, "dataset": "flickr30k"})
    if sentences is not None:
        (root / "Sentences").mkdir()
        (root / "Annotations").mkdir()
        for number, text in sentences.items():
            (root / f"Sentences/{number}.txt").write_text(text)
        for number, text in (boxes or {}).items():
            (root / f"Annotations/{number}.xml").write_text(text)
    return root


def test_real_record(tmp_path: Path) -> None:
    root = shared_path("fixtures/flickr30k")
    (truth,) = json.loads((root / "dataset_flickr30k.json").read_text())["images"]
    read = read_source("flickr30k", root, tmp_path / "r")
    assert [r["text"] for r in read.annotations] == [s["raw"] for s in truth["sentences"]]
    assert [(r["id"], r["key"]) for r in read.images] == [("flickr30k/1000092795", 1000092795)]
    assert any("no Flickr30K Entities" in note for note in read.notes)
    read = read_source("flickr30k", root, tmp_path / "r2", "test")
    assert [r["problem"] for r in read.images] == ["other_split"]


def test_a_phrase_is_a_region_and_keeps_all_its_boxes(tmp_path: Path) -> None:
    xml = annotation(
        drawn([1], [1, 1, 100, 200]),
        drawn([1, 3], [301, 11, 500, 375]),
        drawn([2], [51, 61, 51, 61]),
    )
    root = release(tmp_path / "raw", [picture(7)], {7: LINE + "\nNothing .\n"}, {7: xml})
    read = read_source("flickr30k", root, tmp_path / "r")
    assert [(r["text"], r["x"], r["y"], r["w"], r["h"]) for r in read.of_kind(REGION)] == [
        ("Two men", 0, 0, 500, 375),  # around both
        ("red hats", 50, 60, 1, 1),  # one pixel, from 1-based 51 to 51
    ]
    assert read.extras(PHRASES) == [
        {
            "sentence": 0,
            "chain": "1",
            "types": ["people"],
            "text": "Two men",
            "boxes": [[0, 0, 100, 200], [300, 10, 200, 365]],
        },
        {
            "sentence": 0,
            "chain": "2",
            "types": ["clothing", "other"],
            "text": "red hats",
            "boxes": [[50, 60, 1, 1]],
        },
        {"sentence": 0, "chain": "0", "types": ["notvisual"], "text": "it", "boxes": []},
    ]
    assert [(r["width"], r["height"]) for r in read.images] == [(500, 375)]
    assert [r["text"] for r in read.of_kind(CAPTION)] == ["Two men ."]
    assert "Entities: 1 phrases without box: not to be seen" in read.notes


def test_what_was_not_drawn_is_counted_and_no_reject(tmp_path: Path) -> None:
    xml = annotation(not_drawn(1, scene=1), not_drawn(2))
    root = release(tmp_path / "raw", [picture(7)], {7: LINE}, {7: xml})
    read = read_source("flickr30k", root, tmp_path / "r")
    assert read.of_kind(REGION) == []
    assert [r["problem"] for r in read.of_kind(QUESTION)] == [None] * 3
    assert "Entities: 2 phrases without box: a scene or not drawn" in read.notes


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "x"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<annotation><object><name>1</name></object>&b;</annotation>"
)
OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]>'
    "<annotation><size><width>&f;</width></size></annotation>"
)


@pytest.mark.parametrize(
    ("xml", "problem", "why"),
    [
        (None, "unknown_annotation", "no Annotations/7.xml"),
        ("<annotation><object>", "malformed", "no element found"),
        ("", "malformed", "no element found"),
        (BOMB, "malformed", "document type"),
        (OUTSIDE, "malformed", "document type"),
        (annotation(drawn([1], [1, 1, "wide", 9])), "malformed", "no box of chain 1: '1 1 wide 9'"),
        (annotation(drawn([1], [1, 1, "nan", 9])), "malformed", "no box of chain 1"),
        ("x" * (5 << 20), "unknown_annotation", "no Annotations/7.xml"),
    ],
)
def test_wrong_boxes_cost_the_phrases_that_need_them(
    tmp_path: Path, xml: str | None, problem: str, why: str
) -> None:
    boxes = {} if xml is None else {7: xml}
    root = release(tmp_path / "raw", [picture(7)], {7: LINE}, boxes)
    read = read_source("flickr30k", root, tmp_path / "r")
    first = read.of_kind(REGION)[0]
    assert (first["problem"], first["place"]) == (problem, "7.txt phrase 0")
    assert why in first["detail"]
    assert read.of_kind(QUESTION)[2]["problem"] is None  # chain 0 needs no box
    assert [r["problem"] for r in read.of_kind(CAPTION)] == [None]


def test_a_mark_that_does_not_parse_is_told(tmp_path: Path) -> None:
    line = "[/EN#1/people A man] [/EN#x/other odd] and [/EN#2/other cut"
    xml = annotation(drawn([1], [1, 1, 2, 2]))
    root = release(tmp_path / "raw", [picture(7)], {7: line}, {7: xml})
    read = read_source("flickr30k", root, tmp_path / "r")
    assert [r["problem"] for r in read.of_kind(REGION)] == [None, "malformed", "malformed"]
    assert "'[/EN#x/other odd]" in read.of_kind(REGION)[1]["detail"]


_WORDS = st.text(alphabet="ab ,.'é", min_size=1, max_size=6)
_TYPE = st.sampled_from(["people", "clothing", "bodyparts", "other"])


@given(
    st.lists(
        st.tuples(
            _WORDS, st.integers(0, 10**6), st.lists(_TYPE, min_size=1, max_size=3, unique=True)
        ),
        max_size=5,
    ),
    _WORDS,
)
def test_phrases_are_read_back_from_the_markup(
    phrases: list[tuple[str, int, list[str]]], between: str
) -> None:
    marks = [f"[/EN#{chain}/{'/'.join(types)} {words}]" for words, chain, types in phrases]
    parsed = parse_phrases(between.join(["", *marks, ""]), 3)
    assert [(p.text, p.chain, list(p.types), p.sentence) for p in parsed] == [
        (words.strip(), str(chain), types, 3) for words, chain, types in phrases
    ]


def test_wrong_records_of_the_list_add_up(tmp_path: Path) -> None:
    pictures = [
        picture(1),
        picture(2) | {"sentences": [{"raw": "good"}, {"raw": 3}, "none"]},
        picture(3) | {"filename": 3},
        {"split": "train"},
        picture(5) | {"filename": "no-number.jpg"},
    ]
    read = read_source("flickr30k", release(tmp_path / "raw", pictures), tmp_path / "r")
    assert sorted((r["place"], r["problem"]) for r in read.images) == [
        ("images[0]", None),
        ("images[1]", None),
        ("images[2]", "malformed"),
        ("images[3]", "malformed"),
        ("images[4]", None),
    ]
    captions = {r["place"]: r["problem"] for r in read.of_kind(CAPTION)}
    assert captions == {
        "images[0].sentences[0]": None,
        "images[1].sentences[0]": None,
        "images[1].sentences[1]": "malformed",
        "images[1].sentences[2]": "malformed",
        "images[2].sentences[0]": "malformed",
        "images[4].sentences[0]": None,
    }
    assert read.images[-1]["id"] == "flickr30k/no-number"


def test_splits_of_entities_need_no_list_of_karpathy(tmp_path: Path) -> None:
    root = release(tmp_path / "raw", [], {7: LINE, 8: "A dog ."}, {7: annotation()})
    (root / "dataset_flickr30k.json").unlink()
    (root / "test.txt").write_text("7\n8\nno id\n9\n")
    read = read_source("flickr30k", root, tmp_path / "r", "entities-test")
    assert sorted((r["place"], r["id"] or r["problem"]) for r in read.images) == [
        ("line 1", "flickr30k/7"),
        ("line 2", "flickr30k/8"),
        ("line 3", "malformed"),
        ("line 4", "flickr30k/9"),
    ]
    assert [(r["key"], r["text"]) for r in read.of_kind(CAPTION)] == [
        (7, "Two men in red hats see it ."),
        (8, "A dog ."),
    ]
    assert "Entities: 1 images without sentences" in read.notes


def test_real_split_lists_of_entities(tmp_path: Path) -> None:
    lists = shared_path("fixtures/flickr30k/entities_splits")
    root = release(tmp_path / "raw", [], {1016887272: LINE}, {})
    for name, count in (("val", 1000), ("test", 1000)):
        (root / f"{name}.txt").write_bytes((lists / f"{name}.txt").read_bytes())
        read = read_source("flickr30k", root, tmp_path / name, f"entities-{name}")
        assert len({r["key"] for r in read.images}) == count


def test_without_what_a_split_needs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"looked for dataset_flickr30k\.json"):
        read_source("flickr30k", tmp_path, tmp_path / "r")
    with pytest.raises(UserError, match="no Sentences/ and Annotations/"):
        read_source("flickr30k", tmp_path, tmp_path / "r2", "entities-test")
    with pytest.raises(UserError, match="no split 'testA'; choose from train, val, test, entit"):
        read_source("flickr30k", tmp_path, tmp_path / "r3", "testA")


def test_the_size_in_the_xml_is_believed_only_where_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "7.xml"
    path.write_text("<annotation><size><width>wide</width><height>3</height></size></annotation>")
    assert read_boxes(path).size is None


@pytest.mark.parametrize(
    ("folder", "path"),
    [("flickr30k-images", "flickr30k-images/7.jpg"), ("images", "images/7.jpg")],
)
def test_image_folders(tmp_path: Path, folder: str, path: str) -> None:
    root = release(tmp_path / "raw", [picture(7)])
    (root / folder).mkdir()
    assert read_source("flickr30k", root, tmp_path / "r").images[0]["paths"] == [path]
