"""The numbering of images against a plain dictionary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_data.image_index import DUPLICATE, SAME, ImageIndex, make_index

#: (key or none, part) of image records; parts come one after the other, as files are read.
RECORDS = st.lists(
    st.tuples(
        st.none() | st.integers(-2, 6) | st.sampled_from([-(2**63), 2**63 - 1]), st.integers(0, 3)
    ),
    max_size=30,
).map(lambda records: sorted(records, key=lambda record: record[1]))


def numbered(
    records: list[tuple[int | None, int]], merge: bool
) -> tuple[list[int], dict[int, int]]:
    """What becomes of each record, and the ordinal of each key."""
    ordinals: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    fates = []
    images = 0
    for key, part in records:
        if key is not None and key in ordinals:
            fates.append(DUPLICATE if (key, part) in seen and not merge else SAME)
        else:
            fates.append(images)
            if key is not None:
                ordinals[key] = images
            images += 1
        if key is not None:
            seen.add((key, part))
    return fates, ordinals


def index_of(
    records: list[tuple[int | None, int]], cuts: list[int], merge: bool = False
) -> ImageIndex:
    """The index, from pieces cut at some places."""
    keys = np.array([key or 0 for key, _ in records], np.int64)
    known = np.array([key is not None for key, _ in records], bool)
    parts = np.array([part for _, part in records], np.int16)
    places = sorted(min(cut, len(records)) for cut in cuts)
    return make_index(
        np.split(keys, places),
        np.split(known, places),
        np.split(parts, places),
        merge_images=merge,
    )


@settings(max_examples=300)
@given(
    records=RECORDS,
    cuts=st.lists(st.integers(0, 30), max_size=3),
    merge=st.booleans(),
    asked=st.lists(st.none() | st.integers(-3, 7), max_size=10),
)
def test_images_are_numbered_as_a_dictionary_would(
    records: list[tuple[int | None, int]],
    cuts: list[int],
    merge: bool,
    asked: list[int | None],
) -> None:
    index = index_of(records, cuts, merge)
    fates, ordinals = numbered(records, merge)
    assert index.records.tolist() == fates
    assert index.images == sum(fate >= 0 for fate in fates)
    assert dict(zip(index.keys.tolist(), index.ordinals.tolist(), strict=True)) == ordinals
    assert index.keys.tolist() == sorted(ordinals)
    wanted = np.array([key or 0 for key in asked], np.int64)
    known = np.array([key is not None for key in asked], bool)
    expected = [99 if key is None else ordinals.get(key, 99) for key in asked]
    assert index.find(wanted, known, 99).tolist() == expected


def test_a_saved_index_is_the_same_and_its_name_tells_its_content(tmp_path: Path) -> None:
    one, two = index_of([(5, 0), (3, 0), (5, 0), (5, 1), (None, 1)], []), index_of([(5, 0)], [])
    places = [index.save(tmp_path) for index in (one, two, one)]
    assert places[0] == places[2] != places[1]
    for index, place in ((one, places[0]), (two, places[1]), (one, places[2])):
        loaded = ImageIndex.load(place)
        for name in ("keys", "ordinals", "records"):
            assert getattr(loaded, name).tolist() == getattr(index, name).tolist()
        assert loaded.images == index.images


def test_nothing_is_held_for_an_image_beyond_the_arrays(tmp_path: Path) -> None:
    import tracemalloc

    keys = np.random.default_rng(0).permutation(500_000).astype(np.int64)
    known, parts = np.ones(len(keys), bool), np.zeros(len(keys), np.int16)
    tracemalloc.start()
    index = make_index([keys], [known], [parts], merge_images=False)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 30 * len(keys)
    assert peak < 120 * len(keys)
    place = index.save(tmp_path)
    # Workers map the arrays.
    _, loaded = tracemalloc.start(), ImageIndex.load(place)
    assert tracemalloc.get_traced_memory()[0] < 200_000
    tracemalloc.stop()
    assert loaded.images == len(keys)


@pytest.mark.parametrize("merge", [False, True])
def test_no_records_are_no_images(merge: bool) -> None:
    index = index_of([], [], merge)
    assert index.images == 0
    assert index.find(np.array([1]), np.array([True]), -7).tolist() == [-7]
