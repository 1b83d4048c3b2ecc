"""What a manifest holds, counted in one streaming pass.

Memory does not grow with the manifest: histograms have fixed bins, and the most frequent texts
are exact until their distinct values outgrow a budget, then approximate with a stated error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xvlm_data.inspect.concepts import (
    Concepts,
    Sample,
    checked_batches,
    flatten_concepts,
    spread,
    to_bools,
    to_strings,
)
from xvlm_data.inspect.further import FurtherColumn, further_columns
from xvlm_data.manifest import Manifest
from xvlm_data.schema import GRANULARITIES, IMAGE, OBJECT, REGION, WHOLE_IMAGE_BOX

COLUMNS = ("id", "source", "split", "width", "height", "caption", "concepts")

Watcher = Callable[[int, pa.RecordBatch, Concepts], None]

COUNT_EDGES = (1, 2, 3, 4, 5, 6, 8, 11, 16, 21, 31, 51, 101)
AREA_EDGES = (0.0001, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ASPECT_EDGES = (1 / 8, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1, 1.5, 2, 3, 4, 8)
#: Cells a side of the maps of box centres and of box sides.
MAP_CELLS = 24

#: Words are what white space separates, as in ``str.split``; RE2's ``\s`` is ASCII only.
_WORD = r"[^\s\p{Z}\x0b\x1c-\x1f\x85]+"
TEXT_BUDGET = 96 << 20


class Histogram:
    """Counts of numbers in fixed bins, open at both ends.

    Bin 0 holds values below ``edges[0]``, bin i those in ``[edges[i-1], edges[i])``, the last one
    those from ``edges[-1]`` on. Values that are not finite are only counted, in ``unusable``.
    """

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = np.zeros(len(edges) + 1, np.int64)
        self.total = 0.0
        self.low: float | None = None
        self.high: float | None = None
        self.unusable = 0

    def add(self, values: npt.NDArray[Any], weights: npt.NDArray[np.int64] | None = None) -> None:
        """Count ``[N]`` values, each once or ``weights`` (``[N]``) times."""
        if weights is None:
            weights = np.ones(len(values), np.int64)
        finite = np.isfinite(values)
        self.unusable += int(weights[~finite].sum())
        values, weights = values[finite], weights[finite]
        if not len(values):
            return
        np.add.at(self.counts, np.searchsorted(self.edges, values, side="right"), weights)
        self.total += float((values.astype(np.float64) * weights).sum())
        self.low = min(float(values.min()), self.low if self.low is not None else np.inf)
        self.high = max(float(values.max()), self.high if self.high is not None else -np.inf)

    @property
    def count(self) -> int:
        """How many usable values were counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float | None:
        """Their mean, None when there are none."""
        return self.total / self.count if self.count else None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers; ``counts`` is one longer than ``edges``."""
        return {
            "edges": list(self.edges),
            "counts": self.counts.tolist(),
            "count": self.count,
            "mean": self.mean,
            "min": self.low,
            "max": self.high,
            "unusable": self.unusable,
        }


class Frequencies:
    """How often each string occurs, within a budget of bytes.

    Exact until the distinct strings outgrow the budget; then the rarest are forgotten, and any
    count may be low by at most ``undercount``.
    """

    def __init__(self, budget: int = TEXT_BUDGET) -> None:
        self.budget = budget
        self.total = 0
        self.undercount = 0
        self._parts: list[pa.Table] = []
        self._pending = 0
        self._merged = False

    def add(self, values: pa.StringArray) -> pa.Table:
        """Count strings (nulls are left out); returns their own table (value, count)."""
        seen = pc.value_counts(values.drop_null())
        part = pa.table({"value": seen.field("values"), "count": seen.field("counts")})
        self.total += len(values) - values.null_count
        if part.num_rows:
            self._parts.append(part)
            self._merged = False
        self._pending += part.nbytes
        if self._pending > self.budget // 4 or len(self._parts) > 256:
            self._merge()
        return part

    @property
    def exact(self) -> bool:
        """Whether nothing was forgotten."""
        return self.undercount == 0

    @property
    def distinct(self) -> int:
        """Distinct strings seen; a lower bound when not exact."""
        return self._merge().num_rows

    def top(self, number: int | None = None) -> list[tuple[str, int]]:
        """The most frequent strings, equal counts in the strings' order."""
        table = self._merge()
        if number and number < table.num_rows:
            counts = table["count"].to_numpy()
            least = np.partition(counts, -number)[-number]
            table = table.filter(pa.array(counts >= least))
        order = [("count", "descending"), ("value", "ascending")]
        table = table.sort_by(order).slice(0, number)
        return list(zip(table["value"].to_pylist(), table["count"].to_pylist(), strict=True))

    def tail(self, number: int) -> list[tuple[str, int]]:
        """The rarest strings kept: an even choice of all that are as rare as the rarest."""
        import duckdb

        with duckdb.connect() as database:
            database.register("seen", self._merge())
            return database.execute(
                "SELECT value, count FROM seen WHERE count = (SELECT min(count) FROM seen) "
                "ORDER BY hash(value), value LIMIT ?",
                [number],
            ).fetchall()

    def ranks(self) -> list[tuple[int, int]]:
        """(rank from 1, count) at ranks 1, 2, 4, … and the last, of the strings by count."""
        counts = np.sort(self._merge()["count"].to_numpy())[::-1]
        ranks = sorted({*(1 << i for i in range(len(counts).bit_length())), len(counts)} - {0})
        return [(rank, int(counts[rank - 1])) for rank in ranks if rank <= len(counts)]

    @property
    def once(self) -> int:
        """Strings that occur a single time; a lower bound when not exact."""
        return int(pc.sum(pc.equal(self._merge()["count"], 1)).as_py() or 0)

    def to_dict(self, number: int) -> dict[str, Any]:
        """The top strings and how exact they are."""
        return {
            "total": self.total,
            "distinct": self.distinct,
            "exact": self.exact,
            "undercount": self.undercount,
            "top": [{"text": text, "count": count} for text, count in self.top(number)],
        }

    def _merge(self) -> pa.Table:
        if self._merged and len(self._parts) == 1:
            return self._parts[0]
        empty = pa.table({"value": pa.array([], pa.string()), "count": pa.array([], pa.int64())})
        grouped = pa.concat_tables(self._parts or [empty]).group_by("value", use_threads=False)
        table = grouped.aggregate([("count", "sum")]).rename_columns({"count_sum": "count"})
        table = table.select(["value", "count"])
        if table.nbytes > self.budget:
            table = self._without_rarest(table)
        self._parts, self._pending, self._merged = [table], 0, True
        # Grouping takes several times the table for a moment, which the pool would keep.
        pa.default_memory_pool().release_unused()
        return table

    def _without_rarest(self, table: pa.Table) -> pa.Table:
        table = table.sort_by([("count", "descending"), ("value", "ascending")])
        sizes = pc.binary_length(table["value"]).to_numpy() + 16
        kept = int(np.searchsorted(np.cumsum(sizes), self.budget // 2))
        if kept < table.num_rows:
            self.undercount += table["count"][kept].as_py()
        return table.slice(0, kept).combine_chunks()


def _per_granularity(
    edges: tuple[float, ...], names: tuple[str, ...]
) -> Callable[[], dict[str, Histogram]]:
    return lambda: {name: Histogram(edges) for name in names}


@dataclass
class Statistics:
    """What was counted; fill it with :meth:`update`, or get it from :func:`collect`.

    Attributes:
        rows: images.
        embedded: images whose bytes are in the manifest; the others are referenced by path.
        sizes_unknown: images whose width and height are 0, which nobody has looked at yet.
        captions: rows whose ``caption`` is not null.
        rows_without_concepts: rows whose list of concepts is empty or null.
        attributes: attributes of all concepts together.
        sources, splits: rows of each.
        granularities: concepts of each.
        rows_with: granularity -> rows that have at least one concept of it.
        whole_image_boxes: regions and objects whose box is the whole image.
        concepts_per_image: concepts a row.
        concepts_of: granularity -> concepts of it a row.
        words: granularity -> words a text.
        texts: granularity -> how often each text occurs.
        box_area: region and object -> part of the image its box covers, in [0, 1].
        box_aspect: region and object -> width / height of the box in pixels, of images of known
            size.
        box_centres: region and object -> ``[MAP_CELLS, MAP_CELLS]`` boxes by their centre, top row
            first.
        box_sides: region and object -> the same by (height, width) as parts of the image's, small
            ones first.
        examples: some rows, evenly spread, as plain dicts without the image.
        further: columns beyond those of every manifest, by name.
    """

    rows: int = 0
    embedded: int = 0
    sizes_unknown: int = 0
    captions: int = 0
    rows_without_concepts: int = 0
    attributes: int = 0
    sources: Frequencies = field(default_factory=Frequencies)
    splits: Frequencies = field(default_factory=Frequencies)
    granularities: Frequencies = field(default_factory=Frequencies)
    rows_with: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GRANULARITIES, 0))
    whole_image_boxes: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys((REGION, OBJECT), 0)
    )
    concepts_per_image: Histogram = field(default_factory=lambda: Histogram(COUNT_EDGES))
    concepts_of: dict[str, Histogram] = field(
        default_factory=_per_granularity(COUNT_EDGES, GRANULARITIES)
    )
    words: dict[str, Histogram] = field(
        default_factory=_per_granularity(COUNT_EDGES, GRANULARITIES)
    )
    texts: dict[str, Frequencies] = field(
        default_factory=lambda: {name: Frequencies() for name in GRANULARITIES}
    )
    box_area: dict[str, Histogram] = field(
        default_factory=_per_granularity(AREA_EDGES, (REGION, OBJECT))
    )
    box_aspect: dict[str, Histogram] = field(
        default_factory=_per_granularity(ASPECT_EDGES, (REGION, OBJECT))
    )
    box_centres: dict[str, npt.NDArray[np.int64]] = field(default_factory=lambda: _maps())
    box_sides: dict[str, npt.NDArray[np.int64]] = field(default_factory=lambda: _maps())
    examples: list[dict[str, Any]] = field(default_factory=list)
    further: dict[str, FurtherColumn] = field(default_factory=dict)

    @property
    def referenced(self) -> int:
        """Images that are not embedded."""
        return self.rows - self.embedded

    @property
    def concepts(self) -> int:
        """All concepts of known granularity or not."""
        return int(self.concepts_per_image.total)

    def update(self, batch: pa.RecordBatch, concepts: Concepts | None = None) -> None:
        """Count a batch with the columns of :data:`COLUMNS`, and its concepts if at hand."""
        concepts = concepts or flatten_concepts(batch)
        self.rows += batch.num_rows
        self.sizes_unknown += int(_unknown_sizes(batch).sum())
        self.captions += batch.num_rows - batch.column("caption").null_count
        self.rows_without_concepts += int((concepts.per_row == 0).sum())
        self.attributes += int(concepts.attributes.sum())
        self.sources.add(to_strings(batch.column("source")))
        self.splits.add(to_strings(batch.column("split")))
        self.granularities.add(concepts.granularity)
        self.concepts_per_image.add(concepts.per_row)
        for name in GRANULARITIES:
            chosen = concepts.is_granularity(name)
            each = np.bincount(concepts.row[chosen], minlength=batch.num_rows)
            self.rows_with[name] += int(np.count_nonzero(each))
            self.concepts_of[name].add(each)
            seen = self.texts[name].add(concepts.text.filter(pa.array(chosen)))
            words = pc.count_substring_regex(seen["value"], pattern=_WORD)
            self.words[name].add(words.to_numpy(), seen["count"].to_numpy())
            if name != IMAGE:
                self._add_boxes(name, batch, concepts, chosen)

    def _add_boxes(
        self,
        name: str,
        batch: pa.RecordBatch,
        concepts: Concepts,
        chosen: npt.NDArray[np.bool_],
    ) -> None:
        boxes, row = concepts.boxes[chosen], concepts.row[chosen]
        sides = np.stack([_floats(batch.column(side))[row] for side in ("width", "height")])
        with np.errstate(all="ignore"):
            area = boxes[:, 2] * boxes[:, 3]
            aspect = boxes[:, 2] * sides[0] / (boxes[:, 3] * sides[1])
        degenerate = ~((boxes[:, 2] > 0) & (boxes[:, 3] > 0))
        area[degenerate] = aspect[degenerate] = np.nan
        self.box_area[name].add(area)
        self.box_aspect[name].add(aspect[~_unknown_sizes(batch)[row]])
        self.whole_image_boxes[name] += int((boxes == WHOLE_IMAGE_BOX).all(axis=1).sum())
        good = boxes[np.isfinite(boxes).all(axis=1) & ~degenerate]
        self.box_centres[name] += _map(good[:, 1], good[:, 0])
        self.box_sides[name] += _map(good[:, 3], good[:, 2])

    def to_dict(self, top: int = 10) -> dict[str, Any]:
        """All of it as plain JSON values, with the ``top`` most frequent texts."""
        return {
            "rows": self.rows,
            "images": {
                "embedded": self.embedded,
                "referenced": self.referenced,
                "sizes_unknown": self.sizes_unknown,
            },
            "sources": dict(self.sources.top()),
            "splits": dict(self.splits.top()),
            "captions": self.captions,
            "rows_without_concepts": self.rows_without_concepts,
            "concepts": self.concepts,
            "granularities": dict(self.granularities.top()),
            "rows_with": self.rows_with,
            "whole_image_boxes": self.whole_image_boxes,
            "attributes": self.attributes,
            "concepts_per_image": self.concepts_per_image.to_dict(),
            "concepts_of": {name: h.to_dict() for name, h in self.concepts_of.items()},
            "words": {name: h.to_dict() for name, h in self.words.items()},
            "box_area": {name: h.to_dict() for name, h in self.box_area.items()},
            "box_aspect": {name: h.to_dict() for name, h in self.box_aspect.items()},
            "box_centres": {name: cells.tolist() for name, cells in self.box_centres.items()},
            "box_sides": {name: cells.tolist() for name, cells in self.box_sides.items()},
            "texts": {name: f.to_dict(top) for name, f in self.texts.items()},
            "examples": self.examples,
            "further_columns": {name: of.to_dict() for name, of in self.further.items()},
        }


def collect(
    manifest: Manifest,
    *,
    examples: int = 3,
    sample: Sample | None = None,
    watchers: Sequence[Watcher] = (),
    advance: Callable[[int], None] = lambda rows: None,
) -> Statistics:
    """Count a whole manifest, or a sample of it; image bytes are never read.

    Args:
        manifest: an opened manifest.
        examples: how many rows to keep as examples.
        sample: the row groups to count; without, all of them.
        watchers: told the first row of each batch, the batch and its concepts.
        advance: told the rows of each batch, for a progress bar.

    Raises:
        ManifestError: a file is damaged.
    """
    statistics = Statistics(embedded=_embedded(manifest), further=further_columns(manifest))
    wanted = spread(len(manifest), examples)
    for first, batch in checked_batches(manifest, COLUMNS, sample=sample):
        concepts = flatten_concepts(batch)
        statistics.update(batch, concepts)
        for watcher in watchers:
            watcher(first, batch, concepts)
        while wanted and wanted[0] < first + batch.num_rows:
            row = max(wanted.pop(0) - first, 0)  # of a sample, the nearest that is in it
            statistics.examples += batch.slice(row, 1).to_pylist()
        advance(batch.num_rows)
    return statistics


def _embedded(manifest: Manifest) -> int:
    """Rows with image bytes, from the Parquet footers where these tell."""
    embedded = 0
    for shard in manifest.shards:
        with fsspec.open(shard.url, "rb") as file:
            parquet = pq.ParquetFile(file)
            names = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
            index = names.index("image.bytes")
            for group, rows in enumerate(shard.row_groups):
                chunk = parquet.metadata.row_group(group).column(index).statistics
                if chunk is not None and chunk.has_null_count:
                    embedded += rows - chunk.null_count
                    continue
                for batch in parquet.iter_batches(64, [group], ["image.bytes"]):
                    data = pc.struct_field(batch.column("image"), "bytes")
                    embedded += batch.num_rows - data.null_count
    return embedded


def _maps() -> dict[str, npt.NDArray[np.int64]]:
    return {name: np.zeros((MAP_CELLS, MAP_CELLS), np.int64) for name in (REGION, OBJECT)}


def _map(down: npt.NDArray[np.float64], across: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """``[MAP_CELLS, MAP_CELLS]`` how many points lie in each cell; what is outside, at the edge."""
    cells = [
        np.clip(values * MAP_CELLS, 0, MAP_CELLS - 1).astype(np.int64) for values in (down, across)
    ]
    flat = np.bincount(cells[0] * MAP_CELLS + cells[1], minlength=MAP_CELLS**2)
    return flat.reshape(MAP_CELLS, MAP_CELLS)


def _unknown_sizes(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """``[R]`` whether a row's width and height are both 0."""
    zero = [to_bools(pc.equal(batch.column(side), 0)) for side in ("width", "height")]
    return zero[0] & zero[1]


def _floats(array: pa.Array) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers
