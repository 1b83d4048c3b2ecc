"""Reads a source into its record tables, for tests of what a source says before any rule."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.data.raw_releases import Silent
from xvlm_data.engines import Inline
from xvlm_data.journal import Journal
from xvlm_data.ranges import READ_FOLDER
from xvlm_data.reading import Records
from xvlm_data.records import TABLES
from xvlm_data.sources import Request, get_source
from xvlm_data.spill import open_spill


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
        texts = [row["extra"] for row in self.annotations if row["extra"] and not row["problem"]]
        return pa.array([json.loads(text) for text in texts], column.type.value_type).to_pylist()


class _Uncut(Records):
    """Spills as they were written, in which annotations still have their keys."""

    complete = False

    def images_complete(self) -> None:
        self.flush()
        self.complete = True

    def _add(self, name: str, columns: Any) -> None:
        assert name != "images" or not self.complete, "an image after images_complete()"
        super()._add(name, columns)


def read_source(name: str, root: Path, folder: Path, split: str = "train") -> Read:
    source = get_source(name)
    request = Request(root.resolve(), split, Silent().reading)
    with Journal(folder / ".journal", {}) as journal:
        records = _Uncut(request, journal, Inline(), merge_images=source.merge_images, size=1000)
        source.read(request, records)
        records.flush()
        tables = {name: _rows(records, journal, name) for name in ("images", "annotations")}
        journal.discard()
    inputs = [path.name for path in request.inputs]
    return Read(tables["images"], tables["annotations"], request.notes, inputs)


def _rows(records: Records, journal: Journal, name: str) -> list[dict[str, Any]]:
    rows = []
    for spill in records.spills:
        if name not in spill["tables"]:
            continue
        file = journal.folder / READ_FOLDER / spill["tables"][name]["file"]
        for found in open_spill(file).read_all().to_pylist():
            row = dict.fromkeys(TABLES[name].names) | found
            row["index"] += spill["base"]
            path, place = records.parts[row["part"]]
            index = row["index"]
            row["place"] = place.format(index=index, line=index + 1, sub=row.get("sub"))
            row["file"] = path.name
            rows.append(row)
    return rows
