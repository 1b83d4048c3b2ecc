"""Parts of JSON arrays, read wherever the file is cut, against the standard library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.raw_releases import Silent
from xvlm_data import reading
from xvlm_data.engines import Inline
from xvlm_data.errors import UserError
from xvlm_data.journal import Journal
from xvlm_data.ranges import READ_FOLDER, Reading
from xvlm_data.raw import json_arrays
from xvlm_data.raw.json_arrays import ArrayReader, Elements, find_element
from xvlm_data.raw.json_document import Array, JsonDocument
from xvlm_data.reading import Records
from xvlm_data.records import Sink
from xvlm_data.sources import Request
from xvlm_data.spill import open_spill


class Item(msgspec.Struct):
    id: int
    size: float = 0.0
    tag: Any = None


#: Texts that look like structure; nested objects whose first key is the elements' own.
NASTY = st.sampled_from(
    ["", '"', "\\", '\\"', "]}", '},{"id":', '},{"', "é\u2028", "[", "{", "},{", "a\\\\"]
)
NESTED = st.recursive(
    st.none() | st.integers(-3, 3) | st.floats() | NASTY,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries({"id": inner}, optional={"tag": inner, "size": inner})
        | st.lists(st.fixed_dictionaries({"id": inner}), min_size=2, max_size=4)
    ),
    max_leaves=6,
)
GOOD = st.builds(
    lambda number, size, tag, order: {
        key: {"id": number, "size": size, "tag": tag, "more": tag}[key] for key in order
    },
    st.integers(-9, 9),
    st.floats(),
    NESTED,
    st.permutations(["id", "size", "tag", "more"])
    | st.just(["id", "size"])
    | st.just(["id", "tag"]),
)
#: No items: wrong types, no objects, no JSON although the brackets are right, half a surrogate.
BAD = st.sampled_from(
    [
        '{"id": "1"}',
        '{"id":1.5}',
        "null",
        "17",
        "[]",
        '[{"id":1},{"id":2}]',
        '"},{"',
        "{}",
        '{"size": 1, "id": true}',
        '{"id": 1, "size": "]}"}',
        '{"id":1,"tag":tru}',
        '{"id":1 "size":2}',
        '{"id":2,"tag":[1,,2]}',
        '{"id":1,"tag":"\\ud800"}',
        '{"id":1,"tag":"\\x"}',
    ]
)
STYLES: list[dict[str, Any]] = [
    {"separators": (",", ":")},
    {"separators": (", ", ": ")},
    {"indent": 1},
    {"separators": (" ,\t", " :\r\n"), "ensure_ascii": False},
]


@st.composite
def arrays(draw: st.DrawFn) -> tuple[bytes, list[Any]]:
    """The text of an array's inside, and its elements: None stands for a malformed one."""
    elements, texts = [], []
    style = draw(st.sampled_from(STYLES))
    mixed = draw(st.booleans())
    for good in draw(st.lists(GOOD | BAD, max_size=14)):
        if isinstance(good, str):
            elements.append(None)
            texts.append(good)
        else:
            form = draw(st.sampled_from(STYLES)) if mixed else style
            texts.append(json.dumps(good, **form))
            elements.append(json.loads(texts[-1]))
    comma = draw(st.sampled_from([",", ", ", " ,\n"]))
    return comma.join(texts).encode(), elements


def plain(item: Item) -> str:
    """A form in which NaN equals NaN."""
    return json.dumps([item.id, item.size, item.tag])


def truth(elements: list[Any]) -> list[str | None]:
    """What each element is as an item."""
    return [
        None if e is None else json.dumps([e["id"], float(e.get("size", 0.0)), e.get("tag")])
        for e in elements
    ]


def placed(found: Elements[Any], base: int, into: dict[int, str | None]) -> None:
    new = dict(zip(found.indices.tolist(), map(plain, found.items), strict=True))
    new |= {index: None for index, _, _ in found.malformed}
    assert len(new) == len(found.items) + len(found.malformed)
    for index, value in new.items():
        assert base + index not in into
        into[base + index] = value


def read_cut(path: Path, stops: list[int], chunk: int) -> list[str | None]:
    """Read the array "a" in parts that end at the stops, as workers and their driver do it."""
    found: dict[int, str | None] = {}
    with JsonDocument(path, {"a": Item}) as document, path.open("rb") as file:

        def part(array: Array, start: int, stop: int | None) -> tuple[ArrayReader, list[Any]]:
            reader = ArrayReader(
                path, file, Item, start, stop=stop, separator=array.separator, chunk=chunk
            )
            return reader, list(reader)

        for array in document:
            expected, base = array.start, 0
            ends: list[int | None] = [*stops, None] if array.separator else [None]
            places = [array.start, *stops]
            for number, (place, stop) in enumerate(zip(places, ends, strict=False)):
                if stop is not None and expected > stop + 1:
                    continue
                start: int | None = place
                if number and array.separator:
                    start = find_element(file, array.separator, place, stop)
                if start != expected:
                    start = expected
                reader, pieces = part(array, start, stop)
                for piece in pieces:
                    placed(piece, base, found)
                expected, base = reader.end, base + reader.count
                if reader.closed:
                    break
            assert reader.closed
            array.end = expected
    assert sorted(found) == list(range(len(found)))
    return [found[index] for index in range(len(found))]


@settings(max_examples=400)
@given(
    array=arrays(),
    cuts=st.lists(st.floats(0, 1), max_size=8),
    chunk=st.integers(1, 200),
    piece=st.integers(32, 100),
    before=st.sampled_from(["", '"b": [{"id": 1}, {"id": 2}], ', '"b": {"a": [{"id":7}]},']),
    after=st.sampled_from(["", ', "c": [{"id":3},{"id":4},{"id":5}]', ', "c": "},{\\"id\\":"']),
)
def test_parts_of_an_array_put_together_are_the_array(
    tmp_path_factory: pytest.TempPathFactory,
    array: tuple[bytes, list[Any]],
    cuts: list[float],
    chunk: int,
    piece: int,
    before: str,
    after: str,
) -> None:
    inside, elements = array
    head = b"{" + before.encode() + b'"a":['
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_bytes(head + inside + b" ]" + after.encode() + b"}\n")
    stops = sorted(len(head) + 1 + int(cut * len(inside)) for cut in cuts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "PIECE", piece)
        assert read_cut(path, stops, chunk) == truth(elements)


def convert(elements: Elements[Item], sink: Sink) -> None:
    """Rows of what was decoded and of what was not."""
    sink.annotations(
        {
            "kind": [0] * len(elements.items),
            "index": elements.indices,
            "text": [plain(item) for item in elements.items],
        }
    )
    sink.malformed(0, 0, elements.malformed)


@contextmanager
def records(folder: Path) -> Iterator[Records]:
    request = Request(folder, "train", Silent().reading)
    with Journal(folder / "journal", {}) as journal:
        yield Records(request, journal, Inline(), merge_images=False, size=10)


def rows(folder: Path, found: Records) -> list[str | None]:
    """What the spills hold, by its place in the array."""
    values: dict[int, str | None] = {}
    for spill in found.spills:
        table = open_spill(
            folder / "journal" / READ_FOLDER / spill["tables"]["annotations"]["file"]
        )
        for row in table.read_all().to_pylist():
            index = row["index"] + spill["base"]
            assert index not in values
            assert (row.get("text") is None) == (row.get("problem") == "malformed")
            values[index] = row.get("text")
    assert sorted(values) == list(range(len(values)))
    return [values[index] for index in range(len(values))]


@settings(max_examples=150)
@given(array=arrays(), size=st.integers(8, 300), piece=st.integers(32, 100))
def test_ranges_as_tasks_give_every_element_once_and_in_its_place(
    tmp_path_factory: pytest.TempPathFactory,
    array: tuple[bytes, list[Any]],
    size: int,
    piece: int,
) -> None:
    inside, elements = array
    folder = tmp_path_factory.mktemp("ranges")
    path = folder / "x.json"
    path.write_bytes(
        b'{"a": [' + inside + b'], "names": ["x", "},{"], "c":[{"id":1},{"id":2}, {"id" : 3}]}'
    )
    wanted = {"a": Reading(Item, convert), "names": Reading(str)}
    with pytest.MonkeyPatch.context() as patch, records(folder) as found:
        patch.setattr(json_arrays, "PIECE", piece)
        patch.setattr(reading, "RANGE", size)
        assert found.read_arrays(path, wanted) == {"names": ["x", "},{"]}
        assert rows(folder, found) == truth(elements)
        assert found.raw == ({"caption": len(elements)} if elements else {})


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Where each task that runs begins, and whether it has to guess where its elements do."""
    begun: list[tuple[int, bool]] = []
    run = reading.run_task

    def spying(task: Any) -> Any:
        begun.append((task.start, task.guess))
        return run(task)

    monkeypatch.setattr(reading, "run_task", spying)
    return begun


@pytest.mark.parametrize("size", range(100, 130))
def test_nothing_is_read_twice_wherever_ranges_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    items = [{"id": n, "tag": "x"} for n in range(10, 60)]  # all of one length
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": items}))
    begun = spied(monkeypatch)
    monkeypatch.setattr(json_arrays, "PIECE", 64)
    monkeypatch.setattr(reading, "RANGE", size)
    with records(tmp_path) as found:
        found.read_arrays(path, {"a": Reading(Item, convert)})
        assert rows(tmp_path, found) == truth(items)
    assert [guess for _, guess in begun] == [False] + [True] * (len(begun) - 1)
    assert len(begun) > 8


def test_ranges_are_read_again_only_where_the_guess_was_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"id": n, "tag": [{"id": 1}, {"id": 2}] if n == 50 else None} for n in range(100)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": items}))
    begun = spied(monkeypatch)
    monkeypatch.setattr(json_arrays, "PIECE", 64)
    monkeypatch.setattr(reading, "RANGE", path.read_text().index(']}, {"id": 51') - 20)
    with records(tmp_path) as found:
        found.read_arrays(path, {"a": Reading(Item, convert)})
        assert rows(tmp_path, found) == truth(items)
    assert [guess for _, guess in begun[:2]] == [False, True]
    # The second range begins inside element 50; that guess alone was wrong.
    assert len([guess for _, guess in begun if not guess]) == 2


def test_an_element_longer_than_several_ranges_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"id": 1}, {"id": 2, "tag": "x" * 5_000}, {"id": 3}, {"id": 4, "tag": [{"id": 1}]}]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": items}, separators=(",", ":")))
    monkeypatch.setattr(json_arrays, "PIECE", 64)
    monkeypatch.setattr(reading, "RANGE", 256)
    with records(tmp_path) as found:
        found.read_arrays(path, {"a": Reading(Item, convert)})
        assert rows(tmp_path, found) == truth(items)


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.99])
def test_a_cut_off_file_is_told_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: float
) -> None:
    text = json.dumps({"a": [{"id": n, "tag": "},{"} for n in range(200)]})
    path = tmp_path / "x.json"
    path.write_text(text[: int(keep * len(text))])
    monkeypatch.setattr(json_arrays, "PIECE", 64)
    monkeypatch.setattr(reading, "RANGE", 512)
    with records(tmp_path) as found, pytest.raises(UserError, match="cut off"):
        found.read_arrays(path, {"a": Reading(Item, convert)})


def test_an_absurdly_deep_element_is_set_aside(tmp_path: Path) -> None:
    deep = '{"id":2,"tag":' + "[" * 100_000 + "]" * 100_000 + "}"
    path = tmp_path / "x.json"
    path.write_text('{"a":[{"id":1},' + deep + ',{"id":3}]}')
    with records(tmp_path) as found:
        found.read_arrays(path, {"a": Reading(Item, convert)})
        assert [r and json.loads(r)[0] for r in rows(tmp_path, found)] == [1, None, 3]


def test_memory_of_a_range_is_bounded_by_the_chunk_not_the_file(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "x.json"
    element = '{"id": 1, "size": 2.5, "polygon": [' + "1.5," * 90 + "1]}"
    with path.open("w") as file:
        file.write('{"a": [')
        for _ in range(100):
            file.write(",".join([element] * 1_000) + ",")
        file.write(element + "]}")
    half = path.stat().st_size // 2
    assert half > 19_000_000
    with path.open("rb") as file, JsonDocument(path, {"a": Item}, early=True) as document:
        array = next(iter(document))
        assert array.separator is not None
        middle = find_element(file, array.separator, half, None)
        assert middle is not None
        tracemalloc.start()
        count = 0
        for start, stop in ((array.start, half), (middle, None)):
            reader = ArrayReader(
                path, file, Item, start, stop=stop, separator=array.separator, chunk=1 << 18
            )
            count += sum(len(elements.items) for elements in reader)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert count == 100_001
    assert peak < 8_000_000
