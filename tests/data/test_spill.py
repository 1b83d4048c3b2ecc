"""Record tables cut by shard and put together again, against sorting rows in plain Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_data import spill
from xvlm_data.image_index import ImageIndex, make_index
from xvlm_data.records import IMAGES
from xvlm_data.spill import (
    Spill,
    cut_by_shard,
    image_keys,
    open_spill,
    read_cut,
    read_images,
    shard_count,
    write_spill,
)

KEYS = st.none() | st.integers(0, 12)


def index_for(images: list[int]) -> ImageIndex:
    """The index of distinct images, in this order."""
    keys = np.array(images, np.int64)
    return make_index(
        [keys], [np.ones(len(keys), bool)], [np.zeros(len(keys), np.int16)], merge_images=False
    )


def annotations(keys: list[int | None], number: int) -> pa.Table:
    return pa.table(
        {
            "key": pa.array(keys, pa.int64()),
            "index": pa.array(range(len(keys)), pa.int64()),
            "text": pa.array([f"{number}/{place}" for place in range(len(keys))]),
        }
    )


@settings(max_examples=150)
@given(
    images=st.lists(st.integers(0, 12), unique=True, max_size=10),
    spills=st.lists(st.lists(KEYS, min_size=1, max_size=15), max_size=4),
    size=st.integers(1, 5),
)
def test_every_row_comes_back_once_with_its_image_and_in_raw_order(
    tmp_path_factory: pytest.TempPathFactory,
    images: list[int],
    spills: list[list[int | None]],
    size: int,
) -> None:
    folder = tmp_path_factory.mktemp("spill")
    index = index_for(images)
    written: list[Spill] = []
    base = 0
    expected: dict[int, list[tuple[int, int, str]]] = {}
    shards = shard_count(len(images), size)
    for number, keys in enumerate(spills):
        tables = {"annotations": annotations(keys, number)}
        written.append(write_spill(folder, str(number), tables, index, size) | {"base": base})
        for place, key in enumerate(keys):
            known = key is not None and key in images
            ordinal = images.index(key) if known else shards * size  # type: ignore[arg-type]
            row = (ordinal, base + place, f"{number}/{place}")
            expected.setdefault(ordinal // size, []).append(row)
        base += len(keys)
    for shard in range(shards + 1):
        found = read_cut(folder, written, "annotations", shard)
        rows = sorted(expected.get(shard, []), key=lambda row: row[0])
        if not rows:
            assert found is None
        else:
            assert found is not None
            assert "key" not in found.column_names
            columns = [found[name].to_pylist() for name in ("ordinal", "index", "text")]
            assert list(zip(*columns, strict=True)) == rows
    assert read_cut(folder, written, "attributes", 0) is None


@given(
    images=st.lists(st.integers(0, 12), unique=True, max_size=10),
    keys=st.lists(KEYS, min_size=1, max_size=20),
    size=st.integers(1, 5),
)
def test_a_batch_is_a_shard_and_what_has_no_image_comes_last(
    images: list[int], keys: list[int | None], size: int
) -> None:
    batches, shards = cut_by_shard(annotations(keys, 0), index_for(images), size)
    assert shards == sorted(set(shards))
    assert len(batches) == len(shards)
    for batch, shard in zip(batches, shards, strict=True):
        assert {ordinal // size for ordinal in batch["ordinal"].to_pylist()} == {shard}
    orphans = sum(key is None or key not in images for key in keys)
    last = shard_count(len(images), size)
    assert (len(batches[-1]) if shards[-1] == last else 0) == orphans
    assert sum(map(len, batches)) == len(keys)


def test_a_table_in_several_chunks_is_cut_as_one() -> None:
    table = pa.concat_tables([annotations([1, 2], 0), annotations([1, 2, 9], 1)])
    batches, shards = cut_by_shard(table, index_for([1, 2]), 1)
    assert shards == [0, 1, 2]
    assert [batch["text"].to_pylist() for batch in batches] == [
        ["0/0", "1/0"],
        ["0/1", "1/1"],
        ["1/2"],
    ]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    batch=st.integers(1, 5),
    bounds=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_image_records_are_read_by_number(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    batch: int,
    bounds: tuple[int, int],
) -> None:
    folder = tmp_path_factory.mktemp("images")
    written: list[Spill] = []
    truth: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "IMAGE_BATCH", batch)
        for number, size in enumerate(sizes):
            rows = [
                {
                    "key": None if place % 4 == 3 else 100 * number + place,
                    "id": f"x/{number}/{place}",
                    "part": number,
                    "index": place,
                }
                for place in range(size)
            ]
            # Columns of nulls are left out, as a source leaves them out.
            fields = [IMAGES.field(name) for name in rows[0]]
            table = pa.Table.from_pylist(rows, pa.schema(fields))
            base = 1_000 * number
            tables = (
                {"images": table}
                if number != 1
                else {"images": table, "annotations": annotations([1], 0)}
            )
            written.append(write_spill(folder, str(number), tables, None, 5) | {"base": base})
            truth += [
                dict.fromkeys(IMAGES.names) | row | {"index": base + row["index"]} for row in rows
            ]  # type: ignore[operator]
        first, last = bounds
        found: dict[int, dict[str, Any]] = {}
        for start, table in read_images(folder, written, first, last):
            assert table.schema == IMAGES
            for place, row in enumerate(table.to_pylist()):
                assert start + place not in found
                found[start + place] = row
        assert found == {n: truth[n] for n in range(first, min(last, len(truth)))}
        keys, known, parts = image_keys(folder, written)
    has_key = np.concatenate(known).tolist()
    assert has_key == [row["key"] is not None for row in truth]
    numbers = np.concatenate(keys).tolist()
    assert [k for k, ok in zip(numbers, has_key, strict=True) if ok] == [
        row["key"] for row in truth if row["key"] is not None
    ]
    assert np.concatenate(parts).tolist() == [row["part"] for row in truth]


def test_a_file_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.arrow"
    batches = annotations([1, 2], 0).to_batches()
    spill.write_batches(path, batches)
    before = path.read_bytes()

    def fails(self: Any, batch: pa.RecordBatch) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(pa.ipc.RecordBatchFileWriter, "write_batch", fails)
        with pytest.raises(OSError, match="disk full"):
            spill.write_batches(path, annotations([7], 0).to_batches())
    assert path.read_bytes() == before
    assert open_spill(path).read_all()["key"].to_pylist() == [1, 2]
