"""What a build left out, by kind and reason, with examples from ``rejects.parquet``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from xvlm_data.errors import ManifestError
from xvlm_data.manifest import REJECTS_NAME, Manifest
from xvlm_data.rules import FILTERS

EXAMPLES = 5
_MESSAGE = 300
_COLUMNS = ("kind", "reason", "record_id", "source_file", "location", "message")


def left_out(manifest: Manifest) -> list[dict[str, Any]]:
    """Kinds and reasons with their counts and an even choice of records, the most frequent first.

    Each has ``kind``, ``reason``, ``count``, ``flag`` (of the build, which turns the rule off; else
    null) and ``examples``: ``record_id``, ``source_file``, ``location`` and ``message``. There are
    none for a manifest that was not opened as a folder, or whose rejects are gone.

    Raises:
        ManifestError: ``rejects.parquet`` is damaged.
    """
    import duckdb

    if manifest.summary is None:
        return []
    url = f"{manifest.shards[0].url.rpartition('/')[0]}/{REJECTS_NAME}"
    fs, path = fsspec.core.url_to_fs(url)
    if not fs.exists(path):
        return []
    columns = ", ".join(_COLUMNS[2:-1])
    try:
        with fs.open(path, "rb") as file, duckdb.connect(config={"memory_limit": "256MB"}) as db:
            schema = pa.schema([(name, pa.string()) for name in _COLUMNS])
            db.register("given", pa.RecordBatchReader.from_batches(schema, _batches(file, schema)))
            # The smallest hashes are an even choice, and the same one each time.
            rows = db.execute(
                f"SELECT kind, reason, count(*), min_by({{{_fields(columns)}}}, "
                f"hash(record_id, location, message), {EXAMPLES}) FROM given "
                "GROUP BY ALL ORDER BY 3 DESC, 1, 2"
            ).fetchall()
    except (pa.ArrowException, OSError, duckdb.Error) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManifestError(f"{url}: damaged ({problem})", "build the manifest again") from error
    return [
        {
            "kind": kind,
            "reason": reason,
            "count": count,
            "flag": FILTERS.get(reason),
            "examples": examples,
        }
        for kind, reason, count, examples in rows
    ]


def _fields(columns: str) -> str:
    plain = ", ".join(f"'{name}': {name}" for name in columns.split(", "))
    return f"{plain}, 'message': left(message, {_MESSAGE})"


def _batches(file: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    parquet = pq.ParquetFile(file, pre_buffer=False)
    if missing := [name for name in _COLUMNS if name not in parquet.schema_arrow.names]:
        raise pa.ArrowInvalid(f"no column {missing[0]}")
    for batch in parquet.iter_batches(65536, columns=list(_COLUMNS)):
        yield pa.Table.from_batches([batch]).select(_COLUMNS).cast(schema).to_batches()[0]
