"""VQA v2: questions joined with answers by id, one row an image."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.data.raw_releases import write_json
from tests.data.source_records import read_source
from tests.shared import shared_path
from xvlm_data.errors import UserError
from xvlm_data.records import QUESTION
from xvlm_data.sources.vqa import QUESTIONS


def question(number: int, image: int = 7, text: Any = "What is this?") -> dict[str, Any]:
    return {"image_id": image, "question": text, "question_id": number}


def annotation(number: int, image: int = 7, answer: Any = "a dog") -> dict[str, Any]:
    answers = [
        {"answer": f"{answer} {i}", "answer_confidence": "yes", "answer_id": i}
        for i in range(1, 11)
    ]
    return {
        "question_type": "what is",
        "multiple_choice_answer": answer,
        "answers": answers,
        "image_id": image,
        "answer_type": "other",
        "question_id": number,
    }


def release(
    root: Path, questions: list[Any], annotations: list[Any] | None, files: str = "train2014"
) -> Path:
    name = f"v2_OpenEnded_mscoco_{files}_questions.json"
    write_json(root / name, {"info": {}, "data_subtype": files, "questions": questions})
    if annotations is not None:
        write_json(root / f"v2_mscoco_{files}_annotations.json", {"annotations": annotations})
    return root


def test_real_question_with_its_answers(tmp_path: Path) -> None:
    root = shared_path("fixtures/vqa_v2")
    asked = json.loads((root / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())
    answered = json.loads((root / "v2_mscoco_val2014_annotations.json").read_text())
    for file in root.iterdir():  # away from the COCO images that lie beside it
        (tmp_path / file.name).write_bytes(file.read_bytes())
    read = read_source("vqa", tmp_path, tmp_path / "r", "val")
    (asked,), (answered,) = asked["questions"], answered["annotations"]
    assert read.extras(QUESTIONS) == [
        {
            "question_id": asked["question_id"],
            "question": asked["question"],
            "question_type": answered["question_type"],
            "answer_type": answered["answer_type"],
            "multiple_choice_answer": answered["multiple_choice_answer"],
            "answers": [a["answer"] for a in answered["answers"]],
        }
    ]
    assert [(r["id"], r["paths"], r["width"]) for r in read.images] == [
        ("vqa/262148", ["val2014/COCO_val2014_000000262148.jpg"], None)
    ]


def test_the_join_is_by_id_and_not_by_place(tmp_path: Path) -> None:
    numbers = list(range(100))
    questions = [question(n, image=n // 3, text=f'Is "{n}" é?\n') for n in numbers]
    annotations = [annotation(n, image=n // 3, answer=f"no {n}") for n in numbers]
    random.Random(1).shuffle(questions)
    random.Random(2).shuffle(annotations)
    read = read_source("vqa", release(tmp_path / "raw", questions, annotations), tmp_path / "r")
    elements = read.extras(QUESTIONS)
    assert [e["question_id"] for e in elements] == [q["question_id"] for q in questions]
    for element in elements:
        number = element["question_id"]
        assert element["question"] == f'Is "{number}" é?'
        assert element["multiple_choice_answer"] == f"no {number}"
        assert element["answers"][9] == f"no {number} 10"
    order = list(dict.fromkeys(q["image_id"] for q in questions))
    assert [r["key"] for r in read.images] == order
    assert {r["problem"] for r in read.annotations} == {None}


def test_every_wrong_record_is_one_row(tmp_path: Path) -> None:
    questions = [
        question(1),
        question(2),
        question(1, text="Again?"),
        question(3, text=3),
        {"question_id": 4},
        question(5, image=8),
        question(6, text=" "),
    ]
    annotations = [
        annotation(1),
        annotation(6),
        annotation(1, answer="again"),
        annotation(9),
        annotation(10) | {"answers": [{"answer": 1}]},
        annotation(5, image=7),
    ]
    read = read_source("vqa", release(tmp_path / "raw", questions, annotations), tmp_path / "r")
    found = {r["place"]: r["problem"] for r in read.of_kind(QUESTION)}
    assert found == {
        "questions[0]": None,
        "questions[1]": "no_answers",
        "questions[2]": "duplicate_question",
        "questions[3]": "malformed",
        "questions[4]": "malformed",
        "questions[5]": "other_image",
        "questions[6]": None,  # the builder rejects an empty text
        "annotations[2]": "duplicate_annotation",
        "annotations[3]": "unknown_question",
        "annotations[4]": "malformed",
    }
    assert len(read.annotations) == len(found)
    first = next(e for e in read.extras(QUESTIONS) if e["question_id"] == 1)
    assert first["multiple_choice_answer"] == "a dog"


@pytest.mark.parametrize(
    ("split", "files", "folder"),
    [("test", "test2015", "test2015"), ("test-dev", "test-dev2015", "test2015")],
)
def test_splits_without_answers(tmp_path: Path, split: str, files: str, folder: str) -> None:
    root = release(tmp_path / "raw", [question(1), question(2)], None, files)
    read = read_source("vqa", root, tmp_path / "r", split)
    assert [e["answers"] for e in read.extras(QUESTIONS)] == [None, None]
    assert read.images[0]["paths"] == [f"{folder}/COCO_{folder}_000000000007.jpg"]
    assert read.notes == []


def test_train_without_answers_is_told(tmp_path: Path) -> None:
    read = read_source("vqa", release(tmp_path / "raw", [question(1)], None), tmp_path / "r")
    assert any("have no answers" in note for note in read.notes)
    assert [r["problem"] for r in read.annotations] == [None]


def test_an_annotation_file_without_annotations(tmp_path: Path) -> None:
    read = read_source("vqa", release(tmp_path / "raw", [question(1)], []), tmp_path / "r")
    assert [r["problem"] for r in read.annotations] == ["no_answers"]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no questions"):
        read_source("vqa", tmp_path, tmp_path / "r")
    with pytest.raises(UserError, match="no split 'dev'; choose from train, val, test, test-dev"):
        read_source("vqa", tmp_path, tmp_path / "r2", "dev")
