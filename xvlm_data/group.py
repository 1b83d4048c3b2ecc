"""Bringing the annotations of each image together, out of core.

DuckDB joins and sorts the record tables within a memory limit and spills the rest, so the data set
may be far larger than the machine. Orders are total, so the result is the same for any number of
threads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from xvlm_data.records import OBJECT, Records

#: Attributes under the id of the object that they belong to now, where objects were merged.
_RESOLVED = """
    SELECT t.*, coalesce(l.annotation_id, t.annotation_id) AS object_id
    FROM attributes t LEFT JOIN (
      SELECT key, alias, min(annotation_id) AS annotation_id FROM aliases GROUP BY key, alias
    ) l ON t.key = l.key AND t.annotation_id = l.alias"""
_ATTRIBUTES = f"""
    SELECT key, object_id AS annotation_id,
      flatten(list(attributes ORDER BY part, index, sub)) AS attributes
    FROM ({_RESOLVED}) GROUP BY key, object_id"""


@dataclass(frozen=True)
class Block:
    """Consecutive images and all their annotations, sorted by (image, kind, place)."""

    images: pa.Table
    annotations: pa.Table


@dataclass(frozen=True)
class Grouped:
    """The grouped tables on disk, and how many rows they hold."""

    images_path: Path
    annotations_path: Path
    orphans_path: Path
    duplicates_path: Path
    loose_attributes_path: Path
    image_count: int


def group(
    records: Records, folder: Path, *, merge_images: bool, memory: str, threads: int
) -> Grouped:
    """Sort images into raw order and annotations under their images.

    Args:
        records: closed record tables.
        folder: where to write, and to spill.
        merge_images: several image records with one key are one image (URL lists); otherwise a
            second record within the same raw file is a duplicate, which is set aside.
        memory: DuckDB's limit, such as "2GB".
        threads: threads to sort with.
    """
    grouped = Grouped(
        folder / "images_sorted.parquet",
        folder / "annotations_sorted.parquet",
        folder / "orphans.parquet",
        folder / "duplicates.parquet",
        folder / "loose_attributes.parquet",
        0,
    )
    with duckdb.connect(":memory:") as db:
        db.execute("SET memory_limit = $1", [memory])
        db.execute("SET temp_directory = $1", [str(folder / "spill")])
        db.execute("SET threads = $1", [max(threads, 1)])
        db.execute("SET preserve_insertion_order = true")
        view_records(db, records)
        # The same image in several files (COCO lists it for instances and for captions) is one.
        repeats = "false" if merge_images else "times_in_part > 1"
        db.execute("""
            CREATE VIEW ranked AS SELECT *,
              row_number() OVER (PARTITION BY key, id IS NULL ORDER BY part, index) AS times,
              row_number() OVER (PARTITION BY key, id IS NULL, part ORDER BY index) AS times_in_part
            FROM images""")
        _copy(
            db,
            """SELECT row_number() OVER (ORDER BY part, index) - 1 AS ordinal,
                 * EXCLUDE (times, times_in_part)
               FROM ranked WHERE times = 1 OR key IS NULL ORDER BY ordinal""",
            grouped.images_path,
        )
        _copy(
            db,
            f"""SELECT * EXCLUDE (times, times_in_part) FROM ranked
                WHERE {repeats} AND key IS NOT NULL ORDER BY part, index""",
            grouped.duplicates_path,
        )
        db.execute(
            "CREATE VIEW sorted_images AS SELECT ordinal, key"
            f" FROM read_parquet({_pattern(grouped.images_path)}) WHERE key IS NOT NULL"
        )
        _copy(
            db,
            f"""SELECT i.ordinal, a.* REPLACE (coalesce(a.attributes, b.attributes) AS attributes)
                FROM annotations a JOIN sorted_images i USING (key)
                LEFT JOIN ({_ATTRIBUTES}) b ON a.kind = {OBJECT} AND a.key = b.key
                  AND a.annotation_id = b.annotation_id
                ORDER BY i.ordinal, a.kind, a.part, a.index, a.sub""",
            grouped.annotations_path,
        )
        _copy(
            db,
            """SELECT a.* FROM annotations a ANTI JOIN sorted_images i USING (key)
               ORDER BY a.part, a.index, a.sub""",
            grouped.orphans_path,
        )
        _copy(
            db,
            f"""SELECT b.key, b.part, b.index, b.sub, b.annotation_id FROM ({_RESOLVED}) b
                ANTI JOIN annotations a ON a.kind = {OBJECT} AND a.key = b.key
                  AND a.annotation_id = b.object_id
                ORDER BY b.part, b.index, b.sub""",
            grouped.loose_attributes_path,
        )
    return replace(grouped, image_count=pq.read_metadata(grouped.images_path).num_rows)


def blocks(grouped: Grouped, size: int) -> Iterator[Block]:
    """The images in raw order, at most ``size`` at a time, each with all of its annotations."""
    annotations = _Cursor(grouped.annotations_path)
    for batch in pq.ParquetFile(grouped.images_path).iter_batches(size):
        images = pa.Table.from_batches([batch])
        yield Block(images, annotations.up_to(images["ordinal"][-1].as_py()))


class _Cursor:
    """Reads a table sorted by ``ordinal`` forward only, in slices."""

    def __init__(self, path: Path) -> None:
        file = pq.ParquetFile(path)
        self._batches = file.iter_batches(65_536)
        self._waiting = file.schema_arrow.empty_table()

    def up_to(self, ordinal: int) -> pa.Table:
        parts = [self._waiting]
        while not len(parts[-1]) or parts[-1]["ordinal"][-1].as_py() <= ordinal:
            batch = next(self._batches, None)
            if batch is None:
                break
            parts.append(pa.Table.from_batches([batch]))
        table = pa.concat_tables(parts).combine_chunks()
        cut = int(table["ordinal"].to_numpy().searchsorted(ordinal, side="right"))
        self._waiting = table.slice(cut)
        return table.slice(0, cut)


def view_records(db: duckdb.DuckDBPyConnection, records: Records) -> None:
    """Make the record tables readable under their names."""
    for name, path in records.paths.items():
        db.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({_pattern(path)})")


def _copy(db: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    db.execute(f"COPY ({query}) TO {_quoted(path)} (FORMAT parquet, COMPRESSION zstd)")


def _quoted(path: Path | str) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _pattern(path: Path) -> str:
    """A path to read from, where DuckDB would take brackets and stars for a pattern."""
    return _quoted(re.sub(r"([*?\[])", r"[\1]", str(path)))
