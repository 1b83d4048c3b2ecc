"""Suspicious concepts and duplicate rows against plain Python, and against what is meant."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.inspect_manifests import concept, manifest_of, png, row, write, write_folder
from xvlm_data.errors import ManifestError
from xvlm_data.inspect.concepts import Sample, checked_batches, choose_sample, flatten_concepts
from xvlm_data.inspect.duplicates import find_duplicates
from xvlm_data.inspect.gallery import choose_rows, describe, read_tables
from xvlm_data.inspect.left_out import left_out
from xvlm_data.inspect.statistics import MAP_CELLS, collect
from xvlm_data.inspect.suspicious import EXAMPLES, KINDS, Suspicious, find
from xvlm_data.manifest import open_manifest
from xvlm_data.schema import REJECTS, manifest_schema

WHOLE = (0.5, 0.5, 1.0, 1.0)
NAN = math.nan


def kinds_of(*concepts: dict[str, Any]) -> list[set[str]]:
    """The kinds of suspicion of each concept of one row."""
    table = pa.Table.from_pylist([row(0, concepts=list(concepts))], manifest_schema({}))
    found = find(flatten_concepts(table.to_batches()[0]))
    assert list(found) == list(KINDS)
    return [{kind for kind, mask in found.items() if mask[i]} for i in range(len(concepts))]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("a man in a red hat", set()),
        ("STOP", set()),
        ("NBA game", set()),
        ("BEST PRICE EVER", {"shouting"}),
        ("ЗЕЛЕНЫЙ ДОМ У РЕКИ", {"shouting", "not_english"}),
        ("GATE B12 TO ROME", {"shouting"}),
        ("see http://a.example/x", {"address"}),
        ("photo from www.flickr", {"address"}),
        ("IMG_0012.jpg on a wall", {"address"}),
        ("write to me@example.org", {"address"}),
        ("a dog. a cat", set()),
        ("costs $ 3.50 at 10:30", set()),
        ("una mujer con el pelo largo en la calle", {"not_english"}),
        ("der Hund und das Haus", {"not_english"}),
        ("les enfants dans le jardin", {"not_english"}),
        ("the tour de la france in summer", set()),
        ("café au lait", set()),
        ("一只狗", {"not_english"}),
        ("собака на пляже", {"not_english"}),
        ("a sign with 中文 on it", {"not_english"}),
        ("Æsop’s naïve façade – “quoted”", set()),
        ("<b>bold</b> move", {"markup"}),
        ("tom &amp; jerry", {"markup"}),
        ("tom &#39; jerry", {"markup"}),
        ("1 < 2 & 3 > 2", {"no_letters"}),
        ("I <3 you", set()),
        ("12:30", {"no_letters"}),
        ("...", {"no_letters"}),
        ("", set()),
        (None, set()),
        ("word " * 80, set()),
        ("word " * 81, {"long"}),
    ],
)
def test_texts(text: str | None, kinds: set[str]) -> None:
    for granularity in ("region", "image"):
        assert kinds_of(concept(text, granularity)) == [kinds]


@pytest.mark.parametrize(
    ("box", "granularity", "kinds"),
    [
        ((0.5, 0.5, 0.5, 0.5), "object", set()),
        (WHOLE, "image", set()),
        (WHOLE, "object", {"whole_image"}),
        ((0.5, 0.5, 0.996, 0.996), "region", {"whole_image"}),
        ((0.5, 0.5, 0.99, 0.99), "region", set()),
        ((0.9, 0.5, 0.5, 0.5), "object", {"broken_box"}),
        ((0.5, 0.5, 0.0, 0.5), "object", {"broken_box"}),
        ((0.5, 0.5, -0.5, 0.5), "object", {"broken_box"}),
        ((NAN, 0.5, 0.5, 0.5), "region", {"broken_box"}),
        ((math.inf, 0.5, 0.5, 0.5), "region", {"broken_box"}),
        (None, "region", {"broken_box"}),
        ((320.0, 240.0, 100.0, 50.0), "object", {"broken_box"}),  # pixels
    ],
)
def test_boxes(box: Any, granularity: str, kinds: set[str]) -> None:
    assert kinds_of(concept("a thing", granularity, box)) == [kinds]


BOXES = st.sampled_from([(0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.25), (0.25, 0.25, 0.5, 0.5)])
SHARED = st.builds(concept, st.sampled_from("abcdef"), st.sampled_from(["object", "region"]), BOXES)


@given(st.lists(st.lists(SHARED, max_size=14), min_size=1, max_size=4))
def test_shared_boxes(rows: list[list[dict[str, Any]]]) -> None:
    given_rows = [row(i, concepts=concepts) for i, concepts in enumerate(rows)]
    table = pa.Table.from_pylist(given_rows, manifest_schema({}))
    found = find(flatten_concepts(table.to_batches()[0]))
    many, repeated = [], []
    for concepts in rows:
        places = [(c["granularity"], tuple(c["box"])) for c in concepts]
        texts: dict[Any, set[str]] = {}
        for place, one in zip(places, concepts, strict=True):
            texts.setdefault(place, set()).add(one["text"])
        many += [len(texts[place]) >= 4 for place in places]
        pairs = [(place, c["text"]) for place, c in zip(places, concepts, strict=True)]
        repeated += [pair in pairs[:i] for i, pair in enumerate(pairs)]
    assert found["same_box"].tolist() == many
    assert found["repeated"].tolist() == repeated


def test_rows_are_counted_once_and_a_few_are_kept(tmp_path: Path) -> None:
    loud = [concept("VERY LOUD WORDS"), concept("ANOTHER LOUD ONE")]
    rows = [row(i, concepts=loud if i % 2 else [concept()]) for i in range(40)]
    manifest = manifest_of(tmp_path, *rows)
    suspicious = Suspicious()
    collect(manifest, watchers=[suspicious])
    assert (suspicious.concepts["shouting"], suspicious.rows["shouting"]) == (40, 20)
    kept = suspicious.examples("shouting")
    assert len(set(kept)) == EXAMPLES and all(number % 2 for number in kept)
    assert max(kept) - min(kept) > 10  # not the first ones


NAMES = st.sampled_from(["a", "b", "c", ""])


@settings(max_examples=25)
@given(st.lists(st.tuples(NAMES, st.none() | NAMES, st.sampled_from([1, 2, 3, None]), NAMES)))
def test_duplicates(tmp_path_factory: pytest.TempPathFactory, cells: list[Any]) -> None:
    pictures = [png(colour=colour) for colour in ("red", "green", "blue")]
    rows = [
        row(
            0,
            id=name,
            caption=caption,
            image={"bytes": i and pictures[i - 1], "path": path},
        )
        for name, caption, i, path in cells
    ]
    manifest = manifest_of(tmp_path_factory.mktemp("made"), *rows)
    found = find_duplicates(manifest)
    columns = {
        "same_id": [name for name, *_ in cells],
        "same_caption": [caption for _, caption, *_ in cells],
        "same_bytes": [i for _, _, i, _ in cells],
        "same_file": [path for *_, path in cells],
    }
    assert set(found) == set(columns)
    for kind, values in columns.items():
        counts = Counter(value for value in values if value is not None and value != "")
        groups = {value: count for value, count in counts.items() if count > 1}
        duplicates = found[kind]
        assert duplicates is not None
        assert duplicates.groups == len(groups), kind
        assert duplicates.rows == sum(groups.values())
        assert [n for n, _ in duplicates.examples] == sorted(groups.values(), reverse=True)
        for count, places in duplicates.examples:
            shared = {values[place] for place in places}
            assert len(shared) == 1 and counts[shared.pop()] == count


def test_too_many_bytes_are_not_compared(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, row(0), row(1))
    assert find_duplicates(manifest, bytes_limit=10)["same_bytes"] is None
    compared = find_duplicates(manifest, bytes_limit=None)["same_bytes"]
    assert compared is not None and compared.groups == 1


@settings(max_examples=40)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 12))
def test_samples_know_which_rows_they_are_of(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], max_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("made")
    paths, rows = [], 0
    for number, size in enumerate(sizes):
        made = [row(rows + i) for i in range(size)]
        paths.append(write(folder / f"{number}.parquet", made))  # row groups of 3
        rows += size
    manifest = open_manifest(paths)
    sample = choose_sample(manifest, max_rows)
    if sample is None:
        assert rows <= max_rows
        return
    assert isinstance(sample, Sample) and rows > max_rows
    seen = []
    for first, batch in checked_batches(manifest, ["id"], 2, sample):
        ids = [f"made/{first + i}" for i in range(batch.num_rows)]
        assert batch.column(0).to_pylist() == ids
        seen += ids
    assert len(seen) == sample.rows == len(set(seen))
    groups = [size for shard in manifest.shards for size in shard.row_groups]
    chosen = sum(map(len, sample.groups))
    assert chosen == max(1, len(groups) * max_rows // rows)


def test_a_sample_stands_for_the_whole(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, *(row(i) for i in range(30)))
    sample = choose_sample(manifest, 12)
    part, whole = collect(manifest, sample=sample), collect(manifest)
    assert part.rows == 12 and whole.rows == 30
    assert part.concepts * 30 == whole.concepts * 12


def test_rows_of_a_gallery(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, *(row(i) for i in range(100)))
    for number in (0, 1, 7, 100, 200):
        rows = choose_rows(manifest, number)
        assert len(rows) == len(set(rows)) == min(number, 94)  # 31 groups of 3, and the last
        assert rows == sorted(rows)
        found = list(read_tables(manifest, rows))
        assert [place for place, _ in found] == rows
        assert [table["id"][0].as_py() for _, table in found] == [f"made/{i}" for i in rows]
    few = manifest_of(tmp_path, *(row(i) for i in range(5)))
    assert choose_rows(few, 200) == [0, 1, 2, 3, 4]


def test_a_row_is_described_as_it_is(tmp_path: Path) -> None:
    bad = concept(None, None, (NAN, 0.5, 0.5, 0.5))
    concepts = [bad, concept("A LOUD TEXT"), None]
    manifest = manifest_of(tmp_path, row(0, caption=None, concepts=concepts))
    ((_, table),) = read_tables(manifest, [0])
    found = describe(0, table)
    assert found["caption"] is None and found["hidden"] == 0
    assert found["concepts"] == [
        ["", None, "", [], ["broken_box"]],
        ["region", [0.5, 0.5, 0.25, 0.5], "A LOUD TEXT", [], ["shouting"]],
        ["", None, "", [], ["broken_box"]],
    ]


def test_maps_of_boxes(tmp_path: Path) -> None:
    boxes = [(0.1, 0.9, 0.1, 0.2), (1.0, 0.0, 0.5, 1.0), (NAN, 0.5, 0.5, 0.5)]
    manifest = manifest_of(tmp_path, row(0, concepts=[concept("x", "object", b) for b in boxes]))
    statistics = collect(manifest)
    centres, sides = statistics.box_centres["object"], statistics.box_sides["object"]
    expected = np.zeros((MAP_CELLS, MAP_CELLS), np.int64)
    expected[int(0.9 * MAP_CELLS), int(0.1 * MAP_CELLS)] = expected[0, MAP_CELLS - 1] = 1
    assert (centres == expected).all()
    expected[:] = 0
    expected[int(0.2 * MAP_CELLS), int(0.1 * MAP_CELLS)] = 1
    expected[MAP_CELLS - 1, MAP_CELLS // 2] = 1
    assert (sides == expected).all()
    assert not statistics.box_centres["region"].any()


def test_what_was_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "made", [row(0)])
    assert left_out(open_manifest(folder)) == []
    reject = {"source_file": "a.json", "record_id": "made/7", "location": "[7]", "message": "<b>"}
    rejects = [
        reject | {"kind": "object", "reason": "small", "location": f"[{i}]"} for i in range(9)
    ]
    rejects += [reject | {"kind": "image", "reason": "missing_image", "message": None}]
    pa.parquet.write_table(pa.Table.from_pylist(rejects, REJECTS), folder / "rejects.parquet")
    small, missing = left_out(open_manifest(folder))
    assert (small["kind"], small["reason"], small["count"]) == ("object", "small", 9)
    assert small["flag"] == "--min-area 0" and missing["flag"] is None
    assert len({example["location"] for example in small["examples"]}) == 5
    assert small["examples"][0]["message"] == "<b>"
    assert missing["examples"] == [{name: reject[name] for name in reject} | {"message": None}]
    assert left_out(open_manifest(folder / "manifest-00000.parquet")) == []
    (folder / "rejects.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(ManifestError, match=r"rejects\.parquet: damaged"):
        left_out(open_manifest(folder))
