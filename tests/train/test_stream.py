from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.small_manifests import (
    boxed,
    captioned,
    concept,
    row,
    tokenizer,
    write,
)
from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.schema import manifest_schema
from xvlm_train.data.batch import Batch
from xvlm_train.data.config import DataConfig
from xvlm_train.data.evaluation import EvalSet, unmistakable_phrases
from xvlm_train.data.loader import batches
from xvlm_train.data.order import Order, generator
from xvlm_train.data.rows import COLUMNS, RowGroup, count_rows, read_rows
from xvlm_train.data.stream import Stream

GRID = (2, 2)
SMALL = DataConfig(
    image_size=32,
    max_tokens=12,
    max_masks=3,
    batch_size=4,
    max_images=4,
    max_texts=12,
    pool_groups=2,
    workers=0,
    seed=5,
)
TOKENIZER = tokenizer()


def stream(
    manifests: Manifest | list[Manifest], config: DataConfig = SMALL, multi_grained: bool = False
) -> Stream:
    listed = manifests if isinstance(manifests, list) else [manifests]
    return Stream(listed, config, TOKENIZER, GRID, multi_grained=multi_grained)


def assert_equal(a: Batch, b: Batch) -> None:
    for field in fields(Batch):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(x, y) if torch.is_tensor(x) else x == y, field.name


def ids(found: Iterable[Batch]) -> list[str]:
    return [record for batch in found for record in batch.record_ids]


# Order


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    pool=st.integers(1, 5),
    epoch=st.integers(0, 1000),
    seed=st.integers(0, 2**40),
)
def test_an_epoch_is_a_permutation_of_the_usable_rows(
    counts: list[int], pool: int, epoch: int, seed: int
) -> None:
    order = Order(np.array(counts), pool, seed, 0)
    rows = [order.locate(epoch, position) for position in range(len(order))]
    assert sorted(rows) == [(g, n) for g, count in enumerate(counts) for n in range(count)]


def test_epochs_streams_and_seeds_differ_and_access_is_random() -> None:
    def rows(order: Order, epoch: int) -> list[tuple[int, int]]:
        return [order.locate(epoch, position) for position in range(40)]

    counts = np.full(10, 4)
    order = Order(counts, 3, 0, 0)
    orders = [rows(order, epoch) for epoch in range(4)]
    orders += [rows(Order(counts, 3, 1, 0), 0), rows(Order(counts, 3, 0, 1), 0)]
    assert len({tuple(o) for o in orders}) == 6
    # Reading backwards from a copy in another process finds the same rows.
    copy = pickle.loads(pickle.dumps(order))
    backwards = [copy.locate(3, position) for position in reversed(range(40))]
    assert backwards[::-1] == orders[3]


def test_rows_are_mixed_over_the_groups_of_a_pool_and_only_of_it() -> None:
    order = Order(np.full(8, 50), 4, 0, 0)
    groups = [order.locate(0, position)[0] for position in range(400)]
    first, second = set(groups[:200]), set(groups[200:])
    assert len(first) == len(second) == 4
    assert not first & second
    assert len(set(groups[:20])) == 4


def test_the_generator_depends_on_each_of_its_five_numbers() -> None:
    base = (1, 0, 2, 3, 4)
    draws = {generator(*base).integers(2**63)}
    for i in range(5):
        changed = tuple(v + (j == i) for j, v in enumerate(base))
        draws.add(generator(*changed).integers(2**63))
    assert len(draws) == 6
    assert generator(*base).integers(2**63) in draws


# Rows


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
            assert got.texts == [c["text"] for c in want["concepts"]]
            assert got.attributes == [c["attributes"] for c in want["concepts"]]
            assert got.granularity == [c["granularity"] for c in want["concepts"]]
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
    assert group.row(1).texts == []
    assert group.row(2).texts == [""]
    assert np.isnan(group.row(2).boxes).all()
    assert group.row(2).attributes == [[]]
    assert group.row(3).texts == ["four"]
    assert group.row(3).boxes == pytest.approx(np.full((1, 4), 0.4))
    assert group.row(3).attributes == [["x"]]
    assert group.with_any(["region", "object"]).tolist() == [0, 3]
    assert group.with_any(["image"]).tolist() == [0, 2]


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

    def read() -> tuple[dict[tuple[str, ...], int], RowGroup]:
        table = pa.Table.from_pylist(written, schema=schema)
        pq.write_table(table, tmp_path / "m.parquet", use_compliant_nested_type=False)
        manifest = open_manifest(tmp_path / "m.parquet")
        return count_rows(manifest, 0, 0), read_rows(manifest, 0, 0)

    counts, rows = read()
    assert counts == {("image", "region", "object"): 3}
    last = written[2]["concepts"]
    assert rows.row(2).boxes == pytest.approx(np.array([c["box"] for c in last]))
    assert rows.row(2).granularity == [c["granularity"] for c in last]
    written[1]["concepts"][0]["box"] = [0.5, 0.5]
    with pytest.raises(UserError, match="breaks the schema"):
        read()


def test_rows_are_counted_by_what_they_have(tmp_path: Path) -> None:
    rows = [*captioned(3), *boxed(2, 3), row(9, [concept("r", (0.5, 0.5, 0.1, 0.1), "region")])]
    manifest = write(tmp_path / "m.parquet", [*rows, row(10, [])], row_group_size=100)
    assert count_rows(manifest, 0, 0) == {
        (): 1,
        ("image",): 3,
        ("region",): 1,
        ("image", "region", "object"): 2,
    }


# Streams


@pytest.mark.parametrize("multi_grained", [False, True])
def test_an_epoch_shows_every_row_once(tmp_path: Path, multi_grained: bool) -> None:
    manifest = write(tmp_path / "m.parquet", boxed(24), row_group_size=5)
    source = stream(manifest, multi_grained=multi_grained)
    assert source.steps_per_epoch() == 6
    epochs = [ids(source.batch(6 * e + k) for k in range(6)) for e in range(3)]
    expected = {f"toy/{n:05d}" for n in range(24)}
    assert all(len(epoch) == 24 and set(epoch) == expected for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_no_row_comes_twice_in_an_epoch_that_does_not_divide(tmp_path: Path) -> None:
    source = stream(write(tmp_path / "m.parquet", captioned(23)))
    assert source.steps_per_epoch() == 5
    left_out = []
    for epoch in range(6):
        seen = ids(source.batch(5 * epoch + k) for k in range(5))
        assert len(set(seen)) == 20
        left_out.append(frozenset({f"toy/{n:05d}" for n in range(23)} - set(seen)))
    assert len(set(left_out)) > 1


def test_ranks_take_disjoint_parts_of_one_global_batch(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.parquet", captioned(40))
    two = stream(manifest, replace(SMALL, batch_size=4))
    one = stream(manifest, replace(SMALL, batch_size=8))
    for step in range(7):
        parts = [two.batch(step, rank, 2) for rank in range(2)]
        whole = one.batch(step)
        assert ids(parts) == whole.record_ids
        assert len(set(ids(parts))) == 8
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


@pytest.mark.parametrize("multi_grained", [False, True])
def test_a_batch_is_a_function_of_its_step(tmp_path: Path, multi_grained: bool) -> None:
    path = tmp_path / "m.parquet"
    first = stream(write(path, boxed(20)), multi_grained=multi_grained)
    expected = [first.batch(step) for step in range(12)]
    again = stream(write(path, boxed(20)), multi_grained=multi_grained)
    for step in (11, 0, 7, 3):
        assert_equal(again.batch(step), expected[step])
    # The same rows in another epoch are cropped and masked anew.
    assert not torch.equal(expected[0].images, expected[5].images)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_resuming_change_nothing(tmp_path: Path, workers: int) -> None:
    manifest = write(tmp_path / "m.parquet", boxed(20))
    config = replace(SMALL, workers=workers)
    expected = [stream(manifest, multi_grained=True).batch(step, 1, 2) for step in range(7)]
    loaded = batches(stream(manifest, config, True), range(7), rank=1, world=2)
    resumed = batches(stream(manifest, config, True), range(4, 7), rank=1, world=2)
    for a, b in zip(loaded, expected, strict=True):
        assert_equal(a, b)
    for a, b in zip(resumed, expected[4:], strict=True):
        assert_equal(a, b)


def test_rows_of_several_manifests_are_mixed(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", captioned(8), name="a")
    b = write(tmp_path / "b.parquet", [{**r, "id": f"b/{r['id']}"} for r in captioned(8)], name="b")
    source = stream([a, b])
    seen = ids(source.batch(step) for step in range(4))
    assert len(set(seen)) == 16
    assert 0 < sum(name.startswith("b/") for name in seen[:8]) < 8


def test_rows_without_what_the_stream_needs_are_left_out(tmp_path: Path) -> None:
    region = concept("a spot", (0.5, 0.5, 0.5, 0.5), "region")
    rows = [*captioned(6), *[row(100 + n, [region]) for n in range(5)], row(200, [])]
    manifest = write(tmp_path / "m.parquet", rows, row_group_size=3)
    assert len(stream(manifest)) == 6
    assert len(stream(manifest, multi_grained=True)) == 5
    both = stream(manifest, replace(SMALL, region_as_caption=True, batch_size=11))
    assert len(both) == 11
    batch = both.batch(0)
    texts = dict(zip(batch.record_ids, batch.text_ids.tolist(), strict=True))
    (spot,) = TOKENIZER.encode(["a spot"], 12)
    assert texts["toy/00100"][: len(spot)] == spot.tolist()
    assert not batch.skipped


def test_all_captions_are_drawn(tmp_path: Path) -> None:
    captions = [concept(f"picture {word}") for word in ("one", "two", "three")]
    source = stream(write(tmp_path / "m.parquet", [row(0, captions)]))
    drawn = {tuple(source.batch(step).text_ids[0].tolist()) for step in range(40)}
    assert len(drawn) == 3


def test_a_small_data_set_gives_smaller_batches_without_repeats(tmp_path: Path) -> None:
    source = stream(write(tmp_path / "m.parquet", captioned(3)))
    assert source.rows_per_step() == 3
    for step in range(4):
        assert len(set(source.batch(step).record_ids)) == 3
    with pytest.raises(UserError, match="3 usable rows for 4 processes"):
        source.batch(0, 0, 4)


# What is broken


def broken(count: int, every: int) -> list[dict]:
    rows = captioned(count)
    for n in range(0, count, every):
        rows[n]["image"] = {"bytes": rows[n]["image"]["bytes"][:-30], "path": None}
    return rows


def test_broken_rows_are_counted_and_replaced_by_others(tmp_path: Path) -> None:
    rows = broken(40, 8)
    rows[1]["image"] = {"bytes": None, "path": str(tmp_path / "none.jpg")}
    rows[2]["width"] = 65
    rows[3]["concepts"][0]["text"] = "?!"
    bad = {f"toy/{n:05d}" for n in (0, 1, 2, 3, 8, 16, 24, 32)}
    manifest = write(tmp_path / "m.parquet", rows)
    source = stream(manifest)
    reasons: Counter[str] = Counter()
    for step in range(10):
        parts = [source.batch(step)]
        assert len(parts[0].record_ids) == len(set(parts[0].record_ids)) == 4
        assert not bad & set(parts[0].record_ids)
        reasons.update(parts[0].skipped)
        halves = [source.batch(step, rank, 2) for rank in range(2)] if step < 5 else []
        assert len(set(ids(halves))) == len(ids(halves))
        assert_equal(parts[0], stream(manifest).batch(step))
    assert set(reasons) == {"corrupt_image", "missing_image", "size_mismatch", "empty_text"}
    # Each broken row once in its own place, and at most a few times where it would have stood in.
    assert reasons["corrupt_image"] >= 5
    assert sum(reasons.values()) <= 8 + 8


def test_without_a_stand_in_the_batch_is_smaller(tmp_path: Path) -> None:
    batch = stream(write(tmp_path / "m.parquet", broken(4, 2))).batch(0)
    assert len(batch.record_ids) == len(batch.text_ids) == 2
    assert batch.skipped == {"corrupt_image": 2}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_nothing_is_one_clear_line(tmp_path: Path, workers: int) -> None:
    manifest = write(tmp_path / "m.parquet", broken(20, 1))
    with pytest.raises(UserError) as caught:
        list(batches(stream(manifest, replace(SMALL, workers=workers)), range(3)))
    assert "no usable row in a whole batch (corrupt_image 20)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_breaks_under_way_ends_the_run(tmp_path: Path) -> None:
    source = stream(write(tmp_path / "m.parquet", captioned(20)))
    (tmp_path / "m.parquet").write_bytes(b"PAR1 nothing else")
    with pytest.raises(UserError, match=r"m\.parquet"):
        source.batch(0)


def test_manifests_a_stream_cannot_use(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.parquet", [], name="empty")
    plain = write(tmp_path / "plain.parquet", captioned(4), name="plain")
    regions = [row(0, [concept("spot", (0.5, 0.5, 0.5, 0.5), "region")])]
    wordless = write(tmp_path / "regions.parquet", regions, name="wordless")
    good = write(tmp_path / "good.parquet", boxed(4), name="good")
    for manifests, multi_grained, message in [
        ([empty], False, "manifest empty is empty"),
        ([good, plain], True, "manifest plain has no regions or objects"),
        ([wordless], False, "manifest wordless has no captions"),
        ([], True, "no manifest has regions"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            stream(manifests, multi_grained=multi_grained)
        assert "\n" not in str(caught.value)

    def lenient(*manifests: Manifest) -> Stream:
        return Stream(manifests, SMALL, TOKENIZER, GRID, multi_grained=True, skip_unusable=True)

    both = lenient(good, plain)
    assert both.unused == ["plain"]
    assert len(both) == 4
    with pytest.raises(UserError, match=r"no manifest has regions or objects \(plain\)"):
        lenient(plain)
    with pytest.raises(UserError, match="manifest empty is empty"):
        lenient(good, empty)


def test_the_cache_of_row_groups_is_bounded(tmp_path: Path) -> None:
    source = stream(write(tmp_path / "m.parquet", captioned(60), row_group_size=3))
    for step in range(30):
        source.batch(step)
        assert len(source._cache) <= SMALL.pool_groups + 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [("batch_size", 0), ("flip", 1.5), ("min_crop_scale", 0.0), ("max_texts", 3), ("seed", -1)],
)
def test_settings_that_cannot_work_are_named(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=f"data.{setting}"):
        replace(SMALL, **{setting: value})


# Evaluation


def test_evaluation_takes_the_same_evenly_spaced_rows(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", captioned(20))
    b = write(tmp_path / "b.parquet", [{**r, "id": f"b/{r['id']}"} for r in boxed(5)])
    chosen = EvalSet([a, b], SMALL, limit=5)
    assert [item.record_id for item in chosen] == [
        "toy/00000",
        "toy/00006",
        "toy/00012",
        "toy/00018",
        "b/toy/00004",
    ]
    everything = EvalSet([a, b], SMALL)
    assert len(everything) == len(list(everything)) == 25
    item = list(everything)[-1]
    assert item.image.shape == (3, 32, 32)
    assert item.size == (64, 48)
    assert item.captions == ["picture four"]
    assert len(item.phrases) == 7


def test_evaluation_counts_what_it_cannot_read(tmp_path: Path) -> None:
    chosen = EvalSet([write(tmp_path / "a.parquet", broken(6, 3))], SMALL)
    assert len(list(chosen)) == 4
    assert chosen.skipped == {"corrupt_image": 2}
    with pytest.raises(UserError, match="no validation image"):
        list(EvalSet([write(tmp_path / "b.parquet", broken(3, 1))], SMALL))
    with pytest.raises(UserError, match="empty"):
        EvalSet([write(tmp_path / "c.parquet", [])], SMALL)


def phrases(tmp_path: Path, concepts: list[dict]) -> dict[str, float]:
    manifest = write(tmp_path / "m.parquet", [row(0, concepts)])
    only = RowGroup(manifest.read_row_group(0, 0, COLUMNS)).row(0)
    return {p.text: round(p.box[0], 4) for p in unmistakable_phrases(only, 40)}


def test_phrases_name_one_place_only(tmp_path: Path) -> None:
    def at(x: float) -> tuple[float, float, float, float]:
        return x, 0.5, 0.1, 0.1

    assert phrases(
        tmp_path,
        [
            concept("a cup"),
            concept("A cup.", at(0.1), "region"),
            concept("the table", at(0.2), "region"),
            concept("the table", at(0.3), "region"),
            concept("lamp", at(0.4), "object"),
            concept("lamp", at(0.6), "object", ["tall"]),
            concept("chair", at(0.7), "object", ["old", "red"]),
            concept("chair", at(0.8), "object", ["old", "blue"]),
            concept("dog", at(0.9), "object"),
            concept("dog", at(0.9), "region"),
            concept("no box", (0.5, 0.5, 0.0, 0.1), "region"),
        ],
    ) == {"a cup": 0.1, "tall lamp": 0.6, "red chair": 0.7, "blue chair": 0.8, "dog": 0.9}
