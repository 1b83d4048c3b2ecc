"""What the verbs of xvlm-data and its imports write is read for training like any build."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.round_trips import import_back
from tests.train.small_manifests import boxed, captioned, write
from xvlm_data.formats.coco import export_coco
from xvlm_data.formats.webdataset import export_webdataset
from xvlm_data.formats.xvlm_jsonl import export_jsonl
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.verbs.merge import merge
from xvlm_train.data.rows import Row, read_rows


def training_rows(manifest: Manifest) -> dict[str, Row]:
    found = {}
    for number, shard in enumerate(manifest.shards):
        for group in range(len(shard.row_groups)):
            rows = read_rows(manifest, number, group)
            found |= {rows.row(i).id: rows.row(i) for i in range(len(rows))}
    return found


def in_order(row: Row) -> list[int]:
    """The order of a build: captions, regions, objects."""
    kinds = ["image", "region", "object"]
    return sorted(range(len(row)), key=lambda i: kinds.index(row.granularity(i)))


def test_training_reads_the_same_rows(tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", boxed(5))
    other = [row | {"id": f"other/{n}", "source": "other"} for n, row in enumerate(captioned(4))]
    merge([first, write(tmp_path / "b.parquet", other)], tmp_path / "both")
    merged = open_manifest(tmp_path / "both")
    wanted = training_rows(merged)
    assert len(wanted) == 9
    for name, export in (
        ("coco", export_coco),
        ("webdataset", export_webdataset),
        ("xvlm-jsonl", export_jsonl),
    ):
        export(merged, tmp_path / name)
        found = training_rows(import_back(name, tmp_path / name, tmp_path / f"{name}-again"))
        assert set(found) == set(wanted)
        for id_, row in wanted.items():
            order = in_order(row)
            assert found[id_].image["bytes"] == row.image["bytes"]
            again = found[id_]
            assert [again.text(k) for k in range(len(again))] == [row.text(i) for i in order]
            assert [again.attributes(k) for k in range(len(again))] == [
                row.attributes(i) for i in order
            ]
            np.testing.assert_allclose(found[id_].boxes, row.boxes[order], atol=1e-6)
