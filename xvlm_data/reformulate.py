"""One block of records into manifest rows, rejects and counts: the step every build repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.attributes import clean_attributes
from xvlm_data.images.check import CheckedImages, ImageChecker
from xvlm_data.records import CAPTION, IMAGES, KINDS, OBJECT, QUESTION, column
from xvlm_data.rejects import RejectsMaker
from xvlm_data.rules import Judged, Reasons, Rules, judge
from xvlm_data.schema import BOX, CONCEPT, FIELDS, GRANULARITIES
from xvlm_data.text import normalise_texts


@dataclass
class Counts:
    """What became of the records, per kind: kept, and left out by reason."""

    kept: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    clipped: int = 0
    images_without_concepts: int = 0
    bytes_read: int = 0
    bytes_stored: int = 0

    def leave_out(self, kind: str, reasons: Mapping[str, int]) -> None:
        """Count records of one kind that did not make it."""
        if reasons:
            self.left_out.setdefault(kind, Counter()).update(reasons)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return vars(self) | {}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Counts:
        """From what :meth:`to_dict` gave."""
        counts = cls(**values)
        counts.kept = Counter(counts.kept)
        counts.left_out = {kind: Counter(reasons) for kind, reasons in counts.left_out.items()}
        return counts

    def add(self, other: Counts) -> None:
        """Add what was counted elsewhere."""
        self.kept.update(other.kept)
        for kind, reasons in other.left_out.items():
            self.leave_out(kind, reasons)
        self.clipped += other.clipped
        self.images_without_concepts += other.images_without_concepts
        self.bytes_read += other.bytes_read
        self.bytes_stored += other.bytes_stored


@dataclass(frozen=True)
class Reformulator:
    """Turns blocks into rows; the same block always gives the same rows.

    Attributes:
        source: name of the source, for the rows.
        split: split of the rows.
        rejects: makes rejects of what is left out.
        checker: finds and checks images.
        rules: what is kept.
        labels: for each part, the text of each category id.
        normalised_boxes: boxes come in units of their image.
        extra: a column beyond those of every manifest, filled from question records.
    """

    source: str
    split: str
    rejects: RejectsMaker
    checker: ImageChecker
    rules: Rules
    labels: Mapping[int, Mapping[int, str]]
    normalised_boxes: bool = False
    extra: pa.Field | None = None

    @property
    def schema(self) -> pa.Schema:
        """Of the rows."""
        return FIELDS if self.extra is None else FIELDS.append(self.extra)

    def __call__(
        self,
        images: pa.Table,
        ordinals: npt.NDArray[np.int64],
        annotations: pa.Table,
        pool: ThreadPoolExecutor | None,
        counts: Counts,
    ) -> tuple[pa.Table, pa.Table]:
        """(manifest rows, rejects) of a block; counts are added to ``counts``.

        Args:
            images: I consecutive images, columns of ``records.IMAGES``.
            ordinals: ``[I]`` their ordinals, ascending.
            annotations: all of their annotations, sorted by ``ordinal`` and then kind.
            pool: threads that decode images.
            counts: of the build.
        """
        checked = self.checker.check_all(images, pool)
        problems = Reasons.of(checked.problems)
        rows = np.searchsorted(ordinals, annotations["ordinal"].to_numpy())
        annotations = self.named(annotations)
        texts = normalise_texts(pc.fill_null(column(annotations, "text"), ""))
        sizes = np.ones_like(checked.sizes) if self.normalised_boxes else checked.sizes
        judged = judge(annotations, rows, np.maximum(sizes, 1), problems, texts, self.rules)
        self._count(counts, problems, column(annotations, "kind").to_numpy(), judged)
        counts.bytes_read += checked.bytes_read
        counts.bytes_stored += checked.bytes_stored
        table = self._rows(images, checked, problems.kept, annotations, rows, texts, judged)
        counts.images_without_concepts += int(
            (pc.list_value_length(table["concepts"]).to_numpy() == 0).sum()
        )
        bad_images = ~problems.kept
        bad = ~judged.reasons.kept
        ids = column(images, "id")
        rejects = [
            self.rejects.images(
                images.filter(pa.array(bad_images)),
                problems.labels(bad_images),
                checked.details.filter(pa.array(bad_images)),
            ),
            self.rejects.annotations(
                annotations.select(self.rejects.columns(annotations)).filter(pa.array(bad)),
                judged.reasons.labels(bad),
                ids.take(pa.array(rows[bad])),
            ),
        ]
        return table, pa.concat_tables(rejects)

    def named(self, annotations: pa.Table) -> pa.Table:
        """With the texts of category ids; unknown ones are a problem."""
        if "label" not in annotations.column_names:
            return annotations
        labels = column(annotations, "label")
        text, problem = column(annotations, "text"), column(annotations, "problem")
        detail = column(annotations, "detail")
        part = column(annotations, "part")
        for place in pc.unique(part.filter(labels.is_valid())).to_pylist():
            names = self.labels.get(place, {})
            here = pc.and_(pc.equal(part, place), labels.is_valid())
            known = pa.array(list(names), pa.int32())
            found = pa.array(list(names.values()), pa.string()).take(
                pc.index_in(labels, value_set=known)
            )
            text = found if here.true_count == len(here) else pc.if_else(here, found, text)
            unknown = pc.and_(here, found.is_null())
            if unknown.true_count:
                problem = pc.if_else(unknown, "unknown_category", problem)
                said = pc.binary_join_element_wise(
                    pa.scalar("category"),
                    labels.filter(unknown).cast(pa.string()),
                    "is not in the file",
                    " ",
                )
                detail = pc.replace_with_mask(detail, unknown, said)
        named = annotations.drop_columns(
            [n for n in ("text", "problem", "detail", "label") if n in annotations.column_names]
        )
        for name, values in (("text", text), ("problem", problem), ("detail", detail)):
            named = named.append_column(name, values)
        return named

    def _count(
        self,
        counts: Counts,
        problems: Reasons,
        kinds: npt.NDArray[np.int8],
        judged: Judged,
    ) -> None:
        counts.kept["image"] += int(problems.kept.sum())
        counts.leave_out("image", problems.counts(np.ones(len(problems.codes), bool)))
        kept = judged.reasons.kept
        for kind, name in enumerate(KINDS):
            of_kind = kinds == kind
            if of_kind.any():
                counts.kept[name] += int((of_kind & kept).sum())
                counts.leave_out(name, judged.reasons.counts(of_kind))
        counts.clipped += int((judged.clipped & kept).sum())

    def _rows(
        self,
        images: pa.Table,
        checked: CheckedImages,
        good: npt.NDArray[np.bool_],
        annotations: pa.Table,
        rows: npt.NDArray[np.int64],
        texts: pa.Array,
        judged: Judged,
    ) -> pa.Table:
        mask = pa.array(good)
        count = int(good.sum())
        kinds = column(annotations, "kind").to_numpy()
        new_row = np.cumsum(good) - 1
        places = np.flatnonzero(judged.reasons.kept & (kinds != QUESTION))
        concept_rows = new_row[rows[places]]
        kept_texts = texts.take(pa.array(places))
        lengths = np.bincount(concept_rows, minlength=count)
        attributes = column(annotations, "attributes").take(pa.array(places))
        concepts = pa.ListArray.from_arrays(
            pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
            pa.StructArray.from_arrays(
                [
                    pa.FixedSizeListArray.from_arrays(
                        pa.array(judged.boxes[places].ravel()), type=BOX
                    ),
                    kept_texts,
                    clean_attributes(attributes, kinds[places] == OBJECT),
                    _granularities(kinds[places]),
                ],
                fields=list(CONCEPT),
            ),
        )
        captions = np.flatnonzero(kinds[places] == CAPTION)
        caption_rows, first = np.unique(concept_rows[captions], return_index=True)
        caption_places = np.full(count, -1, np.int64)
        caption_places[caption_rows] = captions[first]
        columns: list[Any] = [
            column(images, "id").filter(mask),
            _label(images, "source", self.source, mask),
            _label(images, "split", self.split, mask),
            pa.StructArray.from_arrays(
                [checked.data.filter(mask), checked.paths.filter(mask)],
                fields=list(FIELDS.field("image").type),
            ),
            pa.array(checked.shown[good, 0].astype(np.int32)),
            pa.array(checked.shown[good, 1].astype(np.int32)),
            kept_texts.take(pa.array(caption_places, mask=caption_places < 0)),
            concepts,
        ]
        if self.extra is not None:
            asked = np.flatnonzero(judged.reasons.kept & (kinds == QUESTION))
            columns.append(
                _decoded(column(annotations, "extra"), asked, new_row[rows], count, self.extra)
            )
        return pa.table(columns, schema=self.schema)


def _decoded(
    extra: pa.Array,
    places: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    count: int,
    field: pa.Field,
) -> pa.Array:
    """The list column of question records, from their JSON."""
    values = [msgspec.json.decode(text) for text in extra.take(pa.array(places)).to_pylist()]
    lengths = np.bincount(rows[places], minlength=count)
    return pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()),
        pa.array(values, field.type.value_type),
        type=field.type,
    )


def _granularities(kinds: npt.NDArray[np.int8]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(kinds), list(GRANULARITIES)).cast(pa.string())


def _label(images: pa.Table, name: str, default: str, mask: pa.Array) -> pa.Array:
    """The images' own label where they have one."""
    own = column(images, name, IMAGES).filter(mask)
    if own.null_count == len(own):
        return _constant(default, len(own))
    return pc.fill_null(own, default).dictionary_encode()


def _constant(text: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(count, np.int32)), pa.array([text], pa.string())
    )
