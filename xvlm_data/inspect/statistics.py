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
from xvlm_data.inspect.distributions import Frequencies, Histogram
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
