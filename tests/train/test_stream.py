from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

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
from xvlm_train.data.order import Mixture, Order, generator
from xvlm_train.data.rows import COLUMNS, Reads, Row, RowGroup, count_concepts, read_rows
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


def order(
    counts: Iterable[int], batch: int = 1, *, pool: int = 2, lanes: int = 3, **more: int
) -> Order:
    listed = np.array(list(counts), dtype=np.int64)
    given = {"seed": 0, "stream": 0} | more
    return Order(listed, batch, pool_groups=pool, lanes=lanes, **given)


def epoch_of(order: Order, epoch: int) -> list[tuple[int, int]]:
    """Every row of an epoch, in the order of steps and slots."""
    slots = np.arange(order.batch)
    places = [p for step in range(order.steps) for p in order.places(step, slots).tolist()]
    return [order.locate(epoch, place) for place in places]


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any),
    pool=st.integers(1, 5),
    lanes=st.integers(1, 5),
    share=st.floats(0.01, 1),
    epoch=st.integers(0, 1000),
    seed=st.integers(0, 2**40),
)
def test_an_epoch_shows_rows_once_and_all_but_what_fills_no_batch(
    counts: list[int], pool: int, lanes: int, share: float, epoch: int, seed: int
) -> None:
    batch = max(1, round(share * sum(counts)))
    found = order(counts, batch, pool=pool, lanes=lanes, seed=seed)
    rows = epoch_of(found, epoch)
    assert len(rows) == len(set(rows)) == sum(counts) // batch * batch
    assert set(rows) <= {(g, n) for g, count in enumerate(counts) for n in range(count)}
    # A pool's row groups are those that its rows lie in, and few.
    for place in range(found.rows):
        groups = found.groups(epoch, found.pool_of(epoch, place))
        assert found.locate(epoch, place)[0] in groups
        assert len(groups) <= pool + 1


def test_lanes_cover_wide_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xvlm_train.data.order.LANE_ROWS", 4)
    found = order([5] * 40, batch=13, pool=2, lanes=3)
    assert (found.across, found.along) == (3, 3)
    rows = epoch_of(found, 0)
    assert len(set(rows)) == len(rows) == 195
    slots = np.arange(13)
    lanes = [{found.lane_of(p) for p in found.places(step, slots)} for step in range(6)]
    # Steps take turns among lanes, and parts of a batch have lanes of their own.
    assert lanes == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}] * 2


def test_epochs_streams_and_seeds_differ_and_access_is_random() -> None:
    counts = np.full(10, 4)
    first = order(counts)
    orders = [epoch_of(first, epoch) for epoch in range(4)]
    orders += [epoch_of(order(counts, seed=1), 0), epoch_of(order(counts, stream=1), 0)]
    assert len({tuple(o) for o in orders}) == 6
    # Reading backwards from a copy in another process finds the same rows.
    copy = pickle.loads(pickle.dumps(first))
    slots = np.arange(1)
    backwards = [copy.locate(3, int(copy.places(step, slots)[0])) for step in reversed(range(40))]
    assert backwards[::-1] == orders[3]


def test_rows_are_mixed_over_the_groups_of_a_pool_and_only_of_it() -> None:
    groups = [group for group, _ in epoch_of(order([50] * 8, pool=4, lanes=1), 0)]
    first, second = set(groups[:200]), set(groups[200:])
    assert len(first) == len(second) == 4
    assert not first & second
    assert len(set(groups[:20])) == 4


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    batch=st.integers(1, 20),
    lanes=st.integers(1, 4),
    data=st.data(),
)
def test_stand_ins_are_of_no_slot_of_the_batch_and_of_one_slot_only(
    counts: list[int], batch: int, lanes: int, data: st.DataObject
) -> None:
    found = order(counts, min(batch, sum(counts)), pool=1, lanes=lanes)
    step = data.draw(st.integers(0, found.steps - 1))
    own = found.places(step, np.arange(found.batch)).tolist()
    others = [found.stand_ins(step, slot, 4) for slot in range(found.batch)]
    listed = [place for places in others for place in places]
    assert len(set(own + listed)) == len(own) + len(listed)
    assert all(0 <= place < found.rows for place in listed)
    if found.rows >= 2 * found.batch:
        assert all(others)


def test_the_generator_depends_on_each_of_its_five_numbers() -> None:
    base = (1, 0, 2, 3, 4)
    draws = {generator(*base).integers(2**63)}
    for i in range(5):
        changed = tuple(v + (j == i) for j, v in enumerate(base))
        draws.add(generator(*changed).integers(2**63))
    assert len(draws) == 6
    assert generator(*base).integers(2**63) in draws


@settings(max_examples=60)
@given(
    shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    batch=st.integers(1, 200),
    step=st.integers(0, 10**7),
)
def test_every_batch_has_each_source_by_its_share(
    shares: list[float], batch: int, step: int
) -> None:
    wanted = np.array(shares) / sum(shares) * batch
    mixture = Mixture(np.array(shares), batch)
    sources, numbers = mixture.slots(step)
    for s in range(len(shares)):
        own = np.sort(numbers[sources == s])
        assert own.tolist() == list(range(len(own)))
        assert math.floor(wanted[s] - 1e-6) <= len(own) <= mixture.most[s]
        assert mixture.most[s] <= math.ceil(wanted[s] + 1e-6)


def test_shares_are_exact_in_the_long_run_and_in_the_parts_of_a_batch() -> None:
    shares = np.array([0.61, 0.3, 0.07, 0.02])
    mixture = Mixture(shares, 12)
    counts = sum(np.bincount(mixture.slots(k)[0], minlength=4) for k in range(5000))
    assert counts / 60000 == pytest.approx(shares, abs=1e-4)
    whole = Mixture(shares, 1024).slots(7)[0]
    for part in np.split(whole, 8):
        assert np.abs(np.bincount(part, minlength=4) - 128 * shares).max() <= 2


# Rows


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
    assert texts["toy/00100"][: len(spot)] == spot
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


def test_memory_is_the_row_groups_of_the_pools_that_are_read(tmp_path: Path) -> None:
    config = replace(SMALL, pool_groups=3, lanes=2)
    manifest = write(tmp_path / "m.parquet", captioned(180), row_group_size=2)

    def most(every: int, prefetch: bool) -> int:
        source, groups = stream(manifest, config), 0
        for step in range(0, 100, every):
            source.batch(step)
            if prefetch:
                source.prefetch(step + every)
            groups = max(groups, len(source._pools))
        return groups

    # Two pools while a batch goes from one to the other, each cut at both ends; once more ahead.
    assert 4 <= most(2, prefetch=False) <= 2 * 4
    assert 8 <= most(1, prefetch=False) <= 2 * 2 * 4
    assert most(1, prefetch=True) <= 2 * 3 * 4


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
