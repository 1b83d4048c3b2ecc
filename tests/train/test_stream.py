from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from tests.train.small_manifests import (
    boxed,
    captioned,
    concept,
    row,
    tokenizer,
    write,
)
from xvlm_data.errors import UserError
from xvlm_data.manifest import Manifest
from xvlm_train.data.batch import Batch
from xvlm_train.data.config import DataConfig
from xvlm_train.data.evaluation import EvalSet, unmistakable_phrases
from xvlm_train.data.loader import batches
from xvlm_train.data.rows import COLUMNS, RowGroup
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
    assert sorted(reject.record for reject in batch.rejects) == ["toy/00000", "toy/00002"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_nothing_is_one_clear_line(tmp_path: Path, workers: int) -> None:
    manifest = write(tmp_path / "m.parquet", broken(20, 1))
    with pytest.raises(UserError) as caught:
        list(batches(stream(manifest, replace(SMALL, workers=workers)), range(3)))
    assert "no usable row in a whole batch (corrupt_image 20; toy/000" in str(caught.value)
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
    assert [reject.reason for reject in chosen.rejects] == ["corrupt_image"] * 2
    with pytest.raises(UserError, match="no validation image"):
        list(EvalSet([write(tmp_path / "b.parquet", broken(3, 1))], SMALL))
    with pytest.raises(UserError, match=r"empty \(first, second\)"):
        EvalSet([write(tmp_path / "c.parquet", [], name=n) for n in ("first", "second")], SMALL)


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
