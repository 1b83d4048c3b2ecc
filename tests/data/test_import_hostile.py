"""Imports of files that were made to break them, or were merely saved by another editor."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from base64 import b64encode
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from xvlm_data.errors import UserError
from xvlm_data.formats import importing
from xvlm_data.formats.entries import Entry, Piece, Said
from xvlm_data.formats.importing import BLOCK_BYTES, BLOCK_IMAGES
from xvlm_data.formats.webdataset import export_webdataset
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.records import CAPTION

from .inspect_manifests import concept, row, write
from .round_trips import encoded, import_back

PICTURE = encoded((8, 8))
BOM = b"\xef\xbb\xbf"
#: Deeper than any parser goes.
NESTED = "[" * 100_000 + "]" * 100_000
REGION = '{"box": [0.5, 0.5, 0.5, 0.5], "text": "red", "granularity": "region"}'


def archive(path: Path, *samples: tuple[str, bytes]) -> Path:
    """A picture each, and another member of that key."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for number, (extension, data) in enumerate(samples):
            for name, content in ((f"{number}.jpg", PICTURE), (f"{number}.{extension}", data)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def line(**more: str) -> str:
    """A JSON line with a picture; values are JSON already."""
    values = {"binary": json.dumps(b64encode(PICTURE).decode())} | more
    return "{" + ", ".join(f'"{key}": {value}' for key, value in values.items()) + "}\n"


def rejects(found: Manifest, out: Path) -> list[dict[str, Any]]:
    table = pq.read_table(out / "rejects.parquet").to_pylist()
    assert (found.summary or {})["rejects"] == len(table)
    return table


@pytest.mark.parametrize(("extension", "most"), [("txt", 1 << 20), ("json", 16 << 20)])
def test_a_text_longer_than_any_is_one_reject(tmp_path: Path, extension: str, most: int) -> None:
    long = b"a " * (1 << 19) + b"b"
    too_long = long + b" " * (most + 1 - len(long))
    path = archive(tmp_path / "x.tar", (extension, too_long), ("txt", b"short"), ("txt", long[:-1]))
    found = import_back("webdataset", path, tmp_path / "m")
    assert [r["caption"] for r in found] == ["short", long[:-1].decode().strip()]
    (reject,) = rejects(found, tmp_path / "m")
    assert (reject["kind"], reject["reason"], reject["location"]) == (
        "image",
        "malformed",
        "sample 0",
    )
    assert f"'0.{extension}' has {most + 1:,} bytes: {most:,} are the most" in reject["message"]


def test_an_image_of_thousands_of_regions_comes_back(tmp_path: Path) -> None:
    said = [concept(text=f"{n} " + "word " * 30, granularity="region") for n in range(6_000)]
    path = write(tmp_path / "m.parquet", [row(0, concepts=said)])
    export_webdataset(open_manifest(path), tmp_path / "out")
    found = import_back("webdataset", tmp_path / "out", tmp_path / "back")
    assert [len(r["concepts"]) for r in found] == [6_000]


#: Imports an archive in a process of its own and prints its peak, in MB.
PEAK = """
import re, sys
from pathlib import Path
from tests.data.round_trips import import_back
from xvlm_data.lean import make_lean

make_lean()
found = import_back("webdataset", Path(sys.argv[1]), Path(sys.argv[2]))
# Of getrusage a process inherits what the one that started it had.
peak = re.search("VmHWM: *\\t* *(\\d+) kB", Path("/proc/self/status").read_text())
print(found.summary["counts"]["captions"], int(peak[1]) >> 10)
"""


@pytest.mark.parametrize(("text", "fate"), [(b"a text ", "kept"), (b" \n", "empty_text")])
def test_long_texts_in_a_small_archive_do_not_fill_the_memory(
    tmp_path: Path, text: bytes, fate: str
) -> None:
    long = text * ((1 << 20) // len(text))
    path = archive(tmp_path / "x.tar.gz", *[("txt", long)] * 400)
    assert path.stat().st_size < 1 << 21
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=True,
    )
    counts, peak = done.stdout.rsplit(maxsplit=1)
    assert f"'{fate}': 400" in counts
    assert int(peak) < 1000  # of 400 MB of text there were several copies
    if fate == "kept":  # nor does whoever reads it later need much
        groups = pq.ParquetFile(tmp_path / "m/manifest-00000.parquet").metadata
        assert groups.num_row_groups > 3
    else:
        messages = pq.read_table(tmp_path / "m/rejects.parquet")["message"].to_pylist()
        assert max(map(len, messages)) <= 1000


class Entries:
    """A format whose entries are given."""

    place, normalised_boxes = "entry {index}", False

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries

    def read(self, piece: Piece) -> list[Entry]:
        return self.entries


@pytest.mark.parametrize(
    ("entry", "most"),
    [
        ({"data": bytes(1 << 20)}, 32),
        ({"said": [Said(CAPTION, "x" * (1 << 20))]}, 32),
        ({"said": [Said(CAPTION, attributes=["x" * (1 << 19)] * 2)]}, 32),
        ({"said": [Said(CAPTION, problem="malformed", detail="x" * (1 << 20))]}, 32),
        ({"said": [Said(CAPTION, "x")] * 2000}, 33),
        ({"name": "x" * (1 << 20)}, 32),
        ({"said": [Said(CAPTION, "a caption")] * 5}, BLOCK_IMAGES),
    ],
)
def test_a_block_is_full_whatever_fills_it(
    tmp_path: Path, entry: dict[str, Any], most: int
) -> None:
    entries = [Entry(n, f"x/{n}", **entry) for n in range(600)]
    plan: Any = type("Plan", (), {"tasks": [[Piece(0, tmp_path, 0, 1)]]})
    plan.format = Entries(entries)
    sizes = [len(block) for _, block in importing._blocks(plan, 0)]
    assert sum(sizes) == 600
    assert max(sizes) == most
    assert BLOCK_BYTES == 32 << 20


def test_a_long_id_is_told_once_and_shortened(tmp_path: Path) -> None:
    """Every reject has the id of its image."""
    row = {"id": '"s/' + "x" * 500_000 + '"', "source": '"s"', "caption": '"a"'}
    concepts = "[" + ", ".join(["{}"] * 1000) + "]"
    data = "{" + ", ".join(f'"{k}": {v}' for k, v in (row | {"concepts": concepts}).items()) + "}"
    archive(tmp_path / "x.tar", ("json", data.encode()))
    (tmp_path / "x.jsonl").write_text(line(**row, elems=concepts))
    for form, name in (("webdataset", "x.tar"), ("xvlm-jsonl", "x.jsonl")):
        found = import_back(form, tmp_path / name, tmp_path / form)
        table = rejects(found, tmp_path / form)
        assert {len(r["record_id"]) for r in table} == {1000}
        images = [r for r in table if r["kind"] == "image"]
        assert [(r["reason"], "an id of 500,002 char" in r["message"]) for r in images] == [
            ("malformed", True)
        ]


@pytest.mark.parametrize("side", ["-8", "0", "true", "2147483648", "1" * 40, '"8"'])
def test_a_size_that_is_none_is_asked_of_the_picture(tmp_path: Path, side: str) -> None:
    data = f'{{"width": {side}, "height": 8, "concepts": [{REGION}]}}'
    more = data.replace("width", "height", 1).replace('"height": 8', '"width": 8')
    path = archive(tmp_path / "x.tar", ("json", data.encode()), ("json", more.encode()))
    found = import_back("webdataset", path, tmp_path / "m")
    assert [(r["width"], r["height"]) for r in found] == [(8, 8)] * 2


def test_a_deeply_nested_line_is_one_reject(tmp_path: Path) -> None:
    good = line(caption='"a"', elems='[{"bb": [1, 1, 2, 2], "caption": "b"}]')
    deep = [
        line(caption='"a"', foo=NESTED),
        line(caption='"a"', id=NESTED),
        line(caption=NESTED),
        line(caption='"a"', elems=NESTED),
    ]
    in_elem = line(caption='"a"', elems=f'[{{"bb": [1, 1, 2, 2], "caption": "b", "z": {NESTED}}}]')
    (tmp_path / "x.jsonl").write_text(good + "".join(deep) + in_elem + good)
    found = import_back("xvlm-jsonl", tmp_path / "x.jsonl", tmp_path / "m")
    assert [r["caption"] for r in found] == ["a"] * len(found)
    counts = (found.summary or {})["counts"]
    assert {r["reason"] for r in rejects(found, tmp_path / "m")} == {"malformed"}
    assert counts["images"]["raw"] == 7
    # Whether the parser or what is nested in an element meets the limit is its own business.
    left = counts["images"]["rejected"]["malformed"], counts["regions"]["rejected"]
    assert left in [(5, {}), (4, {"malformed": 1})]


def test_ids_at_the_edge_of_what_can_be_nested(tmp_path: Path) -> None:
    """What can be read at some depth cannot always be printed there."""
    depths = range(200, 1400, 4)
    lines = [line(caption='"a"', id="[" * n + "]" * n) for n in depths]
    (tmp_path / "x.jsonl").write_text("".join(lines))
    found = import_back("xvlm-jsonl", tmp_path / "x.jsonl", tmp_path / "m")
    assert len(found) + len(rejects(found, tmp_path / "m")) == len(depths)


def test_a_deeply_nested_member_is_one_reject(tmp_path: Path) -> None:
    concept = REGION.replace("}", f', "z": {NESTED}}}')
    texts = [
        f'{{"caption": "a", "z": {NESTED}}}',
        f'{{"caption": {NESTED}}}',
        f'{{"concepts": [{concept}, {REGION}]}}',
        '{"caption": "good"}',
    ]
    path = archive(tmp_path / "x.tar", *(("json", text.encode()) for text in texts))
    found = import_back("webdataset", path, tmp_path / "m")
    table = rejects(found, tmp_path / "m")
    assert {r["reason"] for r in table} == {"malformed"}
    assert {r["location"] for r in table} == {"sample 0", "sample 1", "sample 2"}
    assert [r["caption"] for r in found][-1] == "good"


def test_a_byte_order_mark_is_no_part_of_the_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xvlm_data.formats import xvlm_jsonl_lines

    text = "".join(line(caption=f'"text {n}"') for n in range(9)).encode()
    (tmp_path / "x.jsonl").write_bytes(BOM + text)
    for size in (1 << 20, 700):
        monkeypatch.setattr(importing, "TASK_BYTES", size)
        monkeypatch.setattr(xvlm_jsonl_lines, "TASK_BYTES", size)
        found = import_back("xvlm-jsonl", tmp_path / "x.jsonl", tmp_path / str(size))
        assert [r["caption"] for r in found] == [f"text {n}" for n in range(9)]
    (tmp_path / "y.jsonl").write_bytes(text.splitlines(keepends=True)[0] + BOM + text)
    found = import_back("xvlm-jsonl", tmp_path / "y.jsonl", tmp_path / "y")
    assert len(rejects(found, tmp_path / "y")) == 1  # elsewhere it is no mark


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    text = "\ufeff" + line(caption='"a"')
    (tmp_path / "my list.jsonl").write_bytes(text.encode(encoding))
    name = encoding[:6].upper()
    with pytest.raises(UserError, match=f"list.jsonl: text in {name}, not in UTF-8") as caught:
        import_back("xvlm-jsonl", tmp_path / "my list.jsonl", tmp_path / "m")
    assert f"iconv -f {name} -t UTF-8 'my list.jsonl' > 'new-my list.jsonl'" in str(caught.value)
