"""Reads a source into its record tables, for tests of what a source says before any rule."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.raw_releases import Silent
from xvlm_data import records as record_tables
from xvlm_data.records import Records
from xvlm_data.sources import Request, get_source

CAPTION, REGION, OBJECT, QUESTION = 0, 1, 2, 3


@dataclass
class Read:
    """What a source wrote: rows of the tables with their place, and what it told the user."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    notes: list[str]
    inputs: list[str]

    def of_kind(self, kind: int) -> list[dict[str, Any]]:
        return [row for row in self.annotations if row["kind"] == kind]

    def extras(self, column: pa.Field) -> list[Any]:
        """Elements of the source's own column, as the manifest will hold them."""
        texts = [row["extra"] for row in self.of_kind(QUESTION) if row["problem"] is None]
        return pa.array([json.loads(text) for text in texts], column.type.value_type).to_pylist()


def read_source(name: str, root: Path, folder: Path, split: str = "train") -> Read:
    folder.mkdir(parents=True, exist_ok=True)
    request = Request(root.resolve(), split, Silent().reading)
    schema = record_tables.ANNOTATIONS
    if "extra" not in schema.names:
        schema = schema.append(pa.field("extra", pa.string()))
    with mock.patch.dict(record_tables.TABLES, {"annotations": schema}):
        records = Records(folder)
        with records:
            get_source(name).read(request, records)
    tables = {}
    for table in ("images", "annotations"):
        rows = pq.read_table(records.paths[table]).to_pylist()
        for row in rows:
            _, place = records.parts[row["part"]]
            index, sub = row["index"], row.get("sub")
            row["place"] = place.format(index=index, line=index + 1, sub=sub)
            row["file"] = records.parts[row["part"]][0].name
        tables[table] = rows
    inputs = [path.name for path in request.inputs]
    return Read(tables["images"], tables["annotations"], request.notes, inputs)
