"""CC12M: URL first, persons stay anonymous, and nothing but tabs divides a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.raw_releases import build_all, write_image
from tests.data.source_records import read_source
from tests.shared import shared_path
from xvlm_data.errors import UserError
from xvlm_data.records import CAPTION
from xvlm_data.sources.url_list import name_by_digest


def release(root: Path, data: bytes) -> Path:
    root.mkdir(parents=True)
    (root / "cc12m.tsv").write_bytes(data)
    return root


def test_real_lines(tmp_path: Path) -> None:
    excerpt = shared_path("fixtures/cc12m")
    lines = [line.split("\t") for line in (excerpt / "cc12m.tsv").read_text().splitlines()]
    read = read_source("cc12m", excerpt, tmp_path / "r")
    assert [r["text"] for r in read.of_kind(CAPTION)] == [text for _, text in lines]
    assert "<PERSON>" in read.annotations[2]["text"]
    assert [r["paths"] for r in read.images] == [name_by_digest(url)[1] for url, _ in lines]
    assert [r["key"] for r in read.images] == [r["key"] for r in read.annotations]
    summary, _, _ = build_all("cc12m", excerpt, tmp_path / "m")
    assert summary["counts"]["images"]["rejected"] == {"missing_image": 3}


def test_persons_stay_in_the_manifest(tmp_path: Path) -> None:
    url = "http://example.org/1.jpg?a=b&c=d"
    root = release(tmp_path / "raw", f"{url}\tPhoto  <PERSON>,\u00a0at home \n".encode())
    write_image(root / name_by_digest(url)[1][0])
    _, rows, rejects = build_all("cc12m", root, tmp_path / "m")
    assert [row["caption"] for row in rows] == ["Photo <PERSON>, at home"]
    assert rejects == []


def test_wrong_lines_are_told_and_add_up(tmp_path: Path) -> None:
    lines = [
        b"http://a.org/1.jpg\tgood",
        b"a caption\thttp://a.org/2.jpg",  # CC3M's order
        b"http://a.org/3.jpg",
        b"http://a.org/4.jpg\ta\tb",
        b"http://a.org/5.jpg\t\xff",
        b"",
        b"ftp://a.org/6.jpg\tx",
        b"http://a.org/1.jpg\tthe same image again",
    ]
    root = release(tmp_path / "raw", b"\n".join(lines) + b"\r\n")
    read = read_source("cc12m", root, tmp_path / "r")
    wrong = [r["place"] for r in read.images if r["problem"] == "malformed"]
    assert wrong == [f"line {n}" for n in (2, 3, 4, 5, 6, 7)]
    assert len(read.images) == len(lines)
    assert len(read.annotations) == 2
    assert len({r["key"] for r in read.annotations}) == 1


def test_without_the_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"looked for cc12m\.tsv"):
        read_source("cc12m", tmp_path, tmp_path / "r")
