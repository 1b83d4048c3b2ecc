"""Statistics against a plain-Python count of the same rows."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.inspect_manifests import INFO, concept, manifest_of, png, row, write
from xvlm_data.errors import ManifestError
from xvlm_data.inspect.concepts import flatten_concepts, locate, spread
from xvlm_data.inspect.distributions import Frequencies, Histogram
from xvlm_data.inspect.statistics import (
    AREA_EDGES,
    ASPECT_EDGES,
    COUNT_EDGES,
    Statistics,
    collect,
)
from xvlm_data.manifest import open_manifest
from xvlm_data.schema import manifest_schema

WIDE = (0.5, 0.25, 1.0, 0.125)
TEXTS = st.one_of(
    st.sampled_from(["person", "traffic light", "a man\twith\u00a0a hat", "", " x "]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
CONCEPTS = st.builds(
    concept,
    text=st.none() | TEXTS,
    granularity=st.sampled_from(["image", "region", "object", "pixel", None]),
    box=st.none() | st.tuples(*[st.floats(-0.5, 1.5, width=32) | st.just(math.nan)] * 4),
    attributes=st.lists(st.sampled_from(["red", "big"]), max_size=2).map(tuple),
)
ROWS = st.builds(
    row,
    number=st.integers(0, 99),
    source=st.sampled_from(["coco", "vg"]),
    width=st.integers(1, 50),
    height=st.integers(1, 50),
    caption=st.none() | TEXTS,
    concepts=st.none() | st.lists(st.none() | CONCEPTS, max_size=5),
)


def binned(values: list[float], edges: tuple[float, ...]) -> list[int]:
    counts = [0] * (len(edges) + 1)
    for value in values:
        if math.isfinite(value):
            counts[bisect.bisect_right(edges, value)] += 1
    return counts


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(ROWS, max_size=8), st.integers(1, 5))
def test_update_agrees_with_a_plain_count(rows: list[dict[str, Any]], batch_rows: int) -> None:
    loose = pa.schema([field.with_nullable(True) for field in manifest_schema(INFO)])
    table = pa.Table.from_pylist(rows, loose)
    statistics = Statistics()
    for batch in table.to_batches(max_chunksize=batch_rows):
        statistics.update(batch)
    stored = table.to_pylist()  # boxes as float32
    assert statistics.rows == len(rows)
    assert dict(statistics.sources.top()) == Counter(r["source"] for r in rows)
    assert statistics.captions == sum(r["caption"] is not None for r in rows)
    lists = [[c or {} for c in r["concepts"] or []] for r in stored]
    assert statistics.concepts == sum(map(len, lists))
    assert statistics.rows_without_concepts == sum(not found for found in lists)
    per_image = binned([len(found) for found in lists], COUNT_EDGES)
    assert statistics.concepts_per_image.counts.tolist() == per_image
    every = [(r, c) for r, found in zip(stored, lists, strict=True) for c in found]
    assert statistics.attributes == sum(len(c.get("attributes") or []) for _, c in every)
    found = Counter(c.get("granularity") for _, c in every)
    del found[None]
    assert dict(statistics.granularities.top()) == found
    for name in ("image", "region", "object"):
        chosen = [(r, c) for r, c in every if c.get("granularity") == name]
        texts = [c["text"] for _, c in chosen if c["text"] is not None]
        assert dict(statistics.texts[name].top()) == Counter(texts)
        words = [len(text.split()) for text in texts]
        assert statistics.words[name].counts.tolist() == binned(words, COUNT_EDGES)
        assert statistics.words[name].total == sum(words)
        assert statistics.rows_with[name] == sum(
            any(c.get("granularity") == name for c in found) for found in lists
        )
        if name == "image":
            continue
        areas, aspects = [], []
        for r, c in chosen:
            box = c["box"] or [math.nan] * 4
            good = box[2] > 0 and box[3] > 0
            areas.append(box[2] * box[3] if good else math.nan)
            pixels = (box[2] * r["width"], box[3] * r["height"])
            aspects.append(pixels[0] / pixels[1] if good and pixels[1] else math.nan)
        assert statistics.box_area[name].counts.tolist() == binned(areas, AREA_EDGES)
        assert statistics.box_aspect[name].counts.tolist() == binned(aspects, ASPECT_EDGES)
        assert statistics.box_area[name].unusable == sum(not math.isfinite(a) for a in areas)


def test_box_aspect_is_measured_in_pixels() -> None:
    statistics = Statistics()
    wide = row(width=400, height=100, concepts=[concept("bar", "object", (0.5, 0.5, 0.5, 0.5))])
    statistics.update(pa.RecordBatch.from_pylist([wide], manifest_schema(INFO)))
    assert statistics.box_aspect["object"].mean == 4.0
    assert statistics.box_area["object"].mean == 0.25


def test_whole_image_objects_are_counted() -> None:
    statistics = Statistics()
    found = [concept("sky", "object", (0.5, 0.5, 1.0, 1.0)), concept("sky", "object")]
    statistics.update(
        pa.RecordBatch.from_pylist(
            [row(concepts=[concept("x", "image"), *found])], manifest_schema(INFO)
        )
    )
    assert statistics.whole_image_boxes == {"region": 0, "object": 1}


def test_histogram_bins_are_half_open() -> None:
    histogram = Histogram((1, 2, 4))
    histogram.add(np.array([0.5, 1, 1.9, 2, 4, 9, np.nan, np.inf]))
    assert histogram.counts.tolist() == [1, 2, 1, 2]
    assert (histogram.low, histogram.high, histogram.unusable) == (0.5, 9, 2)
    weighted = Histogram((1, 2, 4))
    weighted.add(np.array([1, 3]), np.array([5, 2]))
    assert weighted.counts.tolist() == [0, 5, 2, 0]
    assert weighted.mean == pytest.approx(11 / 7)


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 40), max_size=40), min_size=1, max_size=8))
def test_frequencies_are_low_by_at_most_the_stated_error(batches: list[list[int]]) -> None:
    exact: Counter[str] = Counter()
    frequencies = Frequencies(budget=400)  # some twenty texts
    for batch in batches:
        texts = [f"text {number:04d}" for number in batch]
        exact.update(texts)
        frequencies.add(pa.array(texts, pa.string()))
    found = dict(frequencies.top())
    assert frequencies.total == sum(exact.values())
    for text, count in found.items():
        assert count <= exact[text] <= count + frequencies.undercount
    for text in exact.keys() - found.keys():
        assert exact[text] <= frequencies.undercount
    if frequencies.exact:
        assert found == exact


def test_frequencies_forget_the_rarest_and_say_so() -> None:
    frequencies = Frequencies(budget=2000)
    for start in range(0, 1000, 100):
        rare = [f"rare {number}" for number in range(start, start + 100)]
        frequencies.add(pa.array(["often"] * 50 + rare))
    assert frequencies.top(1) == [("often", 500)]
    assert not frequencies.exact
    assert frequencies.undercount < 50
    assert frequencies.distinct < 200


def test_the_stated_error_adds_up_over_many_prunings() -> None:
    frequencies = Frequencies(budget=400)
    for batch in range(10):
        fresh = [f"batch {batch} text {number:04d}" for number in range(40)]
        frequencies.add(pa.array([*fresh, *fresh, "unlucky"]))
    found = dict(frequencies.top()).get("unlucky", 0)
    assert found <= 10 <= found + frequencies.undercount


def test_top_texts_break_ties_by_text() -> None:
    frequencies = Frequencies()
    frequencies.add(pa.array(["b", "a", "c", "c"]))
    assert frequencies.top(2) == [("c", 2), ("a", 1)]


def test_collect_counts_embedded_images_with_and_without_footer_statistics(
    tmp_path: Path,
) -> None:
    rows = [row(i) for i in range(5)]
    rows += [row(9, image={"bytes": None, "path": "x.jpg"})]
    assert collect(manifest_of(tmp_path, *rows)).embedded == 5
    table = pq.read_table(tmp_path / "made.parquet")
    pq.write_table(table, tmp_path / "bare.parquet", write_statistics=False)
    counted = collect(open_manifest(tmp_path / "bare.parquet"))
    assert (counted.embedded, counted.referenced) == (5, 1)


def test_examples_are_spread_over_shards(tmp_path: Path) -> None:
    for shard in range(3):
        write(tmp_path / f"{shard}.parquet", [row(10 * shard + i) for i in range(4)])
    manifest = open_manifest(str(tmp_path / "*.parquet"))
    told: list[int] = []
    statistics = collect(manifest, examples=3, advance=told.append)
    assert [example["id"] for example in statistics.examples] == ["made/2", "made/12", "made/22"]
    assert sum(told) == 12
    assert locate(manifest, 6) == (manifest.shards[1].url, 2)


@given(st.integers(0, 200), st.integers(0, 250))
def test_spread_gives_distinct_rows_in_order(total: int, number: int) -> None:
    rows = spread(total, number)
    assert len(rows) == min(total, number)
    assert rows == sorted(set(rows))
    assert all(0 <= chosen < total for chosen in rows)


def test_manifests_rewritten_by_other_tools_are_read(tmp_path: Path) -> None:
    """Free lists for boxes, large strings and dictionaries, as pandas and others write them."""
    item = pa.struct(
        [
            ("box", pa.large_list(pa.float32())),
            ("text", pa.dictionary(pa.int32(), pa.string())),
            ("attributes", pa.large_list(pa.large_string())),
            ("granularity", pa.large_string()),
        ]
    )
    concepts = [concept("cat", "object", box) for box in ((0.5, 0.5, 0.5, 0.5), (1, 2), None, WIDE)]
    columns = {
        "source": pa.array(["made"], pa.large_string()),
        "split": pa.array(["train"]),
        "width": pa.array([4], pa.int32()),
        "height": pa.array([4], pa.int32()),
        "caption": pa.array([None], pa.large_string()),
        "concepts": pa.array([concepts], pa.large_list(item)),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    boxes = flatten_concepts(batch).boxes
    assert boxes[0].tolist() == [0.5, 0.5, 0.5, 0.5]
    assert np.isnan(boxes[1:3]).all()
    assert boxes[3].tolist() == list(WIDE)
    statistics = Statistics()
    statistics.update(batch)
    assert statistics.texts["object"].top() == [("cat", 4)]
    assert statistics.box_area["object"].unusable == 2


def test_sliced_batches_keep_boxes_with_their_rows() -> None:
    rows = [row(i, concepts=[concept("t", "object", (i / 8, 0.5, 0.1, 0.1))]) for i in range(8)]
    batch = pa.RecordBatch.from_pylist(rows, manifest_schema(INFO)).slice(3, 2)
    assert flatten_concepts(batch).boxes[:, 0].tolist() == [3 / 8, 4 / 8]


def test_text_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    bad = pa.array([b"caf\xe9"]).view(pa.string())
    table = pa.Table.from_pylist([row()], manifest_schema(INFO)).set_column(6, "caption", bad)
    pq.write_table(table, tmp_path / "bad.parquet")
    with pytest.raises(ManifestError, match=r"bad\.parquet: damaged in rows 0 to 0"):
        collect(open_manifest(tmp_path / "bad.parquet"))


def test_to_dict_is_plain(tmp_path: Path) -> None:
    import json

    plain = collect(manifest_of(tmp_path, row(), row(1, image={"bytes": png(), "path": None})))
    found = json.loads(json.dumps(plain.to_dict(top=1)))
    assert found["rows"] == 2
    assert found["granularities"] == {"image": 2, "object": 2, "region": 2}
    assert found["texts"]["object"]["top"] == [{"text": "circle", "count": 2}]
    assert found["attributes"] == 2
