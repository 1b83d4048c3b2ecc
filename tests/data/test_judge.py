"""The rules against the same rules one record at a time, in plain Python."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_data.records import ANNOTATIONS, CAPTION, OBJECT, REGION
from xvlm_data.rules import Judged, Reasons, Rules, judge
from xvlm_data.text import words

SIDES = st.one_of(
    st.integers(-30, 130).map(float),
    st.sampled_from([0.0, -0.0, 0.01, 0.03, 1e-46, 1e308, -1e308, math.nan, math.inf, -math.inf]),
    st.floats(-50, 150),
    st.none(),
)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "image": st.integers(0, 2),
            "kind": st.sampled_from([CAPTION, REGION, REGION, OBJECT]),
            "text": st.sampled_from(["", "a red dog", "a red Dog!", "red dog runs", "cat", "???"]),
            "crowd": st.none() | st.booleans(),
            "problem": st.sampled_from([None, None, None, "malformed", "unknown_category"]),
            "x": SIDES,
            "y": SIDES,
            "w": SIDES | st.integers(1, 90).map(float),
            "h": SIDES | st.integers(1, 90).map(float),
        }
    ),
    max_size=12,
).map(lambda records: sorted(records, key=lambda record: record["image"]))
IMAGES = st.lists(
    st.tuples(
        st.integers(1, 120),
        st.integers(1, 120),
        st.sampled_from([None, None, "leak", "other_split", "missing_image", "size_mismatch"]),
    ),
    min_size=3,
    max_size=3,
)
RULES = st.builds(
    Rules,
    st.sampled_from([0.0, 0.01, 0.2]),
    st.sampled_from([0.2, 0.5, 0.75, 1.0]),
    st.booleans(),
)


def fate(
    record: dict[str, Any], image: tuple[int, int, str | None], rules: Rules
) -> tuple[str | None, list[float], bool]:
    """(reason, normalised box, clipped) of one record; but for overlapping texts."""
    width, height, problem = image
    whole = [0.5, 0.5, 1.0, 1.0]
    if record["problem"]:
        return record["problem"], whole, False
    if problem in ("leak", "other_split"):
        return problem, whole, False
    is_box = record["kind"] in (REGION, OBJECT)
    x, y, w, h = (math.nan if record[side] is None else record[side] for side in "xywh")
    if is_box and not all(map(math.isfinite, (x, y, w, h))):
        return "box_not_finite", whole, False
    if is_box and (w <= 0 or h <= 0):
        return "box_empty", whole, False
    if not record["text"]:
        return "empty_text", whole, False
    if problem:
        return problem, whole, False
    if record["crowd"] and not rules.keep_crowd:
        return "crowd", whole, False
    if not is_box:
        return None, whole, False
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        return "box_outside", whole, False
    box = [
        (left + (right - left) / 2) / width,
        (top + (bottom - top) / 2) / height,
        (right - left) / width,
        (bottom - top) / height,
    ]
    if np.float32(box[2]) <= 0 or np.float32(box[3]) <= 0:
        return "box_empty", whole, False
    if (right - left) * (bottom - top) < rules.min_area * width * height:
        return "small", whole, False
    moves = (left - x, top - y, (right - left) - w, (bottom - top) - h)
    return None, box, max(map(abs, moves)) > 0.02


@settings(max_examples=500)
@given(records=RECORDS, images=IMAGES, rules=RULES)
def test_every_rule_in_its_order(
    records: list[dict[str, Any]], images: list[tuple[int, int, str | None]], rules: Rules
) -> None:
    names = [name for name in ANNOTATIONS.names if records and name in records[0]]
    table = pa.Table.from_pylist(
        [{name: record[name] for name in names} for record in records],
        pa.schema([ANNOTATIONS.field(n) for n in names or ["kind"]]),
    )
    judged = judge(
        table,
        np.array([record["image"] for record in records], np.int64),
        np.array([image[:2] for image in images], np.int64),
        Reasons.of(pa.array([image[2] for image in images], pa.string())),
        pa.array([record["text"] for record in records], pa.string()),
        rules,
    )
    expected: list[str | None] = []
    kept: dict[int, list[frozenset[str]]] = {0: [], 1: [], 2: []}
    for place, record in enumerate(records):
        reason, box, clipped = fate(record, images[record["image"]], rules)
        if reason is None and record["kind"] == REGION and rules.max_text_overlap < 1:
            own = words(record["text"])
            earlier = kept[record["image"]]
            if any(
                own and len(own & other) > rules.max_text_overlap * len(own | other)
                for other in earlier
            ):
                reason = "text_overlap"
            else:
                earlier.append(own)
        expected.append(reason)
        if reason is None:
            assert judged.boxes[place].tolist() == np.array(box, np.float32).tolist()
            assert judged.clipped[place] == clipped
            assert (judged.boxes[place] >= 0).all()
            assert (judged.boxes[place] <= 1).all()
    every = np.ones(len(records), bool)
    assert [text or None for text in judged.reasons.labels(every).to_pylist()] == expected
    assert judged.reasons.kept.tolist() == [reason is None for reason in expected]
    assert judged.reasons.counts(every) == Counter(filter(None, expected))


def judged_boxes(*boxes: tuple[float, ...], kind: int = OBJECT, text: str = "a dog") -> Judged:
    """What the default rules say of boxes in one image of 100 x 80."""
    columns = {side: [box[place] for box in boxes] for place, side in enumerate("xywh")}
    count = len(boxes)
    return judge(
        pa.table({"kind": pa.array([kind] * count, pa.int8()), **columns}),
        np.zeros(count, np.int64),
        np.array([[100, 80]]),
        Reasons(np.zeros(1, np.int16)),
        pa.array([text] * count),
        Rules(),
    )


def test_one_percent_is_not_less_than_one_percent() -> None:
    judged = judged_boxes((0.0, 0.0, 10.0, 8.0), (0.0, 0.0, 10.0, 7.99))
    assert given_names(judged.reasons) == [None, "small"]


def test_the_rounding_of_decimals_is_no_clipping() -> None:
    judged = judged_boxes((-0.01, 0.0, 50.0, 50.0), (-0.03, 0.0, 50.0, 50.0), (60.0, 0, 40.03, 9))
    assert judged.clipped.tolist() == [False, True, True]


def test_a_region_that_is_left_out_anyway_has_no_part_in_overlaps() -> None:
    judged = judged_boxes((0, 0, 5.0, 5.0), (0, 0, 50.0, 50.0), (9.0, 9, 50.0, 50.0), kind=REGION)
    assert given_names(judged.reasons) == ["small", None, "text_overlap"]


TEXTS = st.lists(st.sampled_from([None, "a", "b", "c"]), max_size=8)


def given_names(reasons: Reasons) -> list[str | None]:
    return [reasons.names[code] or None for code in reasons.codes.tolist()]


@given(
    first=TEXTS,
    marks=st.lists(st.tuples(st.sets(st.integers(0, 7)), st.sampled_from("abxy")), max_size=5),
)
def test_the_first_reason_stays(first: list[str | None], marks: list[tuple[set[int], str]]) -> None:
    reasons = Reasons.of(pa.array(first, pa.string()))
    assert given_names(reasons) == first
    expected = list(first)
    for places, name in marks:
        where = np.array([place in places for place in range(len(first))], bool)
        reasons.mark(where, name)
        expected = [
            old or (name if mark else None) for old, mark in zip(expected, where, strict=True)
        ]
        assert given_names(reasons) == expected
    odd = np.arange(len(first)) % 2 == 1
    assert reasons.labels(odd).to_pylist() == [name or "" for name in expected[1::2]]
    assert reasons.counts(odd) == Counter(filter(None, expected[1::2]))
    only = reasons.only(["a", "y", "nobody's"])
    assert given_names(only) == [name if name in ("a", "y") else None for name in expected]
    assert given_names(reasons) == expected


@given(own=TEXTS, others=TEXTS.filter(bool), rows=st.lists(st.integers(0, 7), min_size=8))
def test_reasons_of_an_image_are_taken_over_where_there_is_none(
    own: list[str | None], others: list[str | None], rows: list[int]
) -> None:
    reasons = Reasons.of(pa.array(own, pa.string()))
    above = [row % len(others) for row in rows[: len(own)]]
    reasons.take_over(Reasons.of(pa.array(others, pa.string())), np.array(above, np.int64))
    assert given_names(reasons) == [
        name or others[row] for name, row in zip(own, above, strict=True)
    ]
