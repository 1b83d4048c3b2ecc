"""Which images evaluation files name, in all their forms."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.data.raw_releases import write_json
from tests.shared import shared_path
from xvlm_data.errors import UserError
from xvlm_data.leaks import evaluation_ids, usual_evaluation_files
from xvlm_data.leaks.evaluation import read_evaluation_file


def test_evaluation_lists_of_every_kind() -> None:
    karpathy = shared_path("fixtures/coco_karpathy")
    records: list[dict[str, Any]] = json.loads((karpathy / "dataset_coco.json").read_text())[
        "images"
    ]
    held_out = {r["cocoid"] for r in records if r["split"] in ("val", "test")}
    assert set(evaluation_ids([karpathy / "dataset_coco.json"]).coco_ids) == held_out
    listed = evaluation_ids([karpathy / "splits/karpathy_test_images.txt"])
    assert len(listed.coco_ids) == 5000
    val = shared_path("fixtures/coco/annotations/captions_val2017.json")
    assert len(evaluation_ids([val]).coco_ids) == 24
    flickr = shared_path("fixtures/flickr30k/entities_splits/test.txt")
    assert len(evaluation_ids([flickr]).flickr_ids) == 1000
    refs = shared_path("fixtures/refcoco/refcoco/refs(unc).p")
    view = json.loads((refs.parent / "refs_unc.json_view.json").read_text())
    view = view if isinstance(view, list) else [view]
    expected = {r["image_id"] for r in view if r["split"] in ("val", "testA", "testB", "test")}
    assert set(evaluation_ids([refs]).coco_ids) == expected


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    refs = tmp_path / "refs(unc).p"
    refs.write_bytes(pickle.dumps([{"image_id": 1, "split": "val", "x": Evil()}], protocol=2))
    with pytest.raises(UserError, match="wants to load"):
        evaluation_ids([refs])
    assert not (tmp_path / "ran").exists()
    refs.write_bytes(pickle.dumps([{"image_id": 7, "split": "testA"}], protocol=2))
    assert evaluation_ids([refs]).coco_ids.tolist() == [7]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_every_division_of_refcoco_and_googles_release(tmp_path: Path) -> None:
    for name, parts in {
        "refs(unc).p": {1: "train", 2: "val", 3: "testA", 4: "testB"},
        "refs(google).p": {1: "train", 5: "val", 6: "test"},
        "refs(umd).p": {7: "val", 8: "test"},
    }.items():
        refs = [{"image_id": n, "split": split, "ref_id": n} for n, split in parts.items()]
        (tmp_path / name).write_bytes(pickle.dumps(refs, protocol=2))
        held_out = [n for n, split in parts.items() if split != "train"]
        assert evaluation_ids([tmp_path / name]).coco_ids.tolist() == held_out
    google = shared_path("fixtures/refcocog_google") / (
        "google_refexp_val_201511_coco_aligned_catg.json"
    )
    (file,) = evaluation_ids([google]).files
    assert (file.coco_ids.tolist(), file.flickr_ids.tolist()) == ([546154], [3208122782])


def test_a_pickle_of_python_2_with_latin_1_text(tmp_path: Path) -> None:
    """Protocol 0, byte strings, one beyond ASCII: as Python 2 writes."""
    data = b"(lp0\n(dp1\nS'image_id'\nI42\nsS'split'\nS'testA'\nsS'raw'\nS'caf\\xe9'\nsa."
    assert evaluation_ids([write(tmp_path / "refs(unc).p", data)]).coco_ids.tolist() == [42]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions_train2017.json", {"images": []}, "training part"),
        ("v2_OpenEnded_mscoco_train2014_questions.json", {"questions": []}, "training part"),
        (
            "nocaps_val.json",
            {"images": [{"id": 0, "file_name": "0013ea2087020901.jpg"}]},
            "no COCO",
        ),
        ("other_val.json", {"images": [{"id": 9, "file_name": "000000000007.jpg"}]}, "no COCO"),
        (
            "instances.json",
            {"images": [{"id": 7, "file_name": "COCO_train2014_000000000007.jpg"}]},
            "refs",
        ),
        ("dataset_coco.json", {"images": [{"split": "val", "cocoid": "x"}]}, "element 0"),
        ("dataset_x.json", {"images": [{"split": "val", "filename": "x.jpg"}]}, "neither"),
        ("google_refexp_val_x.json", {"images": [1]}, "not Google"),
        ("some.csv", {}, "no known kind"),
    ],
)
def test_files_that_would_prove_nothing_are_refused(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluation_ids([write_json(tmp_path / name, content)])


def test_a_file_that_is_not_there_is_missing_and_not_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        evaluation_ids([tmp_path / "none.csv"])


def test_lists_of_names(tmp_path: Path) -> None:
    coco = b"# COCO\nval2014/COCO_val2014_000000253964.jpg 253964\n000000000139.jpg\n\n"
    ids = evaluation_ids([write(tmp_path / "a.txt", coco + b"36979\n77.jpg\r\n")])
    assert ids.coco_ids.tolist() == [139, 253964]
    assert ids.flickr_ids.tolist() == [77, 36979]
    with pytest.raises(UserError, match="line 2: 'cat' is no image name"):
        read_evaluation_file(write(tmp_path / "b.txt", b"77\ncat\n"))


def test_vqa_is_read_when_asked_for_and_not_by_itself(tmp_path: Path) -> None:
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    questions = {"questions": [{"image_id": 262148, "question_id": 262148000}]}
    path = write_json(tmp_path / "vqa" / name, questions)
    assert evaluation_ids([path]).coco_ids.tolist() == [262148]
    refs = tmp_path / "refcoco+/refs(unc).p"
    refs.parent.mkdir()
    refs.write_bytes(pickle.dumps([], protocol=2))
    google = write_json(tmp_path / "refcocog/google_refexp_val_201511.json", {})
    assert set(usual_evaluation_files(tmp_path / "vg")) == {refs.resolve(), google.resolve()}


def test_each_file_is_counted() -> None:
    files = [
        shared_path("fixtures/coco_karpathy/dataset_coco.json"),
        shared_path("fixtures/flickr30k/entities_splits/val.txt"),
        shared_path("fixtures/coco/annotations/instances_val2017.json"),
    ]
    ids = evaluation_ids(files)
    assert ids.per_file == dict(zip(map(str, files), [5, 1000, 24], strict=True))
    assert len(ids.coco_ids) == len(set(ids.files[0].coco_ids) | set(ids.files[2].coco_ids))


@pytest.mark.parametrize(
    ("name", "content", "held_out"),
    [
        # A record that lost its id is still told by its file's name.
        (
            "captions_val2017.json",
            {"images": [{}, {"id": None, "file_name": "000000000139.jpg"}], "annotations": []},
            [139],
        ),
        ("dataset_coco.json", {"images": [{"split": "val", "cocoid": 7}, {"split": 1}]}, [7]),
        (
            "dataset_x.json",
            {"images": [{"split": "val", "filename": "x.jpg"}, {"split": "val", "cocoid": 1}]},
            [1],
        ),
    ],
)
def test_one_bad_record_is_told_and_proves_nothing(
    tmp_path: Path, name: str, content: Any, held_out: list[int]
) -> None:
    path = write_json(tmp_path / name, content)
    with pytest.raises(UserError, match=name):
        read_evaluation_file(path)
    found = evaluation_ids([path])
    assert found.coco_ids.tolist() == held_out
    (note,) = found.notes()
    assert f"{path}: 1 element(s) could not be read" in note


def test_bad_references_and_lines_too(tmp_path: Path) -> None:
    refs = [{"image_id": 10**30, "split": "val"}, "x", {"image_id": 5, "split": "testB"}]
    pickled = write(tmp_path / "refs(unc).p", pickle.dumps(refs, protocol=2))
    with pytest.raises(UserError, match=r"element 0: no reference.*image_id"):
        read_evaluation_file(pickled)
    listed = write(tmp_path / "test.txt", b"77\ncat\n")
    found = evaluation_ids([pickled, listed])
    assert (found.coco_ids.tolist(), found.flickr_ids.tolist()) == ([5], [77])
    assert [len(file.unreadable) for file in found.files] == [2, 1]
    with pytest.raises(UserError, match="not a RefCOCO list"):
        evaluation_ids([write(tmp_path / "refs(umd).p", pickle.dumps({}, protocol=2))])
    # A file of which nothing can be read is another file.
    with pytest.raises(UserError, match=r"thesis\.txt: line 1: 'years of work' is no image name"):
        evaluation_ids([write(tmp_path / "thesis.txt", b"years of work\n")])


def test_only_the_images_of_an_annotation_file_are_read(tmp_path: Path) -> None:
    """What follows them in COCO's files is a hundred times as long; here it is not even there."""
    text = '{"info": {}, "images": [{"id": 7, "file_name": "000000000007.jpg"}], "annotations": [{'
    path = write(tmp_path / "instances_val2017.json", text.encode())
    assert evaluation_ids([path]).coco_ids.tolist() == [7]
