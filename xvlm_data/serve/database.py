"""Questions in SQL: one SELECT at a time, over the manifests' files and nothing else.

DuckDB is started without access to files, network and extensions, the manifests' own Parquet files
excepted, and its configuration is locked before the first question.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest

#: Rows of an answer that are sent, and seconds after which a question is given up.
ANSWER_ROWS, PATIENCE = 500, 60.0

_LOCKED = (
    "SET enable_external_access = false",
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET allow_community_extensions = false",
    "SET lock_configuration = true",
)


@dataclass(frozen=True)
class Answer:
    """What a question came to: ``rows`` are of plain JSON values, ``more`` if some are cut off."""

    columns: list[str]
    rows: list[list[Any]]
    more: bool


class Database:
    """The manifests as views.

    Each has a schema by its name, with ``images`` (row, id, source, split, width, height, caption,
    path, concepts) and ``concepts`` (row, id, source, split, place, granularity, text, attributes,
    cx, cy, w, h, area); those of the first are there without a schema, too.
    """

    def __init__(self, manifests: Sequence[tuple[str, Manifest]], memory: str = "2GB") -> None:
        """Make the views of named manifests; their names differ."""
        import duckdb

        self._spill = tempfile.TemporaryDirectory(prefix="xvlm-serve-")
        config = {"memory_limit": memory, "temp_directory": self._spill.name}
        self._database = duckdb.connect(config=config)
        allowed: list[str] = []
        for number, (name, manifest) in enumerate(manifests):
            files = [_local(shard.url) for shard in manifest.shards]
            allowed += files
            self._database.execute(f"CREATE SCHEMA {quoted(name)}")
            for schema in [name, "main"] if number == 0 else [name]:
                self._create_views(schema, manifest, files)
        self._database.execute("SET allowed_paths = ?", [allowed])
        for statement in _LOCKED:
            self._database.execute(statement)

    def _create_views(self, schema: str, manifest: Manifest, files: list[str]) -> None:
        starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)])[:-1].tolist()
        files_sql = ", ".join(f"'{file.replace(chr(39), chr(39) * 2)}'" for file in files)
        where = quoted(schema)
        self._database.execute(
            f"CREATE VIEW {where}.images AS SELECT "
            f"({starts})[file_index::BIGINT + 1]::BIGINT + file_row_number AS row, id, source, "
            "split, width, height, caption, image.path AS path, concepts "
            f"FROM read_parquet([{files_sql}], file_row_number = true, hive_partitioning = false)"
        )
        self._database.execute(
            f"CREATE VIEW {where}.concepts AS SELECT row, id, source, split, place, "
            "c.granularity AS granularity, c.text AS text, c.attributes AS attributes, "
            "c.box[1] AS cx, c.box[2] AS cy, c.box[3] AS w, c.box[4] AS h, "
            "c.box[3] * c.box[4] AS area FROM (SELECT row, id, source, split, "
            "unnest(concepts) AS c, generate_subscripts(concepts, 1) - 1 AS place "
            f"FROM {where}.images)"
        )

    def ask(self, sql: str, limit: int = ANSWER_ROWS) -> Answer:
        """Answer one SELECT.

        Raises:
            UserError: it is no single SELECT, it fails, or takes longer than PATIENCE.
        """
        with self._running(sql) as cursor:
            columns = [str(column[0]) for column in cursor.description or ()]
            rows = cursor.fetchmany(limit + 1)
        plain = [[_plain(value) for value in row] for row in rows[:limit]]
        return Answer(columns, plain, len(rows) > limit)

    def rows(self, sql: str, manifest: str) -> list[int]:
        """The numbers of the rows that a SELECT names in a column ``row``, or by ``id``.

        Raises:
            UserError: as :meth:`ask`, or there is no such column.
        """
        with self._running(sql) as cursor:
            columns = [str(column[0]).lower() for column in cursor.description or ()]
        column = next((name for name in ("row", "id") if name in columns), None)
        if column is None:
            raise UserError("the answer has neither a column row nor id", "select one of them")
        inner = sql.strip().rstrip(";")
        if column == "id":
            whole = (
                f"SELECT DISTINCT i.row FROM {quoted(manifest)}.images i "
                f"SEMI JOIN (\n{inner}\n) s ON i.id = s.id ORDER BY 1"
            )
        else:
            whole = f"SELECT DISTINCT row FROM (\n{inner}\n) ORDER BY 1"
        with self._running(whole) as cursor:
            found = cursor.fetchall()
        return [row for (row,) in found if isinstance(row, int)]

    @contextmanager
    def _running(self, sql: str) -> Any:
        import duckdb

        cursor = self._database.cursor()
        timer = threading.Timer(PATIENCE, cursor.interrupt)
        try:
            statements = cursor.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UserError("only one SELECT at a time is answered", "nothing can be changed")
            timer.start()
            yield cursor.execute(statements[0])
        except duckdb.InterruptException as error:
            raise UserError(f"no answer within {PATIENCE:.0f} s", "ask for less") from error
        except duckdb.Error as error:
            raise UserError(
                " ".join(str(error).split())[:1000], "see the columns with DESCRIBE images"
            ) from error
        finally:
            timer.cancel()
            cursor.close()

    def close(self) -> None:
        """End it."""
        self._database.close()
        self._spill.cleanup()


def quoted(name: str) -> str:
    """A name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def _local(url: str) -> str:
    fs, path = fsspec.core.url_to_fs(url)
    if "file" not in fs.protocol:
        raise UserError(f"{url}: not on this machine", "copy it here; SQL reads local files alone")
    return str(Path(path).resolve())


def _plain(value: Any) -> Any:
    """A value of an answer for JSON."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 53 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return str(value)
