"""Archives as ``tarfile`` reads them, and what it should not be made to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xvlm_data.errors import UserError
from xvlm_data.raw.tars import MAX_HEADERS, TarReader

BLOCK = tarfile.BLOCKSIZE
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def member(name: str, size: int = 0, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in more.items():
        setattr(info, key, value)
    return info


def archive(form: int, **headers: Any) -> bytes:
    """A few members of every length, one of them with a long name where the format has these."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for number, size in enumerate([0, 1, BLOCK, BLOCK + 1, 5 * BLOCK - 1]):
            data = random.Random(size).randbytes(size)
            tar.addfile(member(f"{number}.bin", size), io.BytesIO(data))
        tar.addfile(member("folder", type=tarfile.DIRTYPE))
        tar.addfile(member("link", type=tarfile.SYMTYPE, linkname="../outside"))
        name = "long/" * (15 if form == tarfile.USTAR_FORMAT else 60) + "é.jpg"
        tar.addfile(member(name, 3, **headers), io.BytesIO(b"abc"))
    return buffer.getvalue()


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    return member(name, size, type=kind).tobuf(tarfile.GNU_FORMAT)


def read(path: Path, data: bytes) -> list[tuple[str, bytes | None]]:
    path.write_bytes(data)
    with TarReader(path) as members:
        return [
            (m.name, members.read(m) if m.isreg() and m.size < 1 << 20 else None) for m in members
        ]


def refused(path: Path, data: bytes) -> str:
    with pytest.raises(UserError, match="not a readable archive") as caught:
        read(path, data)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_members_are_those_of_tarfile(
    tmp_path: Path, form: int, pack: Callable[[bytes], bytes]
) -> None:
    data = archive(form)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        wanted = [
            (m.name, file.read() if m.isreg() and (file := tar.extractfile(m)) else None)
            for m in tar
        ]
    assert len(wanted) == 8
    path = tmp_path / "x.tar"
    assert read(path, pack(data)) == wanted
    with TarReader(path) as members:  # nothing has to be read on the way
        assert [m.name for m in members] == [name for name, _ in wanted]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path, kind: bytes) -> None:
    size = 64 << 20
    data = gzip.compress(header("x", size, kind) + bytes(size), 1)
    assert len(data) < 1 << 20
    tracemalloc.start()
    told = refused(tmp_path / "x.tar.gz", data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more than 1 MiB of headers" in told
    assert peak < 8 << 20


def test_headers_do_not_add_up_without_end(tmp_path: Path) -> None:
    def for_all(number: int) -> bytes:
        text = tarfile.TarInfo.create_pax_global_header({f"key{number}": "x" * 100_000})
        return text + header(f"{number}.txt", 0)

    assert len(read(tmp_path / "x.tar", b"".join(map(for_all, range(5))))) == 5
    told = refused(tmp_path / "x.tar", b"".join(map(for_all, range(12))))
    assert "headers for all members" in told
    chain = header("x", 1, tarfile.GNUTYPE_LONGNAME) + bytes(BLOCK)
    refused(tmp_path / "x.tar", chain * (MAX_HEADERS // len(chain)) + header("a", 0))
    refused(tmp_path / "x.tar", chain * (MAX_HEADERS // len(chain) + 9) + header("a", 0))


@pytest.mark.parametrize("size", [-BLOCK, -5 * BLOCK, 1 << 40, 1 << 70, (1 << 87) - 1])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME])
def test_sizes_that_lead_astray(tmp_path: Path, size: int, kind: bytes) -> None:
    """Python's own reader goes in circles on some, and counts through empty reads on others."""
    honest = header("a.txt", 3) + b"abc".ljust(BLOCK, b"\0")
    data = honest + header("b.txt", size, kind) + honest + bytes(2 * BLOCK)
    for packed in (data, gzip.compress(data)):
        refused(tmp_path / "x.tar", packed)


def test_what_is_packed_comes_out_piece_by_piece(tmp_path: Path) -> None:
    """Fifty bytes of bzip2 are 45 MB, so ten kilobytes are ten gigabytes."""
    size = 45_000_000
    packed = bz2.compress(bytes(size))
    assert len(packed) < 100
    data = bz2.compress(header("zeros.bin", 4 * size)) + packed * 4
    (tmp_path / "x.tar.bz2").write_bytes(data + bz2.compress(bytes(4 * BLOCK)))
    tracemalloc.start()
    with TarReader(tmp_path / "x.tar.bz2") as members:
        assert [m.size for m in members] == [4 * size]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    data = bytearray(archive(tarfile.USTAR_FORMAT))
    data[3 * BLOCK + 7] ^= 1  # in the third member's header
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert len(tar.getnames()) == 2  # so it is for Python
    refused(tmp_path / "x.tar", bytes(data))
    whole = archive(tarfile.USTAR_FORMAT)
    for cut in (BLOCK // 2, BLOCK + 100, 3 * BLOCK + 100, 4 * BLOCK):
        refused(tmp_path / "x.tar", whole[:cut])
    assert len(read(tmp_path / "x.tar", whole.rstrip(b"\0") + bytes(BLOCK - 3))) == 8
    for other in (b"", b"GIF89a" * 200, gzip.compress(b"no archive"), gzip.compress(whole)[:-900]):
        refused(tmp_path / "x.tar", other)


def test_mutilated_archives_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    bases = [archive(form) for form in FORMATS]
    bases.append(archive(tarfile.PAX_FORMAT, pax_headers=sparse))
    bases.append(archive(tarfile.PAX_FORMAT, pax_headers={"uid": "9" * 5000, "mtime": "nan"}))
    path = tmp_path / "x.tar"
    outcomes: set[object] = set()
    for _ in range(600):
        data = bytearray(rng.choice(bases))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data) // BLOCK) * BLOCK
            match rng.randrange(4):
                case 0:
                    data[rng.randrange(len(data))] = rng.randrange(256)
                case 1:
                    data[place + 156] = rng.choice(b"xgXLKS01257")
                case 2:
                    size = b"%011o\0" % rng.choice([0, 1, 511, 512, 5000, 1 << 30])
                    data[place + 124 : place + 136] = size
                case 3:
                    found = max(data.find(b"=", rng.randrange(len(data))), 0)
                    data[found : found + 3] = rng.choice([b"=-9", b"\xff\xfe=", b"\n\n\n"])
            total = sum(data[place : place + BLOCK]) - sum(data[place + 148 : place + 156]) + 256
            data[place + 148 : place + 156] = b"%06o\0 " % total
        try:
            outcomes.add(len(read(path, bytes(data))))
        except UserError as error:
            outcomes.add(type(error.__cause__))
    assert len(outcomes) > 6  # or nothing much was tried
