"""CC3M, CC12M and SBU: which file is the list, how it was saved, and which image an address is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.raw_releases import build_all, jpeg, write_image, write_json
from tests.data.source_records import read_source
from xvlm_data import reading
from xvlm_data.errors import UserError
from xvlm_data.records import CAPTION

OFFICIAL = "Train_GCC-training.tsv"


def cc3m(root: Path, **files: str) -> Path:
    """Lists of one line, in which each file's caption tells which it is."""
    root.mkdir(exist_ok=True)
    for name, caption in files.items():
        (root / name).write_text(f"{caption}\thttp://example.org/1.jpg\n")
    return root


def captions(root: Path, folder: Path, source: str = "cc3m") -> list[str]:
    return [row["text"] for row in read_source(source, root, folder).of_kind(CAPTION)]


@pytest.mark.parametrize(
    "other",
    [
        f"._{OFFICIAL}",
        f".{OFFICIAL}.k3Xy",
        f"{OFFICIAL}.crdownload",
        f"{OFFICIAL}.part",
        f"{OFFICIAL}.PARTIAL",
        f"{OFFICIAL}.tmp",
        f"{OFFICIAL}.download",
    ],
)
def test_what_is_hidden_or_unfinished_is_not_the_list(tmp_path: Path, other: str) -> None:
    root = cc3m(tmp_path / "raw", **{other: "wrong"})
    with pytest.raises(UserError, match=r"no GCC-training\.tsv") as caught:
        captions(root, tmp_path / "none")
    assert other in str(caught.value)
    for name in (OFFICIAL, "GCC-training.tsv", "Train%2FGCC-training.tsv", f"{OFFICIAL}.txt"):
        cc3m(root, **{name: "right"})
        assert captions(root, tmp_path / name) == ["right"]
        (root / name).unlink()


def test_the_official_name_comes_first_and_others_are_not_guessed(tmp_path: Path) -> None:
    copies = {"Train_GCC-training (1).tsv": "not looked for", "(1) GCC-training.tsv": "first"}
    copies |= {f"{OFFICIAL}.1": "second", "Train_GCC-training.tsv_Labels": "labels"}
    root = cc3m(tmp_path / "raw", **copies)
    with pytest.raises(UserError) as caught:
        captions(root, tmp_path / "two")
    assert f"(1) GCC-training.tsv, {OFFICIAL}.1: which" in str(caught.value)
    cc3m(root, **{"GCC-training.tsv": "as its address ends"})
    assert captions(root, tmp_path / "short") == ["as its address ends"]
    cc3m(root, **{OFFICIAL: "official"})
    assert captions(root, tmp_path / "official") == ["official"]
    (root / OFFICIAL).write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(UserError, match="gzip-compressed; unpack it first"):
        captions(root, tmp_path / "packed")


def saved(root: Path, source: str, encoding: str) -> Path:
    """Three lines of a source, as an editor saves them."""
    root.mkdir()
    urls = [f"http://static.flickr.com/{n}_abc.jpg" for n in range(3)]
    texts = [f"text {n}" for n in range(3)]
    files: dict[str, dict[str, Any]] = {
        "cc3m": {OFFICIAL: zip(texts, urls, strict=True)},
        "cc12m": {"cc12m.tsv": zip(urls, texts, strict=True)},
        "sbu": {
            "SBU_captioned_photo_dataset_urls.txt": zip(urls),
            "SBU_captioned_photo_dataset_captions.txt": zip(texts),
        },
    }
    for name, lines in files[source].items():
        text = "".join("\t".join(columns) + "\r\n" for columns in lines)
        (root / name).write_bytes(text.encode(encoding))
    return root


@pytest.mark.parametrize("source", ["cc3m", "cc12m", "sbu"])
def test_a_byte_order_mark_costs_no_record(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1, 2, 50, 1 << 20):
        monkeypatch.setattr(reading, "RANGE", size)
        root = saved(tmp_path / str(size), source, "utf-8-sig")
        _, rows, rejects = build_all(source, root, tmp_path / f"m{size}", images="url")
        assert [row["caption"] for row in rows] == ["text 0", "text 1", "text 2"]
        assert rejects == []


@pytest.mark.parametrize("source", ["cc3m", "cc12m", "sbu"])
def test_utf_16_is_told_of_in_one_line(tmp_path: Path, source: str) -> None:
    root = saved(tmp_path / "raw", source, "utf-16")
    with pytest.raises(UserError, match=r"text in UTF-16, .*iconv -f UTF-16 -t UTF-8") as caught:
        build_all(source, root, tmp_path / "m", images="url")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


#: Addresses and captions; of each name the first address is kept.
ENDS_ALIKE = [
    ("http://a.com/1/image.jpg", "a dog"),
    ("http://b.com/2/image.jpg", "a car"),
    ("http://b.com/2/image.jpg", "a red car"),
    ("http://a.com/1/image.jpg", "a black dog"),
    ("http://a.com/show.php?id=1", "one"),
    ("http://a.com/show.php?id=2", "two"),
    ("http://static.flickr.com/1/4385058960_b0f291553e.jpg", "a tree"),
    ("http://farm5.static.flickr.com/4042/4385058960_b0f291553e.jpg", "an oak"),
    ("https://live.staticflickr.com/1/4385058960_b0f291553e.jpg", "a plant"),
    ("http://evil.com/1/4385058960_b0f291553e.jpg", "not that tree"),
]


def sbu(root: Path, layout: str) -> Path:
    urls, texts = (list(column) for column in zip(*ENDS_ALIKE, strict=True))
    if layout == "json":
        columns = {"image_urls": urls, "captions": texts, "user_ids": []}
        write_json(root / "sbu-captions-all.json", columns)
        return root
    root.mkdir()
    for name, lines in (("urls", urls), ("captions", texts)):
        (root / f"SBU_captioned_photo_dataset_{name}.txt").write_text("\n".join(lines))
    return root


def said(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {row["image"]["path"]: [c["text"] for c in row["concepts"]] for row in rows}


@pytest.mark.parametrize("layout", ["json", "txt"])
def test_addresses_that_end_alike_are_images_of_their_own(tmp_path: Path, layout: str) -> None:
    root = sbu(tmp_path / "raw", layout)
    summary, rows, rejects = build_all("sbu", root, tmp_path / "m", images="url")
    wanted = {url: [text for u, text in ENDS_ALIKE if u == url] for url, _ in ENDS_ALIKE}
    same = [url for url in wanted if "flickr.com" in url]
    wanted[same[0]] += [wanted.pop(url)[0] for url in same[1:]]  # one photograph, three servers
    assert said(rows) == wanted
    assert rejects == []
    assert len({row["id"] for row in rows}) == len(rows) == summary["counts"]["images"]["raw"]
    assert [row["id"] for row in rows][::4] == ["sbu/image", "sbu/4385058960_b0f291553e"]


@pytest.mark.parametrize("layout", ["json", "txt"])
def test_a_file_is_the_image_of_one_address(tmp_path: Path, layout: str) -> None:
    root = sbu(tmp_path / "raw", layout)
    for name in ("image.jpg", "show.php", "4385058960_b0f291553e.jpg"):
        write_image(root / "images" / name, jpeg(20, 10))
    summary, rows, rejects = build_all("sbu", root, tmp_path / "m")
    assert {Path(path).name: texts for path, texts in said(rows).items()} == {
        "image.jpg": ["a dog", "a black dog"],
        "show.php": ["one"],
        "4385058960_b0f291553e.jpg": ["a tree", "an oak", "a plant"],
    }
    images = [r for r in rejects if r["kind"] == "image"]
    assert {r["reason"] for r in images} == {"ambiguous_name"}
    for reject, url in zip(images, (ENDS_ALIKE[n][0] for n in (1, 5, 9)), strict=True):
        assert url in reject["message"]
        assert "an earlier address ends alike" in reject["message"]
    assert summary["counts"]["images"] == {
        "raw": 6,
        "kept": 3,
        "filtered": {},
        "rejected": {"ambiguous_name": 3},
    }
    assert sum(summary["counts"]["captions"]["rejected"].values()) == 4


def test_names_are_told_apart_across_chunks() -> None:
    from xvlm_data.sources.sbu import _Names

    urls = [f"http://{n % 7}.org/{n % 5}.jpg" for n in range(200)]
    owner: dict[str, str] = {}
    wanted = [url for url in urls if owner.setdefault(url.rsplit("/")[-1], url) != url]
    for size in (1, 3, 50, 200):
        names = _Names()
        found = []
        for start in range(0, len(urls), size):
            chunk = urls[start : start + size]
            taken = names.taken(chunk)
            found += [url for url in chunk if url in taken]
        assert found == wanted
    assert names.taken([]) == set()
