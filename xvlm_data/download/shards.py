"""A shard: a range of input rows, what became of them, and the files that tell it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xvlm_data.download.log import ShardLog, Stored
from xvlm_data.download.reasons import TRANSIENT, Failure
from xvlm_data.errors import ManifestError
from xvlm_data.schema import FIELDS, GRANULARITIES, IMAGE, REJECTS
from xvlm_data.write import SHARD_NAME, ShardWriter

REJECTS_NAME = "rejects-{:05d}.parquet"
#: Images of which a block of a shard is made in memory.
_BLOCK_ROWS, _BLOCK_BYTES = 256, 16 << 20
#: What ``counts`` of a manifest call the granularities.
KINDS = {granularity: granularity for granularity in GRANULARITIES} | {IMAGE: "caption"}


@dataclass
class Previous:
    """The same shard of the finished manifest whose passing failures are tried again.

    Attributes:
        path: its file.
        entry: what ``manifest.json`` says of it.
        rejects: by row of the shard, as ``rejects.parquet`` has them.
    """

    path: Path
    entry: dict[str, Any]
    rejects: dict[int, dict[str, Any]]

    def images(self) -> Iterator[tuple[str, bytes, int, int]]:
        """(id, bytes, width, height) of its rows, in order."""
        columns = ["id", "image", "width", "height"]
        try:
            for batch in pq.ParquetFile(self.path).iter_batches(64, columns=columns):
                for row in batch.to_pylist():
                    yield row["id"], row["image"]["bytes"], row["width"], row["height"]
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(f"{self.path}: damaged ({error})", "download it again") from error


@dataclass
class Shard:
    """A shard while it is being downloaded.

    Attributes:
        number: from 0.
        first: the input row that it begins with.
        table: its rows, of the manifest schema without bytes.
        log: what became of them.
        previous: on a retry, what became of them before.
        waiting: rows of the shard that are still to be fetched.
        left: how many of them are not through.
    """

    number: int
    first: int
    table: pa.Table
    log: ShardLog
    previous: Previous | None = None
    waiting: list[int] = field(init=False)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        known = self.log.outcomes
        rows = range(len(self.table))
        if self.previous is not None:
            rejects = self.previous.rejects
            self.waiting = [row for row in rows if row in rejects and row not in known]
            self.waiting = [r for r in self.waiting if _may_pass(rejects[r])]
        else:
            self.waiting = [row for row in rows if row not in known]
        self.left = len(self.waiting)
        image = self.table["image"].combine_chunks()
        self._urls: list[str | None] = pc.struct_field(image, "path").to_pylist()
        self._sizes = list(
            zip(self.table["width"].to_pylist(), self.table["height"].to_pylist(), strict=True)
        )

    def url(self, row: int) -> str:
        """The URL of a row."""
        return self._urls[row] or ""

    def size(self, row: int) -> tuple[int, int] | None:
        """The (width, height) that the boxes of a row refer to, where they are known."""
        width, height = self._sizes[row]
        return (width, height) if width > 0 and height > 0 else None

    def finish(self, folder: Path, schema: pa.Schema, input_name: str) -> dict[str, Any]:
        """Write the shard and its rejects; returns its record for the journal.

        Args:
            folder: where its files are staged.
            schema: of the rows, with the footer.
            input_name: what to call the input in the rejects.

        Raises:
            OSError: the disk is full.
            ManifestError: the previous shard is damaged.
        """
        rejects = [
            reject for row in range(len(self.table)) if (reject := self._reject(row, input_name))
        ]
        pq.write_table(
            pa.Table.from_pylist(rejects, REJECTS),
            folder / REJECTS_NAME.format(self.number),
            compression="zstd",
        )
        gained = any(isinstance(outcome, Stored) for outcome in self.log.outcomes.values())
        if self.previous is not None and not gained:
            entry = dict(self.previous.entry)
        else:
            entry = self._write(folder / SHARD_NAME.format(self.number), schema)
        entry |= {"first_row": self.first, "input_rows": len(self.table), "rejects": len(rejects)}
        if entry["rows"] + len(rejects) != len(self.table):
            raise AssertionError(f"shard {self.number}: {entry['rows']} + {len(rejects)} rows")
        return {"shard": entry} | self._counts(rejects)

    def _reject(self, row: int, input_name: str) -> dict[str, Any] | None:
        outcome = self.log.outcomes.get(row)
        if isinstance(outcome, Failure):
            return {
                "source_file": input_name,
                "record_id": self.table["id"][row].as_py(),
                "location": f"row {self.first + row}",
                "kind": "image",
                "reason": outcome.reason,
                "message": f"{self.url(row)[:500]}: {outcome.message}",
            }
        if outcome is None and self.previous is not None:
            return self.previous.rejects.get(row)
        return None

    def _images(self) -> Iterator[tuple[int, bytes, int, int]]:
        """(row, bytes, width, height) of the images, in the order of the rows."""
        before = self.previous.images() if self.previous is not None else iter(())
        for row in range(len(self.table)):
            outcome = self.log.outcomes.get(row)
            if isinstance(outcome, Stored):
                yield row, self.log.read(outcome), *outcome.size
            elif outcome is None and (
                self.previous is not None and row not in self.previous.rejects
            ):
                id_, data, width, height = next(before, ("", b"", 0, 0))
                if id_ != self.table["id"][row].as_py():
                    raise ManifestError(
                        f"{self.previous.path}: does not fit its rejects.parquet",
                        "download it again with --restart",
                    )
                yield row, data, width, height

    def _write(self, path: Path, schema: pa.Schema) -> dict[str, Any]:
        block: list[tuple[int, bytes, int, int]] = []
        size = 0
        with ShardWriter(path, schema) as writer:
            for image in self._images():
                block.append(image)
                size += len(image[1])
                if len(block) >= _BLOCK_ROWS or size >= _BLOCK_BYTES:
                    writer.write(self._rows(block))
                    block, size = [], 0
            if block:
                writer.write(self._rows(block))
        return writer.entry()

    def _rows(self, block: list[tuple[int, bytes, int, int]]) -> pa.Table:
        """Rows of the manifest: those of the input with the images' bytes and sizes."""
        rows, data, widths, heights = zip(*block, strict=True)
        table = self.table.take(pa.array(rows, pa.int64()))
        paths = pc.struct_field(table["image"].combine_chunks(), "path")
        columns = {
            "image": pa.StructArray.from_arrays(
                [pa.array(data, pa.binary()), paths], fields=list(FIELDS.field("image").type)
            ),
            "width": pa.array(widths, pa.int32()),
            "height": pa.array(heights, pa.int32()),
        }
        names = table.column_names
        return pa.table([columns.get(name, table[name]) for name in names], schema=table.schema)

    def _counts(self, rejects: list[dict[str, Any]]) -> dict[str, Any]:
        """What was kept and left out, by kind; a concept shares the fate of its image."""
        reasons = {_row_of(reject) - self.first: reject["reason"] for reject in rejects}
        kept: Counter[str] = Counter(image=len(self.table) - len(rejects))
        left_out: dict[str, Counter[str]] = {"image": Counter(reasons.values())}
        without = 0
        concepts = self.table["concepts"].combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(concepts), 0).to_pylist()
        kinds = iter(pc.struct_field(concepts.flatten(), "granularity").to_pylist())
        for row, length in enumerate(lengths):
            reason = reasons.get(row)
            without += reason is None and not length
            for _ in range(length):
                kind = KINDS.get(next(kinds), "caption")
                if reason is None:
                    kept[kind] += 1
                else:
                    left_out.setdefault(kind, Counter())[reason] += 1
        return {
            "kept": dict(kept),
            "left_out": {kind: dict(counter) for kind, counter in left_out.items()},
            "images_without_concepts": without,
        }


def previous_shard(out: Path, entry: dict[str, Any], skip: int) -> Previous:
    """A shard of a finished download.

    Args:
        out: its folder.
        entry: what ``manifest.json`` says of the shard.
        skip: rows of ``rejects.parquet`` before those of the shard.

    Raises:
        ManifestError: what lies there does not fit together.
    """
    path = out / "rejects.parquet"
    rejects: dict[int, dict[str, Any]] = {}
    try:
        file = pq.ParquetFile(path)
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if start < skip + entry["rejects"] and end > skip:
                first = max(skip - start, 0)
                count = min(skip + entry["rejects"], end) - start - first
                for reject in file.read_row_group(group).slice(first, count).to_pylist():
                    rejects[_row_of(reject) - entry["first_row"]] = reject
            start = end
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise ManifestError(f"{path}: damaged ({error})", "download again: --restart") from error
    if len(rejects) != entry["rejects"]:
        raise ManifestError(f"{path}: not the one of this manifest", "download again: --restart")
    return Previous(out / entry["file"], entry, rejects)


def _row_of(reject: dict[str, Any]) -> int:
    return int(str(reject["location"]).removeprefix("row "))


def _may_pass(reject: dict[str, Any]) -> bool:
    return reject["reason"] in TRANSIENT
