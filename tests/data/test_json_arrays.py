"""The streaming JSON reader against the standard library, at every chunk size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_data.errors import UserError
from xvlm_data.raw.json_document import read_arrays

NASTY = st.sampled_from(["", '"', "\\", '\\"', "]}", ',{"', "é\u2028", "\\\\", "a,b"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | NASTY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NASTY, inner, max_size=4),
    max_leaves=8,
)


def collect(path: Path, wanted: dict[str, Any], chunk: int = 1 << 20) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {key: [] for key in wanted}
    for elements in read_arrays(path, wanted, chunk=chunk):
        assert not elements.malformed
        start = len(found[elements.key])
        assert elements.indices.tolist() == list(range(start, start + len(elements.items)))
        found[elements.key] += elements.items
    return found


@settings(max_examples=300)
@given(
    items=st.lists(VALUES, max_size=6),
    texts=st.lists(NASTY, max_size=6),
    other=VALUES,
    chunk=st.integers(1, 60),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    order=st.permutations(["items", "texts", "other"]),
)
def test_equals_the_standard_library(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[Any],
    texts: list[str],
    other: Any,
    chunk: int,
    indent: int | None,
    ascii_only: bool,
    order: list[str],
) -> None:
    parts = {"items": items, "texts": texts, "other": other}
    document = {key: parts[key] for key in order}
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(document, indent=indent, ensure_ascii=ascii_only), "utf-8")
    assert collect(path, {"items": object, "texts": str}, chunk) == {"items": items, "texts": texts}
    path.write_text(json.dumps(items, indent=indent, ensure_ascii=ascii_only), "utf-8")
    assert collect(path, {"": object}, chunk) == {"": items}


class Item(msgspec.Struct):
    id: int
    size: float = 0.0


def test_malformed_elements_are_set_aside_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": [{"id": 1}, {"id": "2"}, null, {"id": 4, "size": NaN}, {"id": 5}]}')
    (elements,) = read_arrays(path, {"a": Item})
    assert [item.id for item in elements.items] == [1, 4, 5]
    assert elements.indices.tolist() == [0, 3, 4]
    assert elements.items[1].size != elements.items[1].size
    assert [index for index, _, _ in elements.malformed] == [1, 2]
    assert "id" in elements.malformed[0][1]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("keep", [1, 8, 15, 24, 29])
def test_a_file_cut_off_anywhere_is_told(tmp_path: Path, keep: int, chunk: int) -> None:
    text = '{"a": [{"id": 1}, {"id": 2}]}\n'
    path = tmp_path / "x.json"
    path.write_text(text[:keep] if keep < 29 else text[:28])
    with pytest.raises(UserError, match="cut off"):
        list(read_arrays(path, {"a": Item}, chunk=chunk))


def test_reading_can_end_with_the_last_wanted_array(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"z": 1, "a": [{"id": 1}], "b": [{"id": 2}], "c": [{"id"')
    found = [(e.key, e.items[0].id) for e in read_arrays(path, {"a": Item, "b": Item}, early=True)]
    assert found == [("a", 1), ("b", 2)]
    with pytest.raises(UserError, match="cut off"):
        list(read_arrays(path, {"a": Item, "b": Item}))
    with pytest.raises(UserError, match="cut off"):
        list(read_arrays(path, {"a": Item, "d": Item}, early=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "not a JSON object"),
        (b"17", "not a JSON object"),
        (b"{}", "empty JSON object"),
        (b'{"b": []}', "no 'a' array"),
        (b'{"a": {}}', "'a' is not an array"),
        (b'{"a": []} {"a": []}', "after the end"),
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04rest", "zip"),
    ],
)
def test_what_is_not_the_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_arrays(path, {"a": Item}))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_memory_is_bounded_by_the_chunk_not_the_file(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "x.json"
    with path.open("w") as file:
        file.write('{"skip": [')
        file.write(",".join('{"id": 1, "polygon": [' + "1.5," * 50 + "1]}" for _ in range(50_000)))
        file.write('], "a": [')
        file.write(",".join('{"id": 1, "polygon": [' + "1.5," * 50 + "1]}" for _ in range(50_000)))
        file.write("]}")
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    count = sum(len(e.items) for e in read_arrays(path, {"a": Item}, chunk=1 << 18))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 50_000
    assert peak < 8_000_000
