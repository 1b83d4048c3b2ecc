"""Columns beyond those of every manifest, such as the ``questions`` of VQA: what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xvlm_data.manifest import Manifest
from xvlm_data.schema import FIELDS


@dataclass
class FurtherColumn:
    """A column that some shards have besides :data:`schema.FIELDS`.

    Attributes:
        kind: its type, in words: ``list of (ref_id, bbox, …)``.
        rows: that have something in it.
        elements: of all its lists together; of a column without lists as many as ``rows``.
    """

    kind: str
    rows: int = 0
    elements: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"type": self.kind, "rows": self.rows, "elements": self.elements}


def further_columns(manifest: Manifest) -> dict[str, FurtherColumn]:
    """Count them, by name; of each no more is read than one of its fields."""
    found: dict[str, FurtherColumn] = {}
    for shard in manifest.shards:
        with fsspec.open(shard.url, "rb") as file:
            parquet = pq.ParquetFile(file)
            leaves = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
            for field in parquet.schema_arrow:
                if field.name in FIELDS.names:
                    continue
                column = found.setdefault(field.name, FurtherColumn(_in_words(field.type)))
                leaf = next(p for p in leaves if p == field.name or p.startswith(f"{field.name}."))
                for group in range(len(shard.row_groups)):
                    _count(parquet.read_row_group(group, [leaf])[field.name], column)
    return found


def _count(values: pa.ChunkedArray, column: FurtherColumn) -> None:
    if not _is_list(values.type):
        column.rows += len(values) - values.null_count
        column.elements += len(values) - values.null_count
        return
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    column.rows += int(np.count_nonzero(lengths))
    column.elements += int(lengths.sum())


def _in_words(kind: pa.DataType) -> str:
    if _is_list(kind):
        return f"list of {_in_words(kind.value_type)}"
    if pa.types.is_struct(kind):
        return f"({', '.join(field.name for field in kind)})"
    return str(kind)


def _is_list(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    )
