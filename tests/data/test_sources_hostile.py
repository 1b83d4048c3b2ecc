"""Whatever stands in a list, every element of it is one row, and nothing stops the reading."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.raw_releases import write_json
from tests.data.source_records import Read, read_source
from tests.data.test_sources_flickr30k import picture
from tests.data.test_sources_nlvr2 import line
from tests.data.test_sources_refcoco import ref, release
from tests.data.test_sources_vqa import annotation, question
from xvlm_data.records import QUESTION

#: Also lone surrogates, and integers that no column holds.
_TEXT = st.text(st.characters(exclude_categories=[]), max_size=8)
_SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), _TEXT, st.sampled_from(["../..", ""])
)
_VALUE = st.recursive(
    _SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=5,
)


def elements(make: Any) -> st.SearchStrategy[list[Any]]:
    """Lists of good elements, of good ones with a field replaced or missing, and of anything."""
    good = st.integers(1, 9).map(make)
    names = st.sampled_from(sorted(make(1)))
    changed = st.builds(lambda item, name, value: item | {name: value}, good, names, _VALUE)
    without = st.builds(
        lambda item, name: {k: v for k, v in item.items() if k != name}, good, names
    )
    return st.lists(st.one_of(good, changed, without, _VALUE), max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def places(read: Read, kind: int) -> list[str]:
    return sorted(row["place"] for row in read.of_kind(kind))


@settings(max_examples=40)
@given(elements(question), elements(annotation))
def test_vqa(folder: Path, questions: list[Any], annotations: list[Any]) -> None:
    write_json(folder / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    write_json(folder / "v2_mscoco_train2014_annotations.json", {"annotations": annotations})
    read = read_source("vqa", folder, folder / "r")
    asked = [row for row in read.of_kind(QUESTION) if row["place"].startswith("questions")]
    assert sorted(row["index"] for row in asked) == list(range(len(questions)))
    # An annotation is part of the question that it answers, or a row of its own.
    answers = [row for row in read.of_kind(QUESTION) if row["place"].startswith("annotations")]
    answered = {row["annotation_id"] for row in asked if row["problem"] != "malformed"}
    taken = len(annotations) - len(answers)
    assert 0 <= taken <= len(answered)
    assert all(row["problem"] for row in answers)


@settings(max_examples=40)
@given(elements(lambda n: line(f"train-{n}-0-0", directory=n)))
def test_nlvr2(folder: Path, lines: list[Any]) -> None:
    text = "".join(json.dumps(value) + "\n" for value in lines)
    (folder / "train.json").write_text(text or "\n")
    read = read_source("nlvr2", folder, folder / "r")
    assert places(read, QUESTION) == sorted(f"line {n}" for n in range(1, len(lines) + 1))


@settings(max_examples=40)
@given(elements(picture))
def test_flickr30k(folder: Path, pictures: list[Any]) -> None:
    write_json(folder / "dataset_flickr30k.json", {"images": pictures})
    read = read_source("flickr30k", folder, folder / "r")
    assert sorted(row["place"] for row in read.images) == sorted(
        f"images[{n}]" for n in range(len(pictures))
    )


@settings(max_examples=40)
@given(elements(ref))
def test_refcoco(folder: Path, refs: list[Any]) -> None:
    root = folder / "refcoco"
    if not root.is_dir():
        release(folder, [])
    refs = [*refs, ref(1)]
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    read = read_source("refcoco", folder, folder / "r", "val")
    assert places(read, QUESTION) == sorted(f"[{n}]" for n in range(len(refs)))
