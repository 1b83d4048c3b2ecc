"""Attributes brought to their objects, against plain dictionaries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_data.attributes import clean_attributes, join_attributes
from xvlm_data.records import ALIASES, ANNOTATIONS, ATTRIBUTES, OBJECT, REGION
from xvlm_data.text import normalise_text

IDS = st.none() | st.integers(0, 5) | st.sampled_from([-1, 2**63 - 1])
NAMES = st.lists(st.sampled_from(["red", " red", "tall", "", " ", "Tall", "e\u0301"]), max_size=3)
ORDINALS = st.integers(0, 1)


def table(rows: list[dict[str, Any]], schema: pa.Schema, *names: str) -> pa.Table:
    fields = [pa.field("ordinal", pa.int64()), *(schema.field(name) for name in names)]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def by_image(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["ordinal"])


def rows_of(**columns: Any) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(st.fixed_dictionaries({"ordinal": ORDINALS, **columns}), max_size=10).map(
        by_image
    )


def joined(
    annotations: list[dict[str, Any]],
    attributes: list[dict[str, Any]],
    aliases: list[dict[str, Any]],
) -> tuple[list[list[str] | None], list[int]]:
    """The attributes of each annotation, and the places of those that belong to none."""
    targets: dict[tuple[int, int], int] = {}
    for row in aliases:
        place = row["ordinal"], row["alias"]
        targets[place] = min(targets.get(place, row["annotation_id"]), row["annotation_id"])
    given: dict[tuple[int, int | None], list[str]] = {}
    owners = []
    for row in attributes:
        number = targets.get((row["ordinal"], row["annotation_id"]), row["annotation_id"])
        owners.append((row["ordinal"], number))
        given.setdefault(owners[-1], []).extend(row["attributes"])
    objects = {
        (row["ordinal"], row["annotation_id"])
        for row in annotations
        if row["kind"] == OBJECT and row["annotation_id"] is not None
    }
    found: list[list[str] | None] = []
    for row in annotations:
        own = row["attributes"]
        if own is None and row["kind"] == OBJECT and row["annotation_id"] is not None:
            own = given.get((row["ordinal"], row["annotation_id"]))
        found.append(own)
    return found, [place for place, owner in enumerate(owners) if owner not in objects]


@settings(max_examples=250)
@given(
    annotations=rows_of(
        kind=st.sampled_from([OBJECT, OBJECT, REGION]),
        annotation_id=IDS,
        attributes=st.none() | NAMES,
    ),
    attributes=rows_of(annotation_id=IDS, attributes=NAMES, index=st.integers(0, 9)),
    aliases=st.none() | rows_of(annotation_id=st.integers(0, 5), alias=st.integers(4, 6)),
    own=st.booleans(),
)
def test_objects_get_what_another_file_says_of_their_ids(
    annotations: list[dict[str, Any]],
    attributes: list[dict[str, Any]],
    aliases: list[dict[str, Any]] | None,
    own: bool,
) -> None:
    if not own:
        annotations = [row | {"attributes": None} for row in annotations]
    names = ("kind", "annotation_id", *(["attributes"] if own else []))
    found, loose = join_attributes(
        table(annotations, ANNOTATIONS, *names),
        table(attributes, ATTRIBUTES, "annotation_id", "attributes", "index"),
        None if aliases is None else table(aliases, ALIASES, "annotation_id", "alias"),
    )
    expected, left = joined(annotations, attributes, aliases or [])
    assert found["attributes"].to_pylist() == expected
    assert found["annotation_id"].to_pylist() == [row["annotation_id"] for row in annotations]
    assert loose["index"].to_pylist() == [attributes[place]["index"] for place in left]


@settings(max_examples=200)
@given(
    rows=st.lists(st.tuples(st.none() | NAMES, st.booleans()), max_size=8),
    skip=st.integers(0, 2),
)
def test_attributes_are_tidy_once_each_and_of_objects_alone(
    rows: list[tuple[list[str] | None, bool]], skip: int
) -> None:
    lists = pa.array([["x", " y"]] * skip + [names for names, _ in rows], pa.list_(pa.string()))
    wanted = np.array([ask for _, ask in rows], bool)
    found = clean_attributes(lists.slice(skip), wanted)
    expected = [
        list(dict.fromkeys(filter(None, map(normalise_text, names or [])))) if ask else []
        for names, ask in rows
    ]
    assert found.to_pylist() == expected
    assert found.type == pa.list_(pa.string())


def test_lists_with_nulls_inside_are_read_as_empty_texts() -> None:
    lists = pa.array([["a", None, "a"], None], pa.list_(pa.string()))
    assert clean_attributes(lists, np.array([True, True])).to_pylist() == [["a"], []]


def test_an_id_that_two_objects_took_over_goes_to_the_smaller() -> None:
    objects = [{"ordinal": 0, "kind": OBJECT, "annotation_id": number} for number in (9, 2, 4)]
    attributes = [{"ordinal": 0, "annotation_id": 7, "attributes": ["red"], "index": 0}]
    aliases = [{"ordinal": 0, "annotation_id": number, "alias": 7} for number in (9, 2, 4)]
    found, loose = join_attributes(
        table(objects, ANNOTATIONS, "kind", "annotation_id"),
        table(attributes, ATTRIBUTES, "annotation_id", "attributes", "index"),
        table(aliases, ALIASES, "annotation_id", "alias"),
    )
    assert found["attributes"].to_pylist() == [None, ["red"], None]
    assert len(loose) == 0
