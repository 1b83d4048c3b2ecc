"""SBU, CC3M and CC12M at any scale: lists of addresses and captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xvlm_data.sample.annotations import words
from xvlm_data.sample.annotations.chance import Numbers, keys_of, mixed, sixteen_bits, uniform
from xvlm_data.sample.annotations.files import Block, File, Run
from xvlm_data.sample.annotations.plan import Plan, Request, ids_for
from xvlm_data.sample.annotations.sizes import CC3M, CC12M, SBU, scaled
from xvlm_data.sample.annotations.truth import Fate, Tally
from xvlm_data.sample.release import HOST, Ids

SPLITS = ("train", "val")
_PHOTO_ID_PRIME = 9_999_999_967
_ROWS_A_BLOCK = 20_000
_REACH = 1000  # a repeated address is that of a row at most this far above

# What is wrong with a row; each has an equal part of the invalid ones.
_GOOD, _EMPTY, _REPEATED, _BAD_URL, _BAD_ROW = range(5)
_FAULTS = 4

_BAD_URLS = ("n/a", f"ftp://{HOST}/1.jpg", "http://", f"//{HOST}/2.jpg", "http://[broken/3.jpg", "")
_BAD_TEXTS = ("17", "null", '["a", "list"]')
_CC3M_FILES = ("Train_GCC-training.tsv", "Validation_GCC-1.1.0-Validation.tsv")

Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class _List:
    """The rows of one file; every column is a function of the row's number."""

    request: Request
    source: str
    split: str
    count: int

    @property
    def _name(self) -> str:
        return f"{self.source}/{self.split}"

    @cached_property
    def _ids(self) -> Ids:
        # The splits' addresses differ in their hosts, so the ids need not.
        return ids_for(self.count, self.request.seed, f"{self._name}/full", _PHOTO_ID_PRIME)

    def _drawn(self, rows: Numbers) -> Codes:
        draw = uniform(self.request.seed, f"{self._name}/faults", rows)
        fault = 1 + (draw / max(self.request.invalid, 1e-300) * _FAULTS).clip(0, _FAULTS)
        return np.where(draw < self.request.invalid, fault, _GOOD).astype(np.int8)

    def faults(self, rows: Numbers) -> tuple[Codes, Numbers]:
        """What is wrong with each row, and the row whose address it has: mostly its own."""
        codes = self._drawn(rows)
        back = keys_of(self.request.seed, f"{self._name}/back", rows) % np.uint64(_REACH)
        above = rows - 1 - back.astype(np.int64)
        usable = (above >= 0) & np.isin(self._drawn(np.maximum(above, 0)), [_GOOD, _EMPTY])
        repeated = codes == _REPEATED
        codes[repeated & ~usable] = _GOOD
        return codes, np.where(repeated & usable, above, rows)

    def keys(self, rows: Numbers) -> npt.NDArray[np.uint64]:
        """64 random bits of each row."""
        return keys_of(self.request.seed, f"{self._name}/rows", rows)

    def photo_ids(self, rows: Numbers) -> list[int]:
        """Numbers that differ between rows."""
        ids: list[int] = self._ids.of_all(rows).tolist()
        return ids

    def captions(self, rows: Numbers) -> list[str]:
        """What people say of their photographs, without white space at the ends."""
        said = words.captions(mixed(self.keys(rows) ^ np.uint64(3)))
        return [" ".join(text.split()) for text in said]


# SBU ---------------------------------------------------------------------------------------------


def _sbu(folder: Path, request: Request) -> Plan:
    """``sbu-captions-all.json``: three parallel arrays."""
    rows = _List(request, "sbu", "train", scaled(SBU.rows[0], request.scale))

    def run(make: Callable[[_List, int, int], Block]) -> Run:
        return Run(partial(make, rows), rows.count, _ROWS_A_BLOCK, b", ")

    return Plan(
        [
            File(
                folder / "sbu-captions-all.json",
                [
                    b'{"image_urls": [',
                    run(_sbu_urls),
                    b'], "user_ids": [',
                    run(_sbu_users),
                    b'], "captions": [',
                    run(_sbu_captions),
                    b"]}",
                ],
            )
        ],
        partial(_truth, ("train",)),
    )


def _sbu_urls(rows: _List, first: int, stop: int) -> Block:
    numbers = np.arange(first, stop)
    codes, sources = rows.faults(numbers)
    keys = rows.keys(sources)
    urls = [
        f'"http://static.{HOST}/{server}/{photo}_{secret:010x}.jpg"'
        for server, photo, secret in zip(
            (1 + keys % np.uint64(5000)).tolist(),
            rows.photo_ids(sources),
            (keys >> np.uint64(24)).tolist(),
            strict=True,
        )
    ]
    for row in np.flatnonzero(codes == _BAD_URL).tolist():
        # One in three is no text at all.
        text = _BAD_TEXTS[row // 3 % 3] if row % 3 == 0 else words.quoted(_BAD_URLS[row // 3 % 6])
        urls[row] = text
    tally = Tally()
    _count_images(tally, rows.split, codes, malformed=(_BAD_URL,))
    return Block(", ".join(urls).encode(), tally)


def _sbu_users(rows: _List, first: int, stop: int) -> Block:
    keys = mixed(rows.keys(np.arange(first, stop)))
    users = zip((10**7 + keys % np.uint64(9 * 10**7)).tolist(), (keys >> 61).tolist(), strict=True)
    return Block(", ".join(f'"{user}@N0{last}"' for user, last in users).encode())


def _sbu_captions(rows: _List, first: int, stop: int) -> Block:
    numbers = np.arange(first, stop)
    codes, _ = rows.faults(numbers)
    forms = sixteen_bits(rows.keys(numbers), 3) % 4
    texts = []
    for row, (text, code, form) in enumerate(
        zip(rows.captions(numbers), codes.tolist(), forms.tolist(), strict=True)
    ):
        text = text if form else f'{text.rstrip(".")} - "my" photo...'
        texts.append(words.quoted(("", " ", "\t")[row % 3] if code == _EMPTY else text))
        if code == _BAD_ROW:
            texts[row] = _BAD_TEXTS[row % 3]
    tally = Tally()
    # A caption whose address is no address has no image that it could belong to.
    _count_captions(tally, rows.split, codes, malformed=(_BAD_URL, _BAD_ROW))
    return Block(", ".join(texts).encode(), tally)


# CC3M and CC12M ----------------------------------------------------------------------------------


def _cc3m(folder: Path, request: Request) -> Plan:
    """The two TSV files of caption and address."""
    lists = [
        _List(request, "cc3m", split, scaled(rows, request.scale))
        for split, rows in zip(SPLITS, CC3M.rows, strict=True)
    ]
    files = [
        _tsv(folder / name, rows, _cc3m_lines)
        for name, rows in zip(_CC3M_FILES, lists, strict=True)
    ]
    return Plan(files, partial(_truth, SPLITS))


def _cc12m(folder: Path, request: Request) -> Plan:
    """``cc12m.tsv`` of address and caption."""
    rows = _List(request, "cc12m", "train", scaled(CC12M.rows[0], request.scale))
    return Plan([_tsv(folder / "cc12m.tsv", rows, _cc12m_lines)], partial(_truth, ("train",)))


def _tsv(path: Path, rows: _List, make: Callable[[_List, int, int], Block]) -> File:
    return File(path, [Run(partial(make, rows), rows.count, _ROWS_A_BLOCK, b"\n"), b"\n"])


def _cc3m_lines(rows: _List, first: int, stop: int) -> Block:
    numbers = np.arange(first, stop)
    codes, sources = rows.faults(numbers)
    # Lower case, a space between tokens, punctuation a token of its own.
    captions = [
        f"{text} ." if form == 0 else text
        for text, form in zip(
            (said.rstrip(".").lower() for said in rows.captions(numbers)),
            (sixteen_bits(rows.keys(numbers), 3) % 3).tolist(),
            strict=True,
        )
    ]
    return _lines(rows, codes, captions, _addresses(rows, sources), url_first=False)


def _cc12m_lines(rows: _List, first: int, stop: int) -> Block:
    numbers = np.arange(first, stop)
    codes, sources = rows.faults(numbers)
    keys = mixed(rows.keys(numbers))
    more = words.captions(keys)
    captions = [
        f"{text.rstrip('.')} {middle} {' '.join(other.split())}"
        for text, other, middle in zip(
            rows.captions(numbers),
            more,
            [_MIDDLES[form] for form in (sixteen_bits(keys, 3) % len(_MIDDLES)).tolist()],
            strict=True,
        )
    ]
    return _lines(rows, codes, captions, _addresses(rows, sources), url_first=True)


_MIDDLES = (
    "|",
    "by <PERSON>,",
    "– Image 7 of 10:",
    "For Sale -",
    "& Caf\u00e9 #12:",
    "...",
    '"Art"',
)


def _addresses(rows: _List, sources: Numbers) -> list[str]:
    """Addresses of the web at large: long names, with a query, without an extension."""
    keys = mixed(rows.keys(sources))
    first, second = words.nouns(keys), words.nouns(mixed(keys))
    columns = zip(
        rows.photo_ids(sources),
        first,
        second,
        (sixteen_bits(keys, 1) % 40).tolist(),
        (sixteen_bits(keys, 2) % 10).tolist(),
        (sixteen_bits(keys, 3) % 9000 + 1000).tolist(),
        strict=True,
    )
    site = f"{rows.source}-{rows.split}.{HOST}"
    return [
        f"https://i.{site}/736x/{photo % 97:02x}/{noun}-with-{other}-{photo}.jpg?w={size}"
        if form < 2
        else f"http://www{host}.{site}/view/photograph-of-the-day/nature/{noun}/{other}/{size}/{photo}"
        if form < 3
        else f"https://thumb{host}.{site}/display_pic_with_logo/{size}/{photo}/"
        f"stock-photo-a-{noun}-next-to-a-{other}-{photo}.jpg"
        for photo, noun, other, host, form, size in columns
    ]


def _lines(
    rows: _List, codes: Codes, captions: list[str], urls: list[str], *, url_first: bool
) -> Block:
    lines = []
    for row, (code, caption, url) in enumerate(zip(codes.tolist(), captions, urls, strict=True)):
        if code == _EMPTY:
            caption = " " * (row % 2)
        elif code == _BAD_URL:
            url = _BAD_URLS[row % len(_BAD_URLS)]
        elif code == _BAD_ROW and row % 4 == 0:
            caption = f"{caption}\t{caption}"
        elif code == _BAD_ROW and row % 4 == 1:
            caption = f"caf\udce9 {caption}"  # Latin-1, as some pages are
        elif code == _BAD_ROW and row % 4 == 2:
            caption, url = url, caption
        pair = (url, caption) if url_first else (caption, url)
        lines.append(caption if code == _BAD_ROW and row % 4 == 3 else "\t".join(pair))
    tally = Tally()
    broken = (_BAD_URL, _BAD_ROW)
    _count_images(tally, rows.split, codes, malformed=broken)
    # A line that cannot be read is one image record that is malformed, and no caption.
    _count_captions(tally, rows.split, codes[~np.isin(codes, broken)], malformed=())
    return Block("\n".join(lines).encode("utf-8", "surrogateescape"), tally)


# The truth ---------------------------------------------------------------------------------------


def _count_images(tally: Tally, split: str, codes: Codes, malformed: tuple[int, ...]) -> None:
    """The same address twice is one image."""
    broken = np.isin(codes, malformed)
    tally.add("image", split, Fate.MALFORMED, int(broken.sum()))
    tally.add("image", split, Fate.KEPT, int((~broken & (codes != _REPEATED)).sum()))


def _count_captions(tally: Tally, split: str, codes: Codes, malformed: tuple[int, ...]) -> None:
    broken = np.isin(codes, malformed)
    tally.add("caption", split, Fate.MALFORMED, int(broken.sum()))
    tally.add("caption", split, Fate.EMPTY_TEXT, int((codes == _EMPTY).sum()))
    tally.add("caption", split, Fate.KEPT, int((~broken & (codes != _EMPTY)).sum()))


def _truth(splits: tuple[str, ...], tally: Tally) -> dict[str, Any]:
    return {"splits": {split: tally.settle({split: None}) for split in splits}}


PLANS = {"sbu": _sbu, "cc3m": _cc3m, "cc12m": _cc12m}
