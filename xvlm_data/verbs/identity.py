"""Which rows are of one image: by their ids, over any number of manifests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xvlm_data.manifest import Manifest


@contextmanager
def spilling_database() -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of bounded memory, whose rest goes to a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as spill:
        config = {"memory_limit": "1GB", "temp_directory": str(Path(spill))}
        with duckdb.connect(config=config) as database:
            yield database


def fill_table(
    database: duckdb.DuckDBPyConnection,
    name: str,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
) -> None:
    """Make a table of batches; what reading them raises is raised as it is.

    DuckDB would make of it a message of its own, with a traceback in it.
    """
    failed: list[BaseException] = []

    def guarded() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except BaseException as error:
            failed.append(error)
            raise

    database.register("given", pa.RecordBatchReader.from_batches(schema, guarded()))
    try:
        database.execute(f"CREATE TABLE {name} AS FROM given")
    except duckdb.Error:
        if failed:
            raise failed[0] from None
        raise
    database.unregister("given")


def repeated_rows(
    manifests: Sequence[Manifest],
) -> tuple[npt.NDArray[np.int64], list[tuple[str, int, int]]]:
    """Rows whose id an earlier row has, counted over all manifests one after the other.

    Returns:
        Their row numbers, ascending; and of the first few (id, number of the manifest that has it
        first, and of one that has it again).
    """
    schema = pa.schema([("id", pa.string()), ("row", pa.int64()), ("manifest", pa.int32())])

    def rows() -> Iterator[pa.RecordBatch]:
        first = 0
        for number, manifest in enumerate(manifests):
            for batch in manifest.batches(["id"], 65536):
                count = len(batch)
                columns = [
                    batch.column(0).cast(pa.string()),
                    pa.array(np.arange(first, first + count)),
                    pa.array(np.full(count, number, np.int32)),
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)
                first += count

    with spilling_database() as database:
        fill_table(database, "ids", schema, rows())
        database.execute(
            "CREATE TABLE repeated AS SELECT id, min(row) AS first, min(manifest) AS here, "
            "max(manifest) AS there FROM ids GROUP BY id HAVING count(*) > 1"
        )
        found = database.execute(
            "SELECT row FROM ids JOIN repeated USING (id) WHERE row > first ORDER BY row"
        ).fetchnumpy()["row"]
        examples = database.execute(
            "SELECT id, here, there FROM repeated ORDER BY first LIMIT 5"
        ).fetchall()
    return np.asarray(found, np.int64), examples
