"""A table of URLs and captions from anywhere, as a manifest of URLs.

DuckDB reads the file and brings the captions of one URL together, within a memory limit and out of
core. A row is an image: a URL that comes again adds its captions to the row of the first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xvlm_data import __version__
from xvlm_data.errors import UserError
from xvlm_data.raw.files import open_raw
from xvlm_data.schema import (
    BOX,
    CONCEPT,
    FIELDS,
    IMAGE,
    REJECTS,
    SIZES_UNKNOWN,
    WHOLE_IMAGE_BOX,
    manifest_schema,
)
from xvlm_data.text import normalise_texts

_MEMORY = "2GB"
_BATCH = 4096
_LONGEST_LINE = 4 << 20
#: Of text files, by how their names end.
SEPARATORS = {".tsv": "\t", ".tab": "\t", ".txt": "\t", ".csv": ","}


@dataclass(frozen=True)
class ListSpec:
    """A Parquet, CSV or TSV file, and where in it the URLs and captions are.

    Attributes:
        path: the file.
        url_column: name of a column, or its number from 1 in a text file without header.
        caption_column: likewise; None: there are no captions.
        source: first part of the ids.
        split: of all rows.
    """

    path: Path
    url_column: str
    caption_column: str | None
    source: str
    split: str

    def to_dict(self) -> dict[str, Any]:
        """What decides the rows, JSON-ready."""
        return {
            "url_column": self.url_column,
            "caption_column": self.caption_column,
            "source": self.source,
            "split": self.split,
        }


@dataclass(frozen=True)
class ListCounts:
    """What was read: lines that are no rows, rows without URL, and captions by their fate."""

    malformed: int
    without_url: int
    captions: int
    empty_captions: int

    def to_dict(self) -> dict[str, int]:
        """JSON-ready."""
        return dict(vars(self))


def write_url_manifest(spec: ListSpec, folder: Path) -> ListCounts:
    """Write ``urls.parquet``, a manifest of URLs, and ``urls-rejects.parquet`` into a folder.

    Ids are ``<source>/<first 32 hexadecimal digits of the SHA-256 of the URL>``, as those of cc3m.

    Raises:
        UserError: the file is missing or damaged, or has no such column.
    """
    with duckdb.connect(":memory:") as db:
        db.execute("SET memory_limit = $1", [_MEMORY])
        db.execute("SET temp_directory = $1", [str(folder / "spill")])
        db.execute("SET preserve_insertion_order = true")
        try:
            return _write(db, spec, folder)
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            raise UserError(f"{spec.path}: {first}", "check the file and its columns") from error


def _write(db: duckdb.DuckDBPyConnection, spec: ListSpec, folder: Path) -> ListCounts:
    relation, url, caption, parameters = _reader(db, spec)
    # On disk, because the sorts that follow need the memory.
    target = _literal(str(folder / "read.parquet"))
    db.execute(
        f"COPY (SELECT *, substr(sha256(url), 1, 32) AS key FROM ("
        f"SELECT row_number() OVER () - 1 AS n, "
        f"trim(CAST({url} AS VARCHAR), ' \t\r\n') AS url, CAST({caption} AS VARCHAR) AS caption "
        f"FROM {relation})) TO {target} (FORMAT parquet, COMPRESSION zstd)",
        parameters,
    )
    db.execute(f"CREATE VIEW read AS FROM read_parquet({target})")
    grouped = db.sql(
        "SELECT first, $1 || '/' || key AS id, url, caption FROM read JOIN "
        "(SELECT key, min(n) AS first FROM read WHERE url <> '' GROUP BY key) USING (key) "
        "ORDER BY first, n",
        params=[spec.source],
    )
    info = {
        "name": f"{spec.source}-{spec.split}",
        "source": spec.source,
        "split": spec.split,
        "generator": f"xvlm {__version__}",
        "licence": "unknown",
    }
    malformed = 0
    with pq.ParquetWriter(folder / "urls-rejects.parquet", REJECTS, compression="zstd") as rejects:
        for table in _malformed(db, spec):
            malformed += len(table)
            rejects.write_table(table)
        nameless = db.sql(
            "SELECT $1, NULL, 'row ' || n, 'image', 'bad_url', 'no URL' FROM read "
            "WHERE coalesce(url, '') = '' ORDER BY n",
            params=[spec.path.name],
        )
        without_url = 0
        for batch in nameless.to_arrow_reader(_BATCH):
            table = pa.Table.from_batches([batch]).rename_columns(REJECTS.names).cast(REJECTS)
            without_url += len(table)
            rejects.write_table(table)
        captions = empty = 0
        schema = manifest_schema(info, version=SIZES_UNKNOWN)
        with pq.ParquetWriter(folder / "urls.parquet", schema, compression="zstd") as writer:
            for images in _whole_images(grouped.to_arrow_reader(_BATCH)):
                table, blank, read = _rows(images, spec)
                captions, empty = captions + read, empty + len(blank)
                writer.write_table(table)
                if len(blank):
                    rejects.write_table(blank)
    (folder / "read.parquet").unlink()
    return ListCounts(malformed, without_url, captions, empty)


def _reader(db: duckdb.DuckDBPyConnection, spec: ListSpec) -> tuple[str, str, str, dict[str, Any]]:
    """(table function, URL expression, caption expression, parameters)."""
    path = spec.path
    open_raw(path).close()
    parameters: dict[str, Any] = {"path": str(path)}
    if path.suffix.lower() in (".parquet", ".pq"):
        relation = "read_parquet($path)"
        names = [
            row[0]
            for row in db.execute(f"DESCRIBE SELECT * FROM {relation}", parameters).fetchall()
        ]
    elif path.suffix.lower() in SEPARATORS:
        relation, names = _text_reader(spec, SEPARATORS[path.suffix.lower()])
    else:
        raise UserError(
            f"{path}: neither a manifest nor .parquet, .csv or .tsv", "rename it to what it is"
        )
    url = _column(spec.url_column, names, spec)
    caption = "NULL" if spec.caption_column is None else _column(spec.caption_column, names, spec)
    return relation, url, caption, parameters


def first_cells(path: Path) -> list[str]:
    """The cells of the first line of a text file: CSV as the standard has it; in TSV a quote is a
    character like any other.

    Raises:
        UserError: the file is missing, or no text.
    """
    separator = SEPARATORS[path.suffix.lower()]
    with open_raw(path) as file:
        line = file.readline(_LONGEST_LINE).decode("utf-8-sig", "replace")
    style: dict[str, Any] = {"quoting": csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE}
    return next(csv.reader(io.StringIO(line), delimiter=separator, **style), [])


def _text_reader(spec: ListSpec, separator: str) -> tuple[str, list[str]]:
    first = first_cells(spec.path)
    quoted = separator == ","
    header = not spec.url_column.isdigit()
    names = first if header else [str(number + 1) for number in range(len(first))]
    if len(set(names)) < len(names):
        raise UserError(f"{spec.path}: two columns have one name", "rename one of them")
    columns = ", ".join(f"{_literal(name)}: 'VARCHAR'" for name in names)
    mark = "'\"'" if quoted else "''"
    separator = "\\t" if separator == "\t" else separator
    return (
        f"read_csv($path, auto_detect = false, columns = {{{columns}}}, header = {header}, "
        f"delim = '{separator}', quote = {mark}, escape = {mark}, store_rejects = true, "
        f"rejects_limit = 0, max_line_size = {_LONGEST_LINE})",
        names,
    )


def _column(name: str, names: list[str], spec: ListSpec) -> str:
    if name not in names:
        raise UserError(
            f"{spec.path}: no column {name!r}",
            f"its columns are {', '.join(names[:20])}",
        )
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _malformed(db: duckdb.DuckDBPyConnection, spec: ListSpec) -> Iterator[pa.Table]:
    """Rows of ``schema.REJECTS`` for the lines of a text file that are no rows."""
    if spec.path.suffix.lower() not in SEPARATORS:
        return
    found = db.sql(
        "SELECT $1, NULL, 'line ' || line, 'image', 'malformed', "
        "any_value(error_message) || ': ' || any_value(left(csv_line, 200)) "
        "FROM reject_errors GROUP BY line ORDER BY line",
        params=[spec.path.name],
    )
    for batch in found.to_arrow_reader(_BATCH):
        yield pa.Table.from_batches([batch]).rename_columns(REJECTS.names).cast(REJECTS)


def _whole_images(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches cut where an image ends; all rows of an image have the same ``first``."""
    waiting: pa.Table | None = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        first = waiting["first"].to_numpy()
        end = int(np.searchsorted(first, first[-1])) if len(first) else 0
        if end:
            yield waiting.slice(0, end)
            waiting = waiting.slice(end)
    if waiting is not None and len(waiting):
        yield waiting


def _rows(listed: pa.Table, spec: ListSpec) -> tuple[pa.Table, pa.Table, int]:
    """Manifest rows, rejects for captions that are empty, and the number of captions read."""
    _, starts, image_of = np.unique(
        listed["first"].to_numpy(), return_index=True, return_inverse=True
    )
    table = listed.select(["id", "url"]).take(pa.array(starts))
    captions = listed["caption"].combine_chunks().cast(pa.string())
    given = captions.is_valid()
    flat, parents = normalise_texts(captions.filter(given)), pa.array(image_of).filter(given)
    good = pc.not_equal(flat, "")
    texts, rows = flat.filter(good), parents.filter(good).to_numpy()
    lengths = [0] * (len(table) + 1)
    first: list[str | None] = [None] * len(table)
    for row, text in zip(rows.tolist(), texts.to_pylist(), strict=True):
        lengths[row + 1] += 1
        first[row] = text if first[row] is None else first[row]
    offsets = [0]
    for length in lengths[1:]:
        offsets.append(offsets[-1] + length)
    count = len(texts)
    boxes = pa.array(list(WHOLE_IMAGE_BOX) * count, pa.float32())
    concepts = pa.StructArray.from_arrays(
        [
            pa.FixedSizeListArray.from_arrays(boxes, type=BOX),
            texts,
            pa.array([[]] * count, CONCEPT.field("attributes").type),
            pa.array([IMAGE] * count, pa.string()),
        ],
        fields=list(CONCEPT),
    )
    image = pa.StructArray.from_arrays(
        [pa.nulls(len(table), pa.binary()), table["url"].combine_chunks().cast(pa.string())],
        fields=list(FIELDS.field("image").type),
    )
    label = FIELDS.field("source").type
    unknown = pa.array([0] * len(table), pa.int32())
    columns = [
        table["id"].combine_chunks().cast(pa.string()),
        pa.array([spec.source] * len(table), pa.string()).cast(label),
        pa.array([spec.split] * len(table), pa.string()).cast(label),
        image,
        unknown,
        unknown,
        pa.array(first, pa.string()),
        pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), concepts),
    ]
    ids = table["id"].take(parents.filter(pc.invert(good))).to_pylist()
    blank = [
        {
            "source_file": spec.path.name,
            "record_id": id_,
            "kind": "caption",
            "reason": "empty_text",
            "message": "a caption without text",
        }
        for id_ in ids
    ]
    return pa.table(columns, schema=FIELDS), pa.Table.from_pylist(blank, REJECTS), len(flat)
