from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.train.small_manifests import (
    boxed,
    captioned,
    concept,
    row,
    write,
)
from xvlm_data.errors import UserError
from xvlm_data.manifest import open_manifest
from xvlm_data.schema import manifest_schema
from xvlm_train.data.rows import COLUMNS, Reads, Row, RowGroup, count_concepts, read_rows


def texts(row: Row) -> list[str]:
    return [row.text(k) for k in range(len(row))]


def attributes(row: Row) -> list[list[str]]:
    return [row.attributes(k) for k in range(len(row))]


def kinds(row: Row) -> list[str]:
    return [row.granularity(k) for k in range(len(row))]


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    written = boxed(10)
    manifest = write(tmp_path / "m.parquet", written, row_group_size=4)
    for group, start in ((0, 0), (1, 4), (2, 8)):
        rows = RowGroup(manifest.read_row_group(0, group, COLUMNS))
        assert len(rows) == min(4, 10 - start)
        for i in range(len(rows)):
            got, want = rows.row(i), written[start + i]
            assert got.id == want["id"]
            assert got.image["bytes"] == want["image"]["bytes"]
            assert (got.width, got.height) == (64, 48)
            assert texts(got) == [c["text"] for c in want["concepts"]]
            assert attributes(got) == [c["attributes"] for c in want["concepts"]]
            assert kinds(got) == [c["granularity"] for c in want["concepts"]]
            assert got.boxes == pytest.approx(np.array([c["box"] for c in want["concepts"]]))


def test_nulls_in_a_row_do_not_shift_its_neighbours(tmp_path: Path) -> None:
    rows = [
        row(0, [concept("one"), concept("two", (0.1, 0.2, 0.1, 0.2), "region")]),
        row(1, []) | {"concepts": None},
        row(2, [concept(None) | {"box": None, "attributes": None}]),
        row(3, [concept("four", (0.4, 0.4, 0.4, 0.4), "object", ["x"])]),
    ]
    group = RowGroup(
        write(tmp_path / "m.parquet", rows, row_group_size=9).read_row_group(0, 0, COLUMNS)
    )
    assert texts(group.row(1)) == []
    assert texts(group.row(2)) == [""]
    assert np.isnan(group.row(2).boxes).all()
    assert attributes(group.row(2)) == [[]]
    assert texts(group.row(3)) == ["four"]
    assert group.row(3).boxes == pytest.approx(np.full((1, 4), 0.4))
    assert attributes(group.row(3)) == [["x"]]
    assert group.usable(Reads(("region", "object"))).tolist() == [0, 3]
    assert group.usable(Reads(("image",))).tolist() == [0, 2]
    assert group.usable(Reads(("object",), ("image",))).tolist() == [0, 2, 3]


def test_manifests_of_other_writers_are_read(tmp_path: Path) -> None:
    loose = pa.struct(
        [
            ("box", pa.list_(pa.float32())),
            ("text", pa.large_string()),
            ("attributes", pa.large_list(pa.string())),
            ("granularity", pa.dictionary(pa.int8(), pa.string())),
        ]
    )
    schema = manifest_schema({"name": "loose"})
    place = schema.get_field_index("concepts")
    schema = schema.set(place, pa.field("concepts", pa.large_list(loose)))
    written = boxed(3)

    def read() -> tuple[tuple[int, int, set[str]], RowGroup]:
        table = pa.Table.from_pylist(written, schema=schema)
        pq.write_table(table, tmp_path / "m.parquet", use_compliant_nested_type=False)
        manifest = open_manifest(tmp_path / "m.parquet")
        return count_concepts(manifest, 0, 0, Reads(("region",))), read_rows(manifest, 0, 0)

    counts, rows = read()
    assert counts == (3, 12, {"image", "region", "object"})
    last = written[2]["concepts"]
    assert rows.row(2).boxes == pytest.approx(np.array([c["box"] for c in last]))
    assert kinds(rows.row(2)) == [c["granularity"] for c in last]
    written[1]["concepts"][0]["box"] = [0.5, 0.5]
    with pytest.raises(UserError, match="breaks the schema"):
        read()


def test_rows_and_texts_are_counted_by_what_is_read(tmp_path: Path) -> None:
    rows = [*captioned(3), *boxed(2, 3), row(9, [concept("r", (0.5, 0.5, 0.1, 0.1), "region")])]
    manifest = write(tmp_path / "m.parquet", [*rows, row(10, [])], row_group_size=100)

    def count(*names: str, **more: Any) -> tuple[int, int]:
        return count_concepts(manifest, 0, 0, Reads(names, **more))[:2]

    assert count("image") == (5, 5)
    assert count("region") == (3, 5)
    assert count("region", largest=1) == (3, 3)
    assert count("region", "object") == (3, 7)
    assert count("image", otherwise=("region",)) == (6, 6)
    assert count_concepts(manifest, 0, 0, Reads(("image",)))[2] == {"image", "region", "object"}
