"""Evaluation records that are no concepts: questions on an image, statements on two, references.

They go into a column of their own, one list an image. Its elements travel through the record tables
as JSON, in the annotations' ``extra``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.errors import UserError
from xvlm_data.records import QUESTION, Columns, Sink

T = TypeVar("T")


class TakesAnnotations(Protocol):
    """:class:`Sink`, or :class:`Later`."""

    def annotations(self, columns: Columns) -> None:
        """Add rows of ``records.ANNOTATIONS``."""
        ...


class Later:
    """Annotations that wait, as compact columns, until every image has been written."""

    def __init__(self) -> None:
        self._waiting: list[Columns] = []

    def annotations(self, columns: Columns) -> None:
        """As `Sink.annotations`."""
        self._waiting.append({name: pa.array(values) for name, values in columns.items()})

    def write(self, records: Sink) -> None:
        """Write all of them, in the order in which they came."""
        for columns in self._waiting:
            records.annotations(columns)
        self._waiting.clear()


def write_questions(
    records: TakesAnnotations,
    part: int,
    indices: Sequence[int] | npt.NDArray[np.int64],
    keys: Any,
    texts: Any,
    extra: Any,
    **more: Any,
) -> None:
    """One record a question.

    Args:
        records: where to.
        part: the raw file.
        indices: place of each in it.
        keys: join key of each one's image.
        texts: what each is about, for reports; an empty text is rejected.
        extra: JSON text of each one's element of the source's own column.
        more: further columns of ``records.ANNOTATIONS``, such as problem and detail.
    """
    if len(indices):
        records.annotations(
            {
                "key": keys,
                "kind": np.full(len(indices), QUESTION, np.int8),
                "part": np.full(len(indices), part, np.int16),
                "index": indices,
                "text": texts,
                "extra": extra,
                **more,
            }
        )


def write_malformed(
    records: TakesAnnotations, part: int, elements: Sequence[tuple[int, str, bytes]]
) -> None:
    """Questions that could not be decoded, as `Sink.malformed` has them."""
    if elements:
        write_questions(
            records,
            part,
            [index for index, _, _ in elements],
            pa.nulls(len(elements), pa.int64()),
            pa.nulls(len(elements), pa.string()),
            pa.nulls(len(elements), pa.string()),
            problem=["malformed"] * len(elements),
            detail=[why for _, why, _ in elements],
        )


def mark(where: npt.NDArray[np.bool_], problem: str) -> pa.Array:
    """The problem where ``where`` holds, else null."""
    return pc.if_else(pa.array(where), pa.scalar(problem), pa.scalar(None, pa.string()))


def convert_each(items: Sequence[Any], kind: type[T]) -> tuple[list[T | None], list[str | None]]:
    """Plain values as ``kind``, one by one: (values or None, what is wrong or None)."""
    values: list[T | None] = []
    wrong: list[str | None] = []
    for item in items:
        try:
            values.append(msgspec.convert(item, kind))
            wrong.append(None)
        except (msgspec.ValidationError, RecursionError) as error:
            values.append(None)
            wrong.append(str(error)[:300])
    return values, wrong


def pick_split(source: str, split: str, known: dict[str, T]) -> T:
    """What a source knows a split by.

    Raises:
        UserError: it has no such split.
    """
    if split not in known:
        raise UserError(f"{source} has no split {split!r}", f"choose from {', '.join(known)}")
    return known[split]
