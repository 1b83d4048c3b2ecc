"""`xvlm_data.open`: rows as a sequence, and what other libraries make of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xvlm_data
from xvlm_data.errors import ManifestError, UserError
from xvlm_data.manifest import Manifest

from .inspect_manifests import png, row, write, write_folder
from .raw_releases import write_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven rows in two shards, three row groups and two."""
    path = tmp_path_factory.mktemp("rows") / "m"
    rows = [row(n, width=40 + n) for n in range(11)]
    return write_folder(path, rows[:7], rows[7:])


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return xvlm_data.open(folder)


IDS = [f"made/{n}" for n in range(11)]


def ids(rows: Any) -> list[str]:
    return [r["id"] for r in rows]


def test_rows_are_a_sequence(manifest: Manifest) -> None:
    assert len(manifest) == 11
    assert ids(manifest) == IDS
    assert manifest[8]["id"] == "made/8"
    assert manifest[-1]["id"] == "made/10"
    assert manifest[np.int64(3)]["width"] == 43
    assert [r["id"] for r in reversed(manifest)] == IDS[::-1]
    with pytest.raises(IndexError):
        manifest[11]
    assert manifest[2] == row(2, width=42) | {"concepts": manifest[2]["concepts"]}


places = st.one_of(st.none(), st.integers(-13, 13))


@given(start=places, stop=places, step=st.sampled_from([None, 1, 2, 5, -1, -3]))
def test_slices_are_those_of_a_list(
    manifest: Manifest, start: int | None, stop: int | None, step: int | None
) -> None:
    wanted = IDS[start:stop:step]
    found = manifest[start:stop:step]
    assert len(found) == len(wanted)
    assert ids(found) == wanted
    assert found.to_arrow(["id"])["id"].to_pylist() == wanted
    assert ids(found[1:]) == wanted[1:]
    if wanted:
        assert found[-1]["id"] == wanted[-1]


def test_only_the_row_groups_asked_for_are_read(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    of_manifest = Manifest.read_row_group

    def counted(self: Manifest, shard: int, group: int, columns: Any = None) -> pa.Table:
        read.append((shard, group))
        return of_manifest(self, shard, group, columns)

    monkeypatch.setattr(Manifest, "read_row_group", counted)
    part = manifest[4:8]
    assert [part[i]["id"] for i in (0, 1, 0)] == ["made/4", "made/5", "made/4"]
    assert read == [(0, 1)]  # the second of three, once
    read.clear()
    assert ids(part) == IDS[4:8]
    assert read == [(0, 1), (0, 2), (1, 0)]


def test_pandas_and_polars_and_duckdb_and_datasets_open_them(
    folder: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = manifest.to_pandas(["id", "width", "concepts"])
    assert isinstance(frame, pd.DataFrame)
    assert frame["id"].tolist() == IDS
    assert [len(c) for c in frame["concepts"]] == [3] * 11

    polars = pytest.importorskip("polars")
    files = sorted(folder.glob("manifest-*.parquet"))
    assert polars.read_parquet(files)["id"].to_list() == IDS
    texts = polars.scan_parquet(files).select(polars.col("concepts").list.len()).collect()
    assert texts["concepts"].to_list() == [3] * 11
    assert polars.from_arrow(manifest.to_arrow())["width"].to_list() == list(range(40, 51))

    with duckdb.connect() as connection:
        relation = manifest.relation(connection)
        assert relation.filter("width > 47").project("id").fetchall() == [(i,) for i in IDS[8:]]
        part = manifest[2:9].relation(connection).aggregate("count(*), min(width)")
        assert part.fetchall() == [(7, 42)]

    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = manifest[5:].dataset()
    assert ids(found) == IDS[5:]
    assert found[0]["image"].size == (40, 30)
    assert found.features["concepts"].feature["text"].dtype == "string"
    stream = manifest[6:9].dataset(streaming=True)
    assert ids(stream) == IDS[6:9]


def test_pictures_of_rows(manifest: Manifest) -> None:
    small = manifest[:1]
    assert xvlm_data.open(manifest.shards[0].url).image(0).size == small.image(0).size == (40, 30)
    drawn = np.asarray(manifest.draw(0))
    assert drawn.shape[1] == 640  # enlarged until its labels can be read
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 3


def test_a_manifest_goes_to_another_process_without_its_rows(manifest: Manifest) -> None:
    assert manifest[0]["id"] == "made/0"
    sent = pickle.dumps(manifest)
    assert len(sent) < 5000
    assert pickle.loads(sent)[10]["id"] == "made/10"


def test_moved_images(tmp_path: Path) -> None:
    write_image(tmp_path / "new/a.png", png())
    rows = [row(0, image={"bytes": None, "path": "/old/a.png"})]
    path = write(tmp_path / "m.parquet", rows, {"name": "made", "image_root": "/old"})
    moved = xvlm_data.open(path, image_root=str(tmp_path / "new"))
    assert moved.image(0).size == (40, 30)
    assert moved.to_pandas()["image"][0]["path"] == str(tmp_path / "new/a.png")
    for call in (moved.relation, moved.dataset):
        with pytest.raises(UserError, match="reads the files as they are"):
            call()


def test_what_is_no_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        xvlm_data.open(tmp_path / "nothing")
