"""SBU captions: a million Flickr photographs with their owners' captions.

Files: ``sbu-captions-all.json`` (three parallel arrays), or the older pair
``SBU_captioned_photo_dataset_{urls,captions}.txt`` (line n of one belongs to line n of the other).
Images: ``images/<last part of the URL>``, or ``dataset/…`` as torchvision stores them. Flickr gives
that part to one photograph only; where another list has two addresses that end alike, a file of
that name is the first one's. There is no official split. A photograph's number is in its URL: those
that Flickr30K or COCO hold out are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xvlm_data.errors import UserError
from xvlm_data.leaks.evaluation import flickr_photo
from xvlm_data.raw.files import find_file, find_optional
from xvlm_data.reading import Records
from xvlm_data.records import CAPTION
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.held_out import held_out_ids
from xvlm_data.sources.url_list import (
    image_key,
    is_url,
    last_part,
    url_digest,
    write_captions,
    write_images,
)
from xvlm_data.storage import AnyPath

_URLS = "SBU_captioned_photo_dataset_urls.txt"
_CAPTIONS = "SBU_captioned_photo_dataset_captions.txt"
#: Flickr's own addresses: their last part is one photograph's, whichever server has it.
_FLICKR = re.compile(r"https?://[\w.-]*flickr\.com/(?:[^?#]*/)?\d+_[0-9a-f]+(?:_\w)?\.\w+$")

#: Values of a column with their positions, and (position, why, raw) of unusable ones.
Column = Iterator[tuple[list[str], list[int], list[tuple[int, str, bytes]]]]


def name_image(url: str) -> tuple[str, list[str]]:
    """``sbu/<photo>_<secret>`` and ``images/<photo>_<secret>.jpg``."""
    name = last_part(url) or url_digest(url)
    return name.rsplit(".", 1)[0] or name, [f"images/{name}", f"dataset/{name}"]


class Sbu(Source):
    """See the module."""

    name = "sbu"
    licence = "list: none stated; photographs keep their owners' Flickr licences"
    citation = citations.SBU
    homepage = "https://www.cs.rice.edu/~vo9/sbucaptions"
    merge_images = True
    url_list = True

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        if request.split != "train":
            request.notes.append(
                f"sbu has no official split: all its images are labelled {request.split!r}"
            )
        path = find_optional(request.root, ["sbu-captions-all.json"])
        if path is not None:
            urls_file = captions_file = path
            urls_place, captions_place = "image_urls[{index}]", "captions[{index}]"
            urls = _json_column(path, "image_urls", request)
            captions = _json_column(path, "captions", request)
        else:
            urls_file = find_file(
                request.root, ["sbu-captions-all.json", f"dataset/{_URLS}", _URLS], "URL list"
            )
            captions_file = find_file(
                request.root, [f"dataset/{_CAPTIONS}", _CAPTIONS], "caption list"
            )
            urls_place = captions_place = "line {line}"
            urls = _text_column(urls_file, request)
            captions = _text_column(captions_file, request)
        held_out = held_out_ids(
            request,
            beside=True,
            absent="no evaluation files found: photographs of Flickr30K's test set were not left "
            "out (put dataset_flickr30k.json into a flickr30k folder beside this one, or give "
            "files with --exclude)",
        ).flickr_ids
        part = records.part(urls_file, urls_place)
        keys = _read_urls(urls, part, records, held_out, as_urls=request.urls)
        records.images_complete()
        count = _read_captions(
            captions, keys, records.part(captions_file, captions_place), records, captions_file
        )
        if count != len(keys):
            raise UserError(
                f"{captions_file}: {count} captions for {len(keys)} URLs, they no longer belong "
                "together",
                "download the list again",
            )


def _read_urls(
    column: Column,
    part: int,
    records: Records,
    held_out: npt.NDArray[np.int64],
    *,
    as_urls: bool,
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Image records; returns the key of each row (8 bytes each), -1 where the URL is unusable."""
    chunks = []
    names = _Names()
    for values, indices, malformed in column:
        good = [(url, index) for url, index in zip(values, indices, strict=True) if is_url(url)]
        bad = [
            (index, f"not a web address: {url[:80]!r}", b"")
            for url, index in zip(values, indices, strict=True)
            if not is_url(url)
        ]
        records.malformed_images(part, sorted([*malformed, *bad]))
        chunk = np.full(len(values) + len(malformed), -1, dtype=np.int64)
        first = min([*indices, *(index for index, _, _ in malformed)], default=0)
        places = [index for _, index in good]
        addresses = [url for url, _ in good]
        taken = names.taken(addresses)
        problems = _held_out(addresses, held_out)
        if taken and not as_urls:
            problems = _ambiguous(addresses, taken, problems)
        chunk[np.array(places, dtype=np.int64) - first] = write_images(
            "sbu",
            addresses,
            places,
            part,
            records,
            partial(_name_apart, taken=taken) if taken else name_image,
            as_urls=as_urls,
            problems=problems,
        )
        chunks.append(chunk)
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int64)


class _Names:
    """Which address had a name first; 16 bytes an image."""

    def __init__(self) -> None:
        #: Keys of names, sorted, and of the address of each.
        self._names = np.zeros(0, np.int64)
        self._addresses = np.zeros(0, np.int64)

    def taken(self, urls: Sequence[str]) -> set[str]:
        """Those of some further addresses whose name another address has had before."""
        if not urls:
            return set()
        names = np.array([image_key(name_image(url)[0]) for url in urls], np.int64)
        addresses = np.array([image_key(_photograph(url)) for url in urls], np.int64)
        distinct, first, row = np.unique(names, return_index=True, return_inverse=True)
        owners = addresses[first]
        places = np.searchsorted(self._names, distinct)
        old = np.zeros(len(distinct), bool)
        inside = places < len(self._names)
        old[inside] = self._names[places[inside]] == distinct[inside]
        owners[old] = self._addresses[places[old]]
        self._names = np.insert(self._names, places[~old], distinct[~old])
        self._addresses = np.insert(self._addresses, places[~old], owners[~old])
        return {urls[place] for place in np.flatnonzero(addresses != owners[row]).tolist()}


def _photograph(url: str) -> str:
    """The same for two addresses of one photograph."""
    return last_part(url) if _FLICKR.match(url) else url


def _name_apart(url: str, taken: set[str]) -> tuple[str, list[str]]:
    """As :func:`name_image`, but an address whose name is taken goes by its digest."""
    name, paths = name_image(url)
    return url_digest(url) if url in taken else name, paths


def _ambiguous(
    urls: Sequence[str], taken: set[str], known: dict[str, Any] | None
) -> dict[str, Any]:
    """Columns problem and detail: no file can be told to be that of a second address."""
    none: list[str | None] = [None] * len(urls)
    columns = known or {"problem": none, "detail": none}
    pairs = [
        (problem, detail)
        if problem or url not in taken
        else (
            "ambiguous_name",
            f"{url[:500]!r}: an earlier address ends alike, and files are named by that",
        )
        for url, problem, detail in zip(urls, columns["problem"], columns["detail"], strict=True)
    ]
    return {"problem": [one for one, _ in pairs], "detail": [other for _, other in pairs]}


def _held_out(urls: Sequence[str], held_out: npt.NDArray[np.int64]) -> dict[str, Any] | None:
    """Columns problem and detail: the photographs that evaluation sets hold out."""
    if not len(held_out):
        return None
    photos = [flickr_photo(url) for url in urls]
    leaks = np.isin([-1 if photo is None else photo for photo in photos], held_out).tolist()
    return {
        "problem": ["leak" if leak else None for leak in leaks],
        "detail": [
            f"Flickr photo {photo} is held out" if leak else None
            for photo, leak in zip(photos, leaks, strict=True)
        ],
    }


def _read_captions(
    column: Column,
    keys: np.ndarray[tuple[int], np.dtype[np.int64]],
    part: int,
    records: Records,
    file: AnyPath,
) -> int:
    count = 0
    for values, indices, malformed in column:
        count += len(values) + len(malformed)
        if count > len(keys):
            raise UserError(
                f"{file}: more captions than URLs, they no longer belong together",
                "download the list again",
            )
        records.malformed(CAPTION, part, malformed)
        row_keys = keys[np.array(indices, np.int64)]
        write_captions(values, pa.array(row_keys, mask=row_keys < 0), indices, part, records)
    return count


def _json_column(path: AnyPath, key: str, request: Request) -> Column:
    for elements in request.arrays(path, {key: str}):
        yield elements.items, elements.indices.tolist(), elements.malformed


def _text_column(path: AnyPath, request: Request) -> Column:
    for first, lines in request.lines(path):
        values: list[str] = []
        indices: list[int] = []
        malformed: list[tuple[int, str, bytes]] = []
        for index, line in enumerate(lines, first):
            try:
                values.append(line.decode("utf-8"))
                indices.append(index)
            except UnicodeDecodeError as error:
                malformed.append((index, str(error), line))
        yield values, indices, malformed


SOURCE = Sbu()
