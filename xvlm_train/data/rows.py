"""Manifest rows at training time: a decoded row group, and one row of it as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.boxes import cxcywh_to_xyxy
from xvlm_data.errors import ManifestError
from xvlm_data.images.decode import is_web_address
from xvlm_data.manifest import Manifest
from xvlm_data.schema import CONCEPT, GRANULARITIES
from xvlm_train.data.transforms import Corners

#: The columns of a manifest that training reads.
COLUMNS = ("id", "image", "width", "height", "concepts")
_CONCEPTS = pa.list_(CONCEPT)
Numbers: TypeAlias = npt.NDArray[np.int64]
_GRANULARITY_LEAF = "concepts.list.element.granularity"


@dataclass(frozen=True, slots=True)
class Reads:
    """Which of a row's concepts a stream sees.

    Attributes:
        granularities: those it takes texts of.
        otherwise: those it takes instead where a row has none of the former.
        largest: of each image only so many, those with the largest boxes; None takes all.
    """

    granularities: tuple[str, ...]
    otherwise: tuple[str, ...] = ()
    largest: int | None = None

    @property
    def usable(self) -> tuple[str, ...]:
        """A row needs a concept of one of these."""
        return self.granularities + self.otherwise


class Row:
    """One image with its K concepts; texts become Python strings only when asked for.

    Attributes:
        id: manifest id.
        width, height: pixels the boxes refer to; 0 where not known.
    """

    __slots__ = ("_group", "_image", "_index", "_start", "_stop", "height", "id", "width")

    def __init__(self, group: RowGroup, index: int) -> None:
        start, stop = int(group.offsets[index]), int(group.offsets[index + 1])
        self._group, self._index, self._start, self._stop = group, index, start, stop
        self._image: dict[str, Any] | None = None
        self.id: str = group.ids[index].as_py()
        self.width, self.height = group.sizes[index].tolist()

    def __len__(self) -> int:
        return self._stop - self._start

    @property
    def boxes(self) -> npt.NDArray[np.float64]:
        """``[K, 4]`` (cx, cy, w, h) in [0, 1]; NaN where the manifest has null."""
        return self._group.boxes[self._start : self._stop]

    def corners(self, k: int) -> Corners:
        """(x0, y0, x1, y1) of the box of concept ``k`` in [0, 1], cut to the image."""
        x0, y0, x1, y1 = self._group.corners[self._start + k].tolist()
        return x0, y0, x1, y1

    def places(self, granularities: tuple[str, ...], boxed: bool = False) -> Numbers:
        """The concepts, ascending, of some granularities; ``boxed``: with a box of some area."""
        values, offsets = self._group.index(granularities, boxed)
        return values[offsets[self._index] : offsets[self._index + 1]] - self._start

    def count(self, granularities: tuple[str, ...]) -> int:
        """The concepts of some granularities, with a box or without."""
        offsets = self._group.index(granularities, False)[1]
        return int(offsets[self._index + 1] - offsets[self._index])

    @property
    def image(self) -> dict[str, Any]:
        """The ``image`` cell, ``{"bytes": ..., "path": ...}``; the bytes are a view, not a copy."""
        if self._image is not None:
            return self._image
        data, path = self._group.bytes[self._index], self._group.paths[self._index].as_py()
        return {
            "bytes": memoryview(data.as_buffer()).cast("B") if data.is_valid else None,
            "path": path,
        }

    @property
    def address(self) -> str | None:
        """Where in an object store the image has to be fetched from; None where it need not be."""
        if self._index not in self._group.remote:
            return None
        path: str = self._group.paths[self._index].as_py()
        return path

    def fetched(self, data: bytes) -> None:
        """Take the bytes that lie at :attr:`address`."""
        self._image = {"bytes": data, "path": self.address}

    def text(self, k: int) -> str:
        """The text of concept ``k`` as released, not cleaned; empty where null."""
        return self._group.texts[self._start + k].as_py() or ""

    def attributes(self, k: int) -> list[str]:
        """Those of concept ``k``; empty where there are none."""
        values, offsets = self._group.attributes
        start, stop = offsets[self._start + k], offsets[self._start + k + 1]
        return [item for n in range(start, stop) if (item := values[n].as_py())]

    def granularity(self, k: int) -> str:
        """``image``, ``region`` or ``object``; empty for what is none of them."""
        kind = int(self._group.kinds[self._start + k])
        return GRANULARITIES[kind] if kind >= 0 else ""


class RowGroup:
    """A row group in Arrow memory; a :class:`Row` is a view of it.

    Attributes:
        nbytes: memory it takes.
        remote: rows whose image has to be fetched from an object store.
    """

    def __init__(self, table: pa.Table) -> None:
        self.nbytes = int(table.nbytes)
        self.ids = table["id"].combine_chunks()
        # Not combined to one array, which would copy them all.
        self.bytes, self.paths = (pc.struct_field(table["image"], n) for n in ("bytes", "path"))
        self.remote = _remote(self.bytes, self.paths)
        self.sizes = np.stack(
            [table[side].to_numpy().astype(np.int64) for side in ("width", "height")], axis=1
        )
        # Other writers index or widen types freely; one type here keeps what follows simple.
        concepts = table["concepts"].combine_chunks().cast(_CONCEPTS)
        self.offsets = concepts.offsets.to_numpy()
        values = concepts.values
        boxes = values.field("box")
        coordinates = boxes.values.slice(4 * boxes.offset, 4 * len(boxes))
        self.boxes = coordinates.to_numpy(zero_copy_only=False).reshape(-1, 4).astype(np.float64)
        self.corners = cxcywh_to_xyxy(self.boxes).clip(0, 1)
        self.texts = values.field("text")
        attributes = values.field("attributes")
        self.attributes = attributes.values, attributes.offsets.to_numpy()
        self.kinds = _kinds(values.field("granularity"))
        # Comparing with NaN is false, so this asks for finite numbers too.
        self._boxed = (self.corners[:, 2:] > self.corners[:, :2]).all(axis=1)
        self._indexes: dict[tuple[tuple[str, ...], bool], tuple[Numbers, Numbers]] = {}
        self._usable: dict[Reads, Numbers] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> Row:
        """Row ``index`` of the group."""
        return Row(self, index)

    def index(self, granularities: tuple[str, ...], boxed: bool) -> tuple[Numbers, Numbers]:
        """Of all rows, :meth:`Row.places` counted from the group's start, and where each begins."""
        key = granularities, boxed
        if key not in self._indexes:
            hits = np.isin(self.kinds, codes(granularities))
            if boxed:
                hits &= self._boxed
            before = np.concatenate([[0], np.cumsum(hits, dtype=np.int64)])
            self._indexes[key] = np.flatnonzero(hits), before[self.offsets]
        return self._indexes[key]

    def usable(self, reads: Reads) -> Numbers:
        """The rows, ascending, that a stream can use."""
        if reads not in self._usable:
            hits = np.isin(self.kinds, codes(reads.usable))
            self._usable[reads] = np.flatnonzero(_hits_of_rows(self.offsets, hits))
        return self._usable[reads]


def codes(granularities: Sequence[str]) -> list[int]:
    """Granularities as places in ``GRANULARITIES``."""
    return [GRANULARITIES.index(name) for name in granularities]


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


def count_concepts(
    manifest: Manifest, shard: int, group: int, reads: Reads
) -> tuple[int, int, set[str]]:
    """What a stream finds in a row group; only the granularity column is read.

    Returns:
        The rows with a concept that it reads; their texts, of an image at most ``reads.largest``;
        and the granularities that occur in the group.
    """
    table = manifest.read_row_group(shard, group, [_GRANULARITY_LEAF])
    if not table.num_columns:  # a writer that names list items otherwise
        table = manifest.read_row_group(shard, group, ["concepts"])
    concepts = table["concepts"].combine_chunks()
    offsets = concepts.offsets.to_numpy()
    kinds = _kinds(concepts.values.field("granularity"))
    numbers = _hits_of_rows(offsets, np.isin(kinds, codes(reads.granularities)))
    if reads.otherwise:
        instead = _hits_of_rows(offsets, np.isin(kinds, codes(reads.otherwise)))
        numbers = np.where(numbers > 0, numbers, instead)
    if reads.largest is not None:
        numbers = numbers.clip(max=reads.largest)
    present = {name for code, name in enumerate(GRANULARITIES) if (kinds == code).any()}
    return int((numbers > 0).sum()), int(numbers.sum()), present


def _kinds(names: pa.Array) -> npt.NDArray[np.int8]:
    if pa.types.is_dictionary(names.type):  # few names: look up each of them once
        table = _kinds(names.dictionary)
        places = names.indices.fill_null(0).to_numpy(zero_copy_only=False)
        found = table[places] if len(table) else np.full(len(names), -1, dtype=np.int8)
        if names.null_count:
            found[names.is_null().to_numpy(zero_copy_only=False)] = -1
        return found
    places = pc.index_in(names, value_set=pa.array(GRANULARITIES, names.type)).fill_null(-1)
    kinds: npt.NDArray[np.int8] = places.to_numpy(zero_copy_only=False).astype(np.int8)
    return kinds


def _remote(data: pa.ChunkedArray, paths: pa.ChunkedArray) -> frozenset[int]:
    """The rows without bytes whose path is one of an object store."""
    absent = pc.and_(pc.is_null(data), pc.match_substring(paths, "://"))
    rows = np.flatnonzero(pc.fill_null(absent, False)).tolist()
    return frozenset(row for row in rows if not is_web_address(paths[row].as_py()))


def _hits_of_rows(
    offsets: npt.NDArray[np.integer], hits: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    before = np.concatenate([[0], np.cumsum(hits, dtype=np.int64)])
    numbers: npt.NDArray[np.int64] = before[offsets[1:]] - before[offsets[:-1]]
    return numbers
