"""Manifest rows at training time: a decoded row group, and one row of it as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xvlm_data.errors import ManifestError
from xvlm_data.manifest import Manifest
from xvlm_data.schema import CONCEPT, GRANULARITIES

#: The columns of a manifest that training reads.
COLUMNS = ("id", "image", "width", "height", "concepts")
_CONCEPTS = pa.list_(CONCEPT)
_GRANULARITY_LEAF = "concepts.list.element.granularity"


@dataclass(frozen=True, slots=True)
class Row:
    """One image with its K concepts.

    Attributes:
        id: manifest id.
        image: the ``image`` cell, ``{"bytes": ..., "path": ...}``.
        width, height: pixels the boxes refer to; 0 where not known.
        boxes: ``[K, 4]`` float64 (cx, cy, w, h) in [0, 1]; NaN where the manifest has null.
        texts: as released, not cleaned; empty where null.
        attributes: of each concept; empty lists where there are none.
        granularity: ``image``, ``region`` or ``object`` of each concept.
    """

    id: str
    image: dict[str, Any]
    width: int
    height: int
    boxes: npt.NDArray[np.float64]
    texts: list[str]
    attributes: list[list[str]]
    granularity: list[str]


class RowGroup:
    """A row group in Arrow memory; rows become Python objects one at a time."""

    def __init__(self, table: pa.Table) -> None:
        self._ids = table["id"].combine_chunks()
        self._images = table["image"].combine_chunks()
        self._sizes = np.stack(
            [table[side].to_numpy().astype(np.int64) for side in ("width", "height")], axis=1
        )
        # Other writers index or widen types freely; one type here keeps what follows simple.
        concepts = table["concepts"].combine_chunks().cast(_CONCEPTS)
        self._offsets = concepts.offsets.to_numpy()
        values = concepts.values
        boxes = values.field("box")
        coordinates = boxes.values.slice(4 * boxes.offset, 4 * len(boxes))
        self._boxes = coordinates.to_numpy(zero_copy_only=False).reshape(-1, 4)
        self._texts = values.field("text")
        self._attributes = values.field("attributes")
        self._granularity = values.field("granularity")

    def __len__(self) -> int:
        return len(self._ids)

    def row(self, index: int) -> Row:
        """Row ``index`` of the group."""
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        span = slice(start, stop)
        return Row(
            id=self._ids[index].as_py(),
            image=self._images[index].as_py() or {},
            width=int(self._sizes[index, 0]),
            height=int(self._sizes[index, 1]),
            boxes=self._boxes[span].astype(np.float64),
            texts=[text or "" for text in self._texts[span].to_pylist()],
            attributes=[
                [item for item in items or [] if item]
                for items in self._attributes[span].to_pylist()
            ],
            granularity=self._granularity[span].to_pylist(),
        )

    def with_any(self, granularities: Sequence[str]) -> npt.NDArray[np.int64]:
        """The rows, ascending, that have a concept of one of these granularities."""
        return _rows_with_any(self._offsets, self._granularity, granularities)


def read_rows(manifest: Manifest, shard: int, group: int) -> RowGroup:
    """A row group of a manifest.

    Raises:
        ManifestError: the file is gone or damaged, or holds boxes that are not four numbers.
    """
    table = manifest.read_row_group(shard, group, COLUMNS)
    try:
        return RowGroup(table)
    except pa.ArrowException as error:
        first = str(error).splitlines()[0]
        raise ManifestError(
            f"{manifest.shards[shard].url}: row group {group} breaks the schema ({first})",
            "see `xvlm-data inspect --validate`",
        ) from error


def count_rows(manifest: Manifest, shard: int, group: int) -> dict[tuple[str, ...], int]:
    """Rows of a row group by the granularities their concepts have.

    Returns:
        For each combination of granularities that occurs, e.g. ``("image", "object")``, its rows.
        Their sum is the number of rows. Only the granularity column is read.
    """
    table = manifest.read_row_group(shard, group, [_GRANULARITY_LEAF])
    if not table.num_columns:  # a writer that names list items otherwise
        table = manifest.read_row_group(shard, group, ["concepts"])
    concepts = table["concepts"].combine_chunks()
    names = concepts.values.field("granularity").cast(pa.string())
    offsets = concepts.offsets.to_numpy()
    code = np.zeros(len(concepts), dtype=np.int64)
    for bit, name in enumerate(GRANULARITIES):
        code[_rows_with_any(offsets, names, [name])] |= 1 << bit
    counts: dict[tuple[str, ...], int] = {}
    for value, rows in zip(*np.unique(code, return_counts=True), strict=True):
        present = tuple(name for bit, name in enumerate(GRANULARITIES) if value >> bit & 1)
        counts[present] = int(rows)
    return counts


def _rows_with_any(
    offsets: npt.NDArray[np.integer], names: pa.Array, wanted: Sequence[str]
) -> npt.NDArray[np.int64]:
    import pyarrow.compute as pc

    hits = pc.is_in(names, value_set=pa.array(wanted, pa.string())).to_numpy(zero_copy_only=False)
    before = np.concatenate([[0], np.cumsum(hits, dtype=np.int64)])
    return np.flatnonzero(before[offsets[1:]] > before[offsets[:-1]])
