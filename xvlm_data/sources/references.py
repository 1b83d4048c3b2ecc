"""References: expressions that single out one object of an image (RefCOCO, RefCOCO+, RefCOCOg).

Each expression becomes a region. Each object that is referred to also becomes an element of the
column ``refs``, because a concept does not say what evaluation needs: which object it is, which
expressions mean the same object, its category, and its box as released (pixels, not clipped).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pyarrow as pa

from xvlm_data.records import REGION, Sink
from xvlm_data.sources.questions import write_questions
from xvlm_data.text import normalise_texts

#: The column ``refs``: one element an object that is referred to, in raw order.
REFS = pa.field(
    "refs",
    pa.list_(
        pa.struct(
            [
                pa.field("ref_id", pa.int64()),
                pa.field("ann_id", pa.int64()),
                pa.field("category", pa.string()),
                pa.field("bbox", pa.list_(pa.float64())),  # x, y, w, h in pixels, as released
                pa.field(
                    "sentences",
                    pa.list_(
                        pa.struct(
                            [
                                pa.field("sent_id", pa.int64()),
                                pa.field("text", pa.string()),
                                pa.field("raw", pa.string()),
                            ]
                        )
                    ),
                ),
            ]
        )
    ),
)


@dataclass
class Sentence:
    """An expression and its place in the raw files; ``wrong`` says why it is unusable."""

    index: int
    sub: int | None
    sent_id: int | None = None
    text: str = ""
    raw: str | None = None
    wrong: str | None = None


@dataclass
class Reference:
    """An object that is referred to, and the expressions; ``problem`` is of all of them."""

    index: int
    image_id: int | None = None
    ref_id: int | None = None
    ann_id: int | None = None
    category_id: int | None = None
    category: str | None = None
    bbox: tuple[float, float, float, float] | None = None
    sentences: list[Sentence] = field(default_factory=list)
    problem: str | None = None
    detail: str | None = None


def write_references(
    references: Sequence[Reference], refs_part: int, sentences_part: int, records: Sink
) -> None:
    """One region an expression, one element of ``refs`` an object."""
    _normalise(references)
    write_sentences(references, sentences_part, records)
    write_questions(
        records,
        refs_part,
        [ref.index for ref in references],
        [ref.image_id for ref in references],
        [ref.category or "an object" for ref in references],
        [_element(ref) for ref in references],
        annotation_id=[ref.ann_id for ref in references],
        problem=[ref.problem for ref in references],
        detail=[ref.detail for ref in references],
    )


def _normalise(references: Sequence[Reference]) -> None:
    """Texts in ``refs`` are those of the regions, letter for letter."""
    sentences = [sentence for ref in references for sentence in ref.sentences]
    texts = normalise_texts(pa.array([sentence.text for sentence in sentences], pa.string()))
    for sentence, text in zip(sentences, texts.to_pylist(), strict=True):
        sentence.text = text


def write_sentences(references: Sequence[Reference], part: int, records: Sink) -> None:
    """One region an expression."""
    sentences = [(ref, sentence) for ref in references for sentence in ref.sentences]
    if sentences:
        nowhere = (np.nan,) * 4
        boxes = np.array([ref.bbox or nowhere for ref, _ in sentences], dtype=np.float64)
        problems = [ref.problem or ("malformed" if s.wrong else None) for ref, s in sentences]
        records.annotations(
            {
                "key": [ref.image_id for ref, _ in sentences],
                "kind": np.full(len(sentences), REGION, np.int8),
                "part": np.full(len(sentences), part, np.int16),
                "index": [s.index for _, s in sentences],
                "sub": [s.sub for _, s in sentences],
                "annotation_id": [s.sent_id for _, s in sentences],
                "text": [s.text for _, s in sentences],
                "x": boxes[:, 0],
                "y": boxes[:, 1],
                "w": boxes[:, 2],
                "h": boxes[:, 3],
                "problem": problems,
                "detail": [s.wrong or ref.detail for ref, s in sentences],
            }
        )


def _element(ref: Reference) -> str:
    value = {
        "ref_id": ref.ref_id,
        "ann_id": ref.ann_id,
        "category": ref.category,
        "bbox": ref.bbox,
        "sentences": [
            {"sent_id": s.sent_id, "text": s.text, "raw": s.raw}
            for s in ref.sentences
            if s.wrong is None
        ],
    }
    return msgspec.json.encode(value).decode()
