"""The concepts of many rows as flat columns, so that no loop runs over rows or concepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.errors import ManifestError
from xvlm_data.manifest import Manifest

BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Concepts:
    """All N concepts of a batch of R rows, in order.

    Attributes:
        per_row: ``[R]`` number of concepts of each row; 0 where the list is null.
        row: ``[N]`` the row of the batch a concept belongs to.
        boxes: ``[N, 4]`` (cx, cy, w, h); NaN where the box is null or has not four numbers.
        text, granularity: ``[N]`` strings, null where the manifest has null.
        attributes: ``[N]`` number of attributes.
    """

    per_row: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    text: pa.StringArray
    granularity: pa.StringArray
    attributes: npt.NDArray[np.int64]

    @property
    def position(self) -> npt.NDArray[np.int64]:
        """``[N]`` the place of each concept in its own row's list."""
        starts = np.cumsum(self.per_row) - self.per_row
        return np.arange(len(self.row)) - starts[self.row]

    def is_granularity(self, granularity: str) -> npt.NDArray[np.bool_]:
        """``[N]`` whether a concept has this granularity; False where it is null."""
        return to_bools(pc.equal(self.granularity, granularity))


def flatten_concepts(batch: pa.RecordBatch) -> Concepts:
    """The ``concepts`` column of a batch as flat columns."""
    lists = batch.column("concepts")
    per_row = _lengths(lists)
    flat = lists.flatten()
    return Concepts(
        per_row=per_row,
        row=np.repeat(np.arange(len(per_row)), per_row),
        boxes=_boxes(pc.struct_field(flat, "box")),
        text=to_strings(pc.struct_field(flat, "text")),
        granularity=to_strings(pc.struct_field(flat, "granularity")),
        attributes=_lengths(pc.struct_field(flat, "attributes")),
    )


def checked_batches(
    manifest: Manifest,
    columns: Sequence[str],
    batch_size: int = BATCH_ROWS,
    sample: Sample | None = None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Pairs (number of the batch's first row in the manifest, batch), in order.

    Args:
        manifest: an opened manifest.
        columns: which.
        batch_size: rows.
        sample: which row groups to read; without, all of them. A batch then holds rows of one
            group.

    Raises:
        ManifestError: a file is damaged, down to text that is not UTF-8.
    """
    first = 0
    for start, groups in [(0, None)] if sample is None else sample.runs():
        first = start
        for batch in manifest.batches(columns, batch_size, groups):
            try:
                batch.validate(full=True)
            except pa.ArrowInvalid as error:
                url, row = locate(manifest, first)
                problem = str(error).splitlines()[0]
                raise ManifestError(
                    f"{url}: damaged in rows {row} to {row + batch.num_rows - 1} ({problem})",
                    "copy or build it again",
                ) from error
            yield first, batch
            first += batch.num_rows


@dataclass(frozen=True)
class Sample:
    """Row groups that stand for a whole manifest. Use :func:`choose_sample`.

    Attributes:
        groups: by shard, the row groups that are read.
        sizes: by shard, the rows of each of its row groups.
    """

    groups: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        """How many rows are read."""
        pairs = zip(self.groups, self.sizes, strict=True)
        return sum(sizes[group] for groups, sizes in pairs for group in groups)

    def runs(self) -> Iterator[tuple[int, list[list[int]]]]:
        """Neighbouring groups of a shard: the first row, and for each shard the groups to read."""
        start = 0
        for shard, (groups, sizes) in enumerate(zip(self.groups, self.sizes, strict=True)):
            starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64) + start
            run: list[int] = []
            for group in groups:
                if run and group != run[-1] + 1:
                    yield int(starts[run[0]]), self._only(shard, run)
                    run = []
                run.append(group)
            if run:
                yield int(starts[run[0]]), self._only(shard, run)
            start = int(starts[-1])

    def _only(self, shard: int, run: list[int]) -> list[list[int]]:
        return [list(run) if i == shard else [] for i in range(len(self.groups))]


def choose_sample(manifest: Manifest, max_rows: int) -> Sample | None:
    """Evenly spread row groups of about ``max_rows`` rows in all; None where all rows are fewer."""
    if len(manifest) <= max_rows:
        return None
    sizes = tuple(shard.row_groups for shard in manifest.shards)
    places = [(i, group) for i, of in enumerate(sizes) for group in range(len(of))]
    number = max(1, len(places) * max_rows // len(manifest))
    chosen = [places[i] for i in spread(len(places), number)]
    groups = tuple(tuple(g for i, g in chosen if i == shard) for shard in range(len(sizes)))
    return Sample(groups, sizes)


def locate(manifest: Manifest, row: int) -> tuple[str, int]:
    """The shard URL and the row in it, of a row of the whole manifest."""
    for shard in manifest.shards:
        if row < shard.rows:
            return shard.url, row
        row -= shard.rows
    raise IndexError(row)


def spread(total: int, number: int) -> list[int]:
    """At most ``number`` distinct rows of ``total``, evenly spread and always the same."""
    number = max(0, min(number, total))
    return [(2 * i + 1) * total // (2 * number) for i in range(number)]


def to_strings(array: pa.Array) -> pa.StringArray:
    """Plain strings, whether the file has them plain, large or as a dictionary."""
    return array if array.type == pa.string() else array.cast(pa.string())


def to_bools(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Arrow booleans as NumPy ones, null being False."""
    mask: npt.NDArray[np.bool_] = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
    return mask


def _lengths(lists: pa.Array) -> npt.NDArray[np.int64]:
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    numbers: npt.NDArray[np.int64] = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers


def _boxes(lists: pa.Array) -> npt.NDArray[np.float64]:
    # Other writers turn the fixed-size list into a free one, so lengths are never assumed.
    lengths = _lengths(lists)
    whole = lengths == 4
    values = lists.flatten().to_numpy(zero_copy_only=False)
    boxes = np.full((len(lengths), 4), np.nan)
    boxes[whole] = values[np.repeat(whole, lengths)].reshape(-1, 4)
    return boxes
