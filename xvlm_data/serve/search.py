"""Looking through a whole manifest, a while at a time, so that no size is too large.

What fits is told as the page of ``inspect --html`` tells it of its sample: a row does when one of
its concepts has all that is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.errors import UserError
from xvlm_data.inspect.concepts import BATCH_ROWS, Concepts, flatten_concepts, to_bools, to_strings
from xvlm_data.inspect.suspicious import KINDS, find
from xvlm_data.manifest import Manifest
from xvlm_data.schema import GRANULARITIES, IMAGE

Mask = npt.NDArray[np.bool_]

_COLUMNS = ["id", "source", "split", "concepts"]


@dataclass(frozen=True)
class Filter:
    """What is looked for.

    Attributes:
        text: part of a text, an attribute or an id, in either case of letters.
        source, split: exactly these; empty for all.
        granularities: of the concepts that count.
        least, most: area of the box, as parts of the image.
        kind: of :data:`suspicious.KINDS`; empty for all.
    """

    text: str = ""
    source: str = ""
    split: str = ""
    granularities: tuple[str, ...] = GRANULARITIES
    least: float = 0.0
    most: float = 1.0
    kind: str = ""

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Filter:
        """From the parameters of a request.

        Raises:
            UserError: one is not what it should be.
        """
        granularities = tuple(given.get("with", ",".join(GRANULARITIES)).split(","))
        if unknown := [name for name in granularities if name and name not in GRANULARITIES]:
            raise UserError(f"no granularity {unknown[0]!r}", f"known: {', '.join(GRANULARITIES)}")
        kind = given.get("kind", "")
        if kind and kind not in KINDS:
            raise UserError(f"no kind {kind!r}", f"known: {', '.join(KINDS)}")
        try:
            least, most = float(given.get("least", 0)), float(given.get("most", 1))
        except ValueError:
            raise UserError(
                "least and most are no numbers", "give parts of the image, from 0 to 1"
            ) from None
        return cls(
            given.get("text", "").strip(),
            given.get("source", ""),
            given.get("split", ""),
            granularities,
            least,
            most,
            kind,
        )

    @property
    def is_empty(self) -> bool:
        """Whether every row fits."""
        return self == Filter()

    def rows(self, batch: pa.RecordBatch) -> Mask:
        """``[R]`` which rows of a batch fit."""
        fits = np.ones(batch.num_rows, np.bool_)
        for name in ("source", "split"):
            if wanted := getattr(self, name):
                fits &= to_bools(pc.equal(to_strings(batch.column(name)), wanted))
        if self == Filter(source=self.source, split=self.split):
            return fits
        concepts = flatten_concepts(batch)
        found = np.zeros(batch.num_rows, np.bool_)
        found[concepts.row[self._concepts(batch, concepts)]] = True
        if self.text:
            found |= _has(to_strings(batch.column("id")), self.text)
        return fits & found

    def _concepts(self, batch: pa.RecordBatch, concepts: Concepts) -> Mask:
        known = to_bools(pc.is_in(concepts.granularity, value_set=pa.array(GRANULARITIES)))
        fits = ~known
        for name in self.granularities:
            fits |= concepts.is_granularity(name)
        if self.text:
            text = _has(concepts.text, self.text)
            text[_owners_of_attributes(batch, self.text)] = True
            fits &= text
        if self.least > 0 or self.most < 1:
            with np.errstate(invalid="ignore"):
                area = concepts.boxes[:, 2] * concepts.boxes[:, 3]
                fits &= (area >= self.least) & (area <= self.most)
            fits &= ~concepts.is_granularity(IMAGE)
        if self.kind:
            fits &= find(concepts)[self.kind]
        return fits


@dataclass(frozen=True)
class Found:
    """Rows that fit, in order; ``next`` is the row to go on with, None at the end."""

    rows: list[int]
    next: int | None


def search(
    manifest: Manifest, wanted: Filter, *, start: int = 0, limit: int = 48, seconds: float = 1.5
) -> Found:
    """Look through a manifest from a row on, until so many are found or the time is over.

    Raises:
        ManifestError: a file is damaged.
    """
    if wanted.is_empty:
        rows = list(range(start, min(start + limit, len(manifest))))
        following = start + len(rows)
        return Found(rows, following if following < len(manifest) else None)
    deadline = time.monotonic() + seconds
    found: list[int] = []
    for first, batch in _from(manifest, start):
        fits = np.flatnonzero(wanted.rows(batch)) + first
        for row in fits.tolist():
            found.append(row)
            if len(found) == limit:
                return Found(found, row + 1 if row + 1 < len(manifest) else None)
        end = first + batch.num_rows
        if end < len(manifest) and time.monotonic() > deadline:
            return Found(found, end)
    return Found(found, None)


def all_rows(manifest: Manifest, wanted: Filter) -> Iterator[int]:
    """Every row that fits, however long it takes."""
    for first, batch in _from(manifest, 0):
        yield from (np.flatnonzero(wanted.rows(batch)) + first).tolist()


def _from(manifest: Manifest, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches from a row on, with the number of their first row."""
    groups: list[list[int]] = []
    first, begin = 0, None
    for shard in manifest.shards:
        groups.append([])
        for group, size in enumerate(shard.row_groups):
            if first + size > start:
                begin = first if begin is None else begin
                groups[-1].append(group)
            first += size
    if begin is None:
        return
    for batch in manifest.batches(_COLUMNS, BATCH_ROWS, groups):
        skipped = min(max(0, start - begin), batch.num_rows)
        if skipped < batch.num_rows:
            yield begin + skipped, batch.slice(skipped)
        begin += batch.num_rows


def _has(texts: pa.StringArray, part: str) -> Mask:
    return to_bools(pc.match_substring(texts, part, ignore_case=True))


def _owners_of_attributes(batch: pa.RecordBatch, part: str) -> npt.NDArray[np.int64]:
    """Places among the batch's concepts that have an attribute with this part."""
    attributes = pc.struct_field(batch.column("concepts").flatten(), "attributes")
    fits = _has(to_strings(attributes.flatten()), part)
    owners: npt.NDArray[np.int64] = pc.list_parent_indices(attributes).to_numpy()[fits]
    return owners
