"""What can be downloaded: tables of URLs, and manifests of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.downloads import kept, run, write_list, write_urls
from tests.data.hostile_server import HostileServer, picture
from tests.data.inspect_manifests import concept
from tests.data.raw_releases import build_all
from xvlm_data.download.lists import ListSpec
from xvlm_data.errors import UserError
from xvlm_data.inspect.validate import validate
from xvlm_data.manifest import open_manifest


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture
def fresh() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


def test_one_url_many_times_is_one_image_with_all_captions(
    fresh: HostileServer, tmp_path: Path
) -> None:
    urls = [fresh.url("/good/1.jpg"), fresh.url("/good/2.jpg")] * 3
    spec = write_list(tmp_path / "list.parquet", urls, ["a", "b", "c", "  ", "a", "d\te"])
    summary = run(spec, tmp_path / "out")
    rows = kept(tmp_path / "out")
    texts = {path: [c["text"] for c in row["concepts"]] for path, row in rows.items()}
    assert texts == {"/good/1.jpg": ["a", "c", "a"], "/good/2.jpg": ["b", "d e"]}
    assert [asked.path for asked in fresh.asked].count("/good/1.jpg") == 1
    assert summary["counts"]["captions"] == {
        "raw": 6,
        "kept": 5,
        "filtered": {},
        "rejected": {"empty_text": 1},
    }


def test_text_files(server: HostileServer, tmp_path: Path) -> None:
    one, two = server.url("/good/1.jpg"), server.url("/good/2.jpg")
    (tmp_path / "a.csv").write_text(f'text,link\n"a ""dog"", big\nand",{one}\nno link\nx,{two}\n')
    (tmp_path / "b.tsv").write_bytes(f'{one}\ta "dog\n{two}\tb\tc\n\xff\n'.encode("latin-1"))
    run(ListSpec(tmp_path / "a.csv", "link", "text", "a", "val"), tmp_path / "a")
    run(ListSpec(tmp_path / "b.tsv", "1", "2", "b", "train"), tmp_path / "b")
    assert [r["caption"] for r in kept(tmp_path / "a").values()] == ['a "dog", big and', "x"]
    assert [r["caption"] for r in kept(tmp_path / "b").values()] == ['a "dog']
    for name, count in (("a", 1), ("b", 2)):
        rejects = pd.read_parquet(tmp_path / name / "rejects.parquet")
        assert rejects["reason"].tolist() == ["malformed"] * count
    with pytest.raises(UserError, match=r"no column 'url'; its columns are text, link"):
        run(ListSpec(tmp_path / "a.csv", "url", None, "a", "val"), tmp_path / "c")


def test_a_manifest_of_urls(server: HostileServer, tmp_path: Path) -> None:
    urls = [server.url(f"/good/{n}.jpg") if n % 5 else server.url(f"/s404/{n}") for n in range(40)]
    summary = run(str(write_urls(tmp_path / "urls", urls)), tmp_path / "out", shard_rows=9)
    assert [shard["rows"] for shard in summary["shards"]] == [7, 7, 7, 7, 4]
    rows = list(kept(tmp_path / "out").values())
    assert [row["id"] for row in rows] == [f"cc3m/{n}" for n in range(40) if n % 5]
    for row in rows:
        number = row["id"].removeprefix("cc3m/")
        assert row["image"]["bytes"] == picture(int(number))
        texts = [c["text"] for c in row["concepts"]]
        assert texts == [f"caption {number}", f"second {number}"]
    manifest = open_manifest(tmp_path / "out")
    assert manifest.info["licence"] == "see Google"
    assert summary["counts"]["captions"]["rejected"] == {"http_404": 16}
    rejects = pd.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert rejects["record_id"].tolist() == [f"cc3m/{n}" for n in range(0, 40, 5)]
    assert rejects["location"].tolist() == [f"row {n}" for n in range(0, 40, 5)]


def test_from_the_release_to_the_images(server: HostileServer, tmp_path: Path) -> None:
    """``build --images url`` writes what this reads."""
    lines = [f"caption {n}\t{server.url(f'/good/{n}.jpg')}" for n in range(5)]
    lines += [f"gone\t{server.url('/s410/5')}", f"again\t{server.url('/good/2.jpg')}"]
    root = tmp_path / "raw"
    root.mkdir()
    (root / "Train_GCC-training.tsv").write_text("\n".join(lines) + "\n")
    build_all("cc3m", root, tmp_path / "urls", images="url")
    summary = run(str(tmp_path / "urls"), tmp_path / "out")
    assert summary["counts"]["images"]["rejected"] == {"http_410": 1}
    rows = kept(tmp_path / "out")
    assert [row["image"]["bytes"] for row in rows.values()] == [picture(n) for n in range(5)]
    assert [c["text"] for c in rows["/good/2.jpg"]["concepts"]] == ["caption 2", "again"]
    assert {row["source"] for row in rows.values()} == {"cc3m"}
    manifest = open_manifest(tmp_path / "out")
    assert validate(manifest, decode=True).ok
    assert manifest.info["licence"] == open_manifest(tmp_path / "urls").info["licence"]


def test_further_columns_are_carried_along(server: HostileServer, tmp_path: Path) -> None:
    folder = write_urls(tmp_path / "urls", [server.url(f"/good/{n}") for n in range(4)])
    for number, file in enumerate(sorted(folder.glob("*.parquet"))):
        table = pq.read_table(file)
        scores = pa.array([number * 2 + 0.5, number * 2 + 1.5])
        pq.write_table(table.append_column("score", scores), file)
    (folder / "manifest.json").unlink()
    summary = run(str(folder / "*.parquet"), tmp_path / "out")
    assert summary["rows"] == 4
    assert [row["score"] for row in kept(tmp_path / "out").values()] == [0.5, 1.5, 2.5, 3.5]


def test_boxes_hold_the_image_to_its_size(server: HostileServer, tmp_path: Path) -> None:
    size = {"width": 48, "height": 36, "concepts": [concept()], "caption": None}
    urls = [server.url("/good/1.jpg"), server.url("/large")]
    summary = run(str(write_urls(tmp_path / "urls", urls, **size)), tmp_path / "out")
    assert summary["counts"]["images"]["rejected"] == {"size_mismatch": 1}
    assert summary["counts"]["regions"]["kept"] == 1


def test_lists_that_were_saved_by_another_editor(server: HostileServer, tmp_path: Path) -> None:
    text = "".join(f"{server.url(f'/good/{n}.jpg')}\tcaption {n}\n" for n in range(3))
    (tmp_path / "list.tsv").write_text(text, encoding="utf-8-sig")
    spec = ListSpec(tmp_path / "list.tsv", "1", "2", "list", "train")
    run(spec, tmp_path / "out")
    captions = {path: row["caption"] for path, row in kept(tmp_path / "out").items()}
    assert captions == {f"/good/{n}.jpg": f"caption {n}" for n in range(3)}
    (tmp_path / "list.tsv").write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match=r"list\.tsv: text in UTF-16.*iconv -f UTF-16"):
        run(spec, tmp_path / "again")
    (tmp_path / "list.tsv").write_text(text)
    assert run(spec, tmp_path / "again")["rows"] == 3


def test_a_list_without_addresses_is_called_by_its_name(
    server: HostileServer, tmp_path: Path
) -> None:
    (tmp_path / "list.tsv").write_text(f"a caption\t{server.url('/good/1.jpg')}\n")
    with pytest.raises(UserError) as caught:
        run(ListSpec(tmp_path / "list.tsv", "1", None, "list", "train"), tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path}/list.tsv: no web addresses in column '1', but 'a caption'; "
        "give the column of URLs with --url-column"
    )
    # Nothing lies there that would have to be finished, or thrown away, before.
    right = ListSpec(tmp_path / "list.tsv", "2", "1", "list", "train")
    assert run(right, tmp_path / "out")["rows"] == 1


def test_manifests_of_files_are_refused(tmp_path: Path) -> None:
    folder = write_urls(tmp_path / "urls", ["/data/coco/1.jpg", "/data/coco/2.jpg"])
    with pytest.raises(UserError, match="are files or embedded already"):
        run(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_first_rows_only(server: HostileServer, tmp_path: Path) -> None:
    urls = [server.url(f"/good/{n}.jpg") for n in range(30)]
    summary = run(write_list(tmp_path / "l.parquet", urls), tmp_path / "out", limit=4)
    assert summary["rows"] == 4 == len(kept(tmp_path / "out"))
