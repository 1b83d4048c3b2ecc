"""VQA v2: questions on COCO's images, with ten answers each where they are published.

Files: ``v2_OpenEnded_mscoco_{train2014,val2014,test2015,test-dev2015}_questions.json`` and
``v2_mscoco_{train2014,val2014}_annotations.json``, joined by question id; in the root or in
``questions/`` and ``annotations/``. Images: COCO's train2014, val2014 and test2015, in the root or
in a ``coco`` folder beside it. Splits: train, val, test and test-dev.

A row is an image, and the column ``questions`` has all that is asked of it: a question is no
concept, and an image is decoded once for the five or more that it has.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.raw.files import find_file, find_optional
from xvlm_data.raw.json_arrays import Int64
from xvlm_data.reading import Records
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.image_paths import (
    TEST2015,
    TRAIN2014,
    VAL2014,
    coco_paths,
    coco_root,
    joined,
)
from xvlm_data.sources.questions import (
    Later,
    mark,
    pick_split,
    write_malformed,
    write_questions,
)
from xvlm_data.storage import AnyPath
from xvlm_data.text import normalise_texts

Ids = npt.NDArray[np.int64]

#: The column ``questions``, in raw order; of a question without answers only the first two are set.
QUESTIONS = pa.field(
    "questions",
    pa.list_(
        pa.struct(
            [
                pa.field("question_id", pa.int64()),
                pa.field("question", pa.string()),
                pa.field("question_type", pa.string()),
                pa.field("answer_type", pa.string()),
                pa.field("multiple_choice_answer", pa.string()),
                pa.field("answers", pa.list_(pa.string())),
            ]
        )
    ),
)

#: Names of the files of a split, and the part of COCO that its images are of.
_SPLITS = {
    "train": ("train2014", TRAIN2014),
    "val": ("val2014", VAL2014),
    "test": ("test2015", TEST2015),
    "test-dev": ("test-dev2015", TEST2015),
}


_NONE = np.zeros(0, np.int64)
_JSON = msgspec.json.Encoder()


class _Question(msgspec.Struct, gc=False):
    image_id: Int64
    question: str
    question_id: Int64


class _Answer(msgspec.Struct, gc=False):
    answer: str


class _Annotation(msgspec.Struct, gc=False):
    image_id: Int64
    question_id: Int64
    answers: list[_Answer]
    question_type: str | None = None
    answer_type: str | None = None
    multiple_choice_answer: str | None = None


class Vqa(Source):
    """See the module.

    Attributes:
        evaluation: no rule that is a choice applies by itself.
        normalised_boxes: there are no boxes that would need the image's size.
        extra: the column ``questions``.
    """

    name = "vqa"
    licence = "questions and answers CC BY 4.0; images: COCO's, under their Flickr terms"
    citation = citations.VQA
    homepage = "https://visualqa.org"
    evaluation = True
    normalised_boxes = True
    extra = QUESTIONS

    def image_root(self, request: Request) -> AnyPath:
        """COCO's images may lie beside the release."""
        return coco_root(request.root, pick_split(self.name, request.split, _SPLITS)[1])

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        files, coco_part = pick_split(self.name, request.split, _SPLITS)
        name = f"v2_OpenEnded_mscoco_{files}_questions.json"
        path = find_file(
            request.root, [name, f"questions/{name}", f"Questions/{name}"], "questions"
        )
        name = f"v2_mscoco_{files}_annotations.json"
        answers_path = find_optional(
            request.root, [name, f"annotations/{name}", f"Annotations/{name}"]
        )
        later = Later()
        answers = None
        if answers_path is not None:
            answers = _read_answers(answers_path, request, records, later)
        elif not request.split.startswith("test"):
            request.notes.append(f"no {name}: the questions have no answers")
        part = records.part(path, "questions[{index}]")
        asked = _read_questions(path, part, answers, request, later)
        _write_images(asked, part, self.image_root(request), coco_part, records)
        records.images_complete()
        if answers is not None:
            answers.write_unused(later)
        later.write(records)


@dataclass
class _Answers:
    """The annotations as columns, in raw order; the first of a question id is the one that counts.

    Attributes:
        part: their file.
        ids: ``[N]`` question ids.
        image_ids: ``[N]``.
        indices: ``[N]`` places in the file.
        payloads: N pieces of JSON, each the end of an element of ``questions``.
        order: ``[N]`` places in the columns, by question id.
        used: ``[N]`` whether a question has taken it.
    """

    part: int
    ids: Ids
    image_ids: Ids
    indices: Ids
    payloads: pa.Array
    order: Ids
    used: npt.NDArray[np.bool_]

    def find(self, ids: Ids) -> Ids:
        """``[M]`` places of questions' annotations, -1 where there is none; they are used now."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        places = np.searchsorted(self.ids, ids, sorter=self.order)
        places = self.order[np.minimum(places, len(self.ids) - 1)]
        found = self.ids[places] == ids
        self.used[places[found]] = True
        return np.where(found, places, -1)

    def are_of_others(self, places: Ids, image_ids: Ids) -> npt.NDArray[np.bool_]:
        """``[M]`` whether the annotation at each place from :meth:`find` is of another image."""
        other = np.zeros(len(places), bool)
        found = places >= 0
        other[found] = self.image_ids[places[found]] != image_ids[found]
        return other

    def write_unused(self, records: Later) -> None:
        """Annotations of no question, or of one that another annotation answers."""
        left = np.flatnonzero(~self.used)
        by_id = self.ids[self.order]
        again = np.zeros(len(self.ids), bool)
        again[self.order[1:]] = by_id[1:] == by_id[:-1]
        write_questions(
            records,
            self.part,
            self.indices[left],
            self.image_ids[left],
            joined("answers to question ", pa.array(self.ids[left]).cast(pa.string())),
            pa.nulls(len(left), pa.string()),
            annotation_id=self.ids[left],
            problem=np.where(again[left], "duplicate_annotation", "unknown_question").tolist(),
        )


def _read_answers(path: AnyPath, request: Request, records: Records, later: Later) -> _Answers:
    part = records.part(path, "annotations[{index}]")
    columns: list[list[Ids]] = [[_NONE], [_NONE], [_NONE]]
    payloads = [pa.array([], pa.string())]
    for elements in request.arrays(path, {"annotations": _Annotation}):
        items: list[_Annotation] = elements.items
        write_malformed(later, part, elements.malformed)
        columns[0].append(np.array([item.question_id for item in items], np.int64))
        columns[1].append(np.array([item.image_id for item in items], np.int64))
        columns[2].append(np.array(elements.indices, np.int64))
        payloads.append(pa.array([_payload(item) for item in items], pa.string()))
    ids, image_ids, indices = (np.concatenate(column) for column in columns)
    order = np.argsort(ids, kind="stable")
    texts = pa.concat_arrays(payloads)
    return _Answers(part, ids, image_ids, indices, texts, order, np.zeros(len(ids), bool))


def _payload(item: _Annotation) -> str:
    value = {
        "question_type": item.question_type,
        "answer_type": item.answer_type,
        "multiple_choice_answer": item.multiple_choice_answer,
        "answers": [answer.answer for answer in item.answers],
    }
    return "," + msgspec.json.encode(value)[1:].decode()


def _read_questions(
    path: AnyPath, part: int, answers: _Answers | None, request: Request, later: Later
) -> tuple[Ids, Ids]:
    """Questions, for later; returns the (image ids, places) of all of them."""
    seen = [_NONE]
    images, places = [_NONE], [_NONE]
    for elements in request.arrays(path, {"questions": _Question}):
        items: list[_Question] = elements.items
        write_malformed(later, part, elements.malformed)
        ids = np.array([item.question_id for item in items], np.int64)
        image_ids = np.array([item.image_id for item in items], np.int64)
        texts = normalise_texts(pa.array([item.question for item in items], pa.string()))
        faults = [_repeated(ids, np.concatenate(seen))]
        ends = pa.array(["}"] * len(items), pa.string())
        if answers is not None:
            found = answers.find(ids)
            faults.append(mark(found < 0, "no_answers"))
            faults.append(mark(answers.are_of_others(found, image_ids), "other_image"))
            ends = answers.payloads.take(pa.array(found, mask=found < 0)).fill_null("}")
        seen.append(ids)
        images.append(image_ids)
        places.append(np.array(elements.indices, np.int64))
        write_questions(
            later,
            part,
            places[-1],
            image_ids,
            texts,
            joined(
                '{"question_id":',
                pa.array(ids).cast(pa.string()),
                ',"question":',
                pa.array([_JSON.encode(text).decode() for text in texts.to_pylist()], pa.string()),
                ends,
            ),
            annotation_id=ids,
            problem=pc.coalesce(*faults),
        )
    return np.concatenate(images), np.concatenate(places)


def _repeated(ids: Ids, before: Ids) -> pa.Array:
    """The problem of ids that were there before, or come a second time."""
    again = np.isin(ids, before)
    again[np.setdiff1d(np.arange(len(ids)), np.unique(ids, return_index=True)[1])] = True
    return mark(again, "duplicate_question")


def _write_images(
    asked: tuple[Ids, Ids], part: int, root: AnyPath, coco_part: str, records: Records
) -> None:
    """One record an image, at the place of the first question about it."""
    ids, places = asked
    _, first = np.unique(ids, return_index=True)
    first.sort()
    if len(first):
        records.images(
            {
                "key": ids[first],
                "id": joined("vqa/", pa.array(ids[first]).cast(pa.string())),
                "paths": coco_paths(ids[first], root, coco_part),
                "part": np.full(len(first), part, np.int16),
                "index": places[first],
            }
        )


SOURCE = Vqa()
