"""One block of records into manifest rows, rejects and counts: the step every build repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.group import Block
from xvlm_data.images.check import Checked, ImageChecker, ImageRecord
from xvlm_data.records import CAPTION, KINDS, OBJECT
from xvlm_data.rules import Judged, Rules, is_none, judge
from xvlm_data.schema import BOX, CONCEPT, FIELDS, GRANULARITIES, REJECTS
from xvlm_data.text import normalise_texts

#: Granularity of a concept by kind of annotation: captions describe the whole image.
_GRANULARITY = np.array(GRANULARITIES, dtype=object)

Part = tuple[Path, str]


@dataclass
class Counts:
    """What became of the records, per kind: kept, and left out by reason."""

    kept: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    clipped: int = 0
    images_without_concepts: int = 0

    def leave_out(self, kind: str, reasons: Sequence[str]) -> None:
        """Count records of one kind that did not make it."""
        if reasons:
            self.left_out.setdefault(kind, Counter()).update(reasons)


@dataclass(frozen=True)
class Reformulator:
    """Turns blocks into rows; the same block always gives the same rows.

    Attributes:
        source: name of the source, for the rows.
        split: split of the rows.
        parts: the raw files that records point to.
        checker: finds and checks images.
        rules: what is kept.
    """

    source: str
    split: str
    parts: Sequence[Part]
    checker: ImageChecker
    rules: Rules

    def __call__(
        self, block: Block, pool: ThreadPoolExecutor, counts: Counts
    ) -> tuple[pa.Table, pa.Table]:
        """(manifest rows, rejects) of a block; counts are added to ``counts``."""
        images, annotations = block.images, block.annotations
        checked = self._check(images, pool)
        problems = np.array([c.problem for c in checked], dtype=object)
        sizes = np.array([c.size or (1, 1) for c in checked], dtype=np.int64).reshape(-1, 2)
        ordinals = images["ordinal"].to_numpy()
        rows = np.searchsorted(ordinals, annotations["ordinal"].to_numpy())
        texts: list[str] = normalise_texts(
            pc.fill_null(annotations["text"].combine_chunks(), "")
        ).to_pylist()
        judged = judge(annotations, rows, sizes, problems, texts, self.rules)
        kept = is_none(judged.reasons)
        self._count(counts, problems, annotations["kind"].to_numpy(), judged, kept)
        table = self._rows(images, checked, annotations, rows, texts, judged, kept)
        counts.images_without_concepts += int(
            (pc.list_value_length(table["concepts"]).to_numpy() == 0).sum()
        )
        ids = images["id"].to_pylist()
        rejects = pa.concat_tables(
            [
                self.image_rejects(images, problems, [c.detail for c in checked]),
                self.annotation_rejects(
                    annotations.filter(~kept),
                    judged.reasons[~kept],
                    [ids[row] for row in rows[~kept]],
                ),
            ]
        )
        return table, rejects

    def _check(self, images: pa.Table, pool: ThreadPoolExecutor) -> list[Checked]:
        records = [
            None
            if row["problem"] is not None
            else ImageRecord(
                row["paths"] or [],
                (row["width"], row["height"]) if row["width"] and row["height"] else None,
            )
            for row in images.select(["paths", "width", "height", "problem"]).to_pylist()
        ]
        known = zip(images["problem"].to_pylist(), images["detail"].to_pylist(), strict=True)
        return [
            result or Checked(problem=problem, detail=detail)
            for result, (problem, detail) in zip(
                self.checker.check_all(records, pool), known, strict=True
            )
        ]

    def _count(
        self,
        counts: Counts,
        problems: npt.NDArray[np.object_],
        kinds: npt.NDArray[np.int8],
        judged: Judged,
        kept: npt.NDArray[np.bool_],
    ) -> None:
        counts.kept["image"] += int(is_none(problems).sum())
        counts.leave_out("image", [p for p in problems if p is not None])
        for kind, name in enumerate(KINDS):
            of_kind = kinds == kind
            counts.kept[name] += int((of_kind & kept).sum())
            counts.leave_out(name, judged.reasons[of_kind & ~kept].tolist())
        counts.clipped += int((judged.clipped & kept).sum())

    def _rows(
        self,
        images: pa.Table,
        checked: Sequence[Checked],
        annotations: pa.Table,
        rows: npt.NDArray[np.int64],
        texts: Sequence[str],
        judged: Judged,
        kept: npt.NDArray[np.bool_],
    ) -> pa.Table:
        good = np.array([c.problem is None for c in checked], dtype=bool)
        found = [c for c in checked if c.problem is None]
        places = np.flatnonzero(kept)
        new_row = (np.cumsum(good) - 1)[rows[places]]
        kinds = annotations["kind"].to_numpy()[places]
        kept_texts = [texts[i] for i in places.tolist()]
        lengths = np.bincount(new_row, minlength=len(found))
        concepts = pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
            pa.StructArray.from_arrays(
                [
                    pa.FixedSizeListArray.from_arrays(
                        pa.array(judged.boxes[places].ravel()), type=BOX
                    ),
                    pa.array(kept_texts, pa.string()),
                    _attributes(annotations["attributes"].take(pa.array(places)), kinds),
                    pa.array(_GRANULARITY[kinds], pa.string()),
                ],
                fields=list(CONCEPT),
            ),
        )
        captions: list[str | None] = [None] * len(found)
        caption_rows, first = np.unique(new_row[kinds == CAPTION], return_index=True)
        caption_places = np.flatnonzero(kinds == CAPTION)[first]
        for row, place in zip(caption_rows.tolist(), caption_places.tolist(), strict=True):
            captions[row] = kept_texts[place]
        sizes = np.array([c.size for c in found], dtype=np.int32).reshape(-1, 2)
        columns = {
            "id": images["id"].filter(pa.array(good)),
            "source": [self.source] * len(found),
            "split": [self.split] * len(found),
            "image": [{"bytes": c.data, "path": self._path(c)} for c in found],
            "width": sizes[:, 0],
            "height": sizes[:, 1],
            "caption": captions,
            "concepts": concepts,
        }
        return pa.table(
            {name: _column(values, FIELDS.field(name).type) for name, values in columns.items()},
            schema=FIELDS,
        )

    def _path(self, checked: Checked) -> str:
        """Absolute where it is a reference, so that every reader of Parquet finds the image."""
        if checked.data is not None:
            return str(checked.path)
        return str(self.checker.root / str(checked.path))

    def image_rejects(
        self,
        images: pa.Table,
        problems: Sequence[str | None] | npt.NDArray[np.object_],
        details: Sequence[str | None],
    ) -> pa.Table:
        """Rows of ``schema.REJECTS`` for the images that have a problem."""
        rows = [
            self._reject(part, index, None, None, id_, "image", problem, detail)
            for part, index, id_, problem, detail in zip(
                images["part"].to_pylist(),
                images["index"].to_pylist(),
                images["id"].to_pylist(),
                problems,
                details,
                strict=True,
            )
            if problem is not None
        ]
        return pa.Table.from_pylist(rows, schema=REJECTS)

    def annotation_rejects(
        self,
        annotations: pa.Table,
        reasons: Sequence[str] | npt.NDArray[np.object_],
        ids: Sequence[str | None],
    ) -> pa.Table:
        """Rows of ``schema.REJECTS`` for annotations, all of which have a reason."""
        columns = ["part", "index", "sub", "annotation_id", "kind", "text", *"xywh", "detail"]
        rows = [
            self._reject(
                row["part"],
                row["index"],
                row["sub"],
                row["annotation_id"],
                id_,
                KINDS[row["kind"]],
                reason,
                row["detail"] or _describe(row),
            )
            for row, reason, id_ in zip(
                annotations.select(columns).to_pylist(), reasons, ids, strict=True
            )
        ]
        return pa.Table.from_pylist(rows, schema=REJECTS)

    def attribute_rejects(self, attributes: pa.Table) -> pa.Table:
        """Rows of ``schema.REJECTS`` for attributes of objects that no file has."""
        rows = [
            self._reject(
                row["part"],
                row["index"],
                row["sub"],
                row["annotation_id"],
                None,
                "attributes",
                "unknown_object",
                "no object of the image has this id",
            )
            for row in attributes.to_pylist()
        ]
        return pa.Table.from_pylist(rows, schema=REJECTS)

    def _reject(
        self,
        part: int,
        index: int,
        sub: int | None,
        annotation_id: int | None,
        record_id: str | None,
        kind: str,
        reason: str,
        message: str | None,
    ) -> dict[str, Any]:
        file, place = self.parts[part]
        location = place.format(index=index, line=index + 1, sub=sub)
        if annotation_id is not None:
            location += f" id={annotation_id}"
        return {
            "source_file": str(file),
            "record_id": record_id,
            "location": location,
            "kind": kind,
            "reason": reason,
            "message": message,
        }


def _describe(row: dict[str, Any]) -> str:
    text = repr(row["text"] or "")
    if row["x"] is None:
        return text
    return f"{text} at x={row['x']:g} y={row['y']:g} w={row['w']:g} h={row['h']:g}"


def _attributes(lists: pa.ChunkedArray, kinds: npt.NDArray[np.int8]) -> pa.Array:
    """Normalised, without empty ones and repeats, in raw order; empty list for none."""
    lists = lists.combine_chunks()
    flat = lists.flatten()
    if not len(flat):
        return pa.array([[]] * len(lists), CONCEPT.field("attributes").type)
    texts = iter(normalise_texts(pc.fill_null(flat, "")).to_pylist())
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_pylist()
    clean = [
        list(dict.fromkeys(text for _ in range(length) if (text := next(texts))))
        for length in lengths
    ]
    clean = [value if kind == OBJECT else [] for value, kind in zip(clean, kinds, strict=True)]
    return pa.array(clean, CONCEPT.field("attributes").type)


def _column(values: Any, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if pa.types.is_dictionary(kind):
        return pa.array(values, pa.string()).cast(kind)
    return pa.array(values, kind)
