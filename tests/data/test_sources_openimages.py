"""OpenImages: real rows, pandas as the reader to agree with, and every way a line can be wrong."""

from __future__ import annotations

import shutil
from math import isfinite
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.source_records import read_source
from tests.shared import shared_path
from xvlm_data.errors import UserError
from xvlm_data.sources.openimages import image_keys

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
DOG, CAT = "/m/0bt9lr", "/m/01yrx"


def row(image: str = "00000000000000ff", label: str = DOG, **more: str) -> str:
    fields = dict.fromkeys(HEADER.split(","), "0") | {
        "ImageID": image,
        "Source": "xclick",
        "LabelName": label,
        "Confidence": "1",
        "XMin": "0.25",
        "XMax": "0.75",
        "YMin": "0.125",
        "YMax": "0.5",
    }
    return ",".join((fields | more).values())


def release(root: Path, lines: list[str], split: str = "train", header: str = HEADER) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{split}-annotations-bbox.csv").write_text("\n".join([header, *lines]) + "\n")
    (root / "class-descriptions-boxable.csv").write_text(f"{DOG},Dog\n{CAT},Cat\n")
    return root


@pytest.mark.parametrize(
    ("file", "rows", "images"),
    [("train-annotations-bbox.csv", 5, 2), ("oidv6-train-annotations-bbox.csv", 2, 1)],
)
def test_real_rows_of_both_widths_agree_with_pandas(
    tmp_path: Path, file: str, rows: int, images: int
) -> None:
    excerpt = shared_path("fixtures/openimages")
    root = tmp_path / "raw"
    root.mkdir()
    for name in (file, "class-descriptions-boxable.csv", "oidv6-class-descriptions-boxable.csv"):
        shutil.copy(excerpt / name, root / name)
    read = read_source("openimages", root, tmp_path / "r")
    truth = pd.read_csv(root / file)
    names = pd.read_csv(root / "class-descriptions-boxable.csv", header=None, index_col=0)[1]
    assert (len(read.annotations), len(read.images)) == (rows, images)
    assert [r["id"] for r in read.images] == [f"openimages/{i}" for i in truth.ImageID.unique()]
    assert [r["text"] for r in read.annotations] == names[truth.LabelName].tolist()
    assert [r["crowd"] for r in read.annotations] == (truth.IsGroupOf == 1).tolist()
    ours = pd.DataFrame(read.annotations)
    pd.testing.assert_series_equal(ours.x, truth.XMin, check_names=False)
    pd.testing.assert_series_equal(ours.y, truth.YMin, check_names=False)
    pd.testing.assert_series_equal(ours.x + ours.w, truth.XMax, check_names=False)
    pd.testing.assert_series_equal(ours.y + ours.h, truth.YMax, check_names=False)
    assert ours.key.tolist() == [int(i, 16) for i in truth.ImageID]
    assert ours.place.tolist() == [f"line {n}" for n in range(2, rows + 2)]
    assert ours.problem.isna().all()


def test_of_two_releases_in_one_folder_the_newer_is_read_and_the_other_named(
    tmp_path: Path,
) -> None:
    read = read_source("openimages", shared_path("fixtures/openimages"), tmp_path)
    assert read.inputs[-1] == "oidv6-train-annotations-bbox.csv"
    assert any(note.startswith("train-annotations-bbox.csv is not read") for note in read.notes)
    # The newer class list is an excerpt of three; the other one fills in.
    assert all(r["problem"] is None for r in read.annotations)


def test_the_complete_class_list_is_known(tmp_path: Path) -> None:
    excerpt = shared_path("fixtures/openimages") / "class-descriptions-boxable.csv"
    names = pd.read_csv(excerpt, header=None, keep_default_na=False)
    assert len(names) == 601
    lines = [row(label=label) for label in names[0]]
    root = release(tmp_path / "raw", lines)
    shutil.copy(excerpt, root / excerpt.name)
    read = read_source("openimages", root, tmp_path / "r")
    assert [r["text"] for r in read.annotations] == names[1].tolist()


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_keys_are_the_signed_form_of_the_digits(numbers: list[int]) -> None:
    ids = pa.array([f"{n:016x}" for n in [0, *numbers]]).slice(1)
    keys = image_keys(ids).tolist()
    assert [key % 2**64 for key in keys] == numbers


def test_every_wrong_line_is_told_with_its_number_and_stops_nothing(tmp_path: Path) -> None:
    lines = [
        row(),  # line 2
        row(image="xyz"),
        row(image="00000000000000FF"),
        row(XMin="left"),
        row(YMax=""),
        "only,three,fields",
        row() + ",more",
        row(label="/m/none"),
        row(IsGroupOf="2"),
        "",
        row(image="ffffffffffffffff"),  # line 12
    ]
    read = read_source("openimages", release(tmp_path / "raw", lines), tmp_path / "r")
    found = {r["place"]: (r["problem"], r["detail"]) for r in read.annotations}
    assert found == {
        "line 2": (None, None),
        "line 3": ("malformed", "ImageID is not 16 hexadecimal digits: xyz"),
        "line 4": ("malformed", "ImageID is not 16 hexadecimal digits: 00000000000000FF"),
        "line 5": ("malformed", "XMin is not a number: left"),
        "line 6": ("malformed", "YMax is not a number: "),
        "line 7": ("malformed", "3 columns where 13 should be"),
        "line 8": ("malformed", "14 columns where 13 should be"),
        "line 9": ("unknown_category", "no class description has /m/none"),
        "line 10": ("malformed", "IsGroupOf is not -1, 0 or 1: 2"),
        "line 12": (None, None),
    }
    assert [r["id"] for r in read.images] == [
        "openimages/00000000000000ff",
        "openimages/ffffffffffffffff",
    ]
    assert read.images[1]["key"] == -1


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_is_a_number_that_the_rules_reject(tmp_path: Path) -> None:
    lines = [row(XMin="nan"), row(XMin="inf", XMax="inf")]
    read = read_source("openimages", release(tmp_path / "raw", lines), tmp_path / "r")
    assert [r["problem"] for r in read.annotations] == [None, None]
    assert [isfinite(r["w"]) for r in read.annotations] == [False, False]


def test_images_come_in_the_order_of_their_first_line_wherever_their_lines_are(
    tmp_path: Path,
) -> None:
    images = ["00000000000000bb", "00000000000000aa", "00000000000000bb", "00000000000000cc"]
    read = read_source(
        "openimages", release(tmp_path / "raw", [row(i) for i in images]), tmp_path / "r"
    )
    assert [(r["id"][-2:], r["place"]) for r in read.images] == [
        ("bb", "line 2"),
        ("aa", "line 3"),
        ("cc", "line 5"),
    ]


@pytest.mark.parametrize(
    ("folder", "path"),
    [
        ("train", "train/00000000000000ff.jpg"),
        ("images/train", "images/train/00000000000000ff.jpg"),
        ("train_0", "train_0/00000000000000ff.jpg"),
        ("train/data", "train/data/00000000000000ff.jpg"),
    ],
)
def test_image_folders(tmp_path: Path, folder: str, path: str) -> None:
    root = release(tmp_path / "raw", [row()])
    (root / folder).mkdir(parents=True)
    read = read_source("openimages", root, tmp_path / "r")
    assert path in read.images[0]["paths"]


def test_validation_under_either_name(tmp_path: Path) -> None:
    root = release(tmp_path / "raw", [row()], split="validation")
    for split in ("val", "validation"):
        read = read_source("openimages", root, tmp_path / split, split)
        assert read.images[0]["paths"] == ["validation/00000000000000ff.jpg"]


def test_files_without_the_columns_or_the_classes_are_refused(tmp_path: Path) -> None:
    root = release(tmp_path / "raw", [], header="ImageID,LabelName,XMin,XMax,YMin")
    with pytest.raises(UserError, match="no YMax column"):
        read_source("openimages", root, tmp_path / "r")
    (root / "class-descriptions-boxable.csv").unlink()
    with pytest.raises(UserError, match="no class descriptions"):
        read_source("openimages", root, tmp_path / "r2")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1194033454\n"
    (root / "class-descriptions-boxable.csv").write_text(f"{DOG},Dog\n")
    (root / "train-annotations-bbox.csv").write_text(pointer)
    with pytest.raises(UserError, match="Git LFS pointer"):
        read_source("openimages", root, tmp_path / "r3")
    with pytest.raises(UserError, match="no split 'dev'; choose from train"):
        read_source("openimages", root, tmp_path / "r4", "dev")


def test_optional_columns_may_be_absent(tmp_path: Path) -> None:
    header = "ImageID,LabelName,XMin,XMax,YMin,YMax"
    root = release(tmp_path / "raw", [f"00000000000000ff,{CAT},0,1,0,1"], header=header)
    read = read_source("openimages", root, tmp_path / "r")
    assert [(r["text"], r["crowd"], r["w"]) for r in read.annotations] == [("Cat", False, 1.0)]
