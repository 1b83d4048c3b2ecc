"""Sources that are lists of (URL, caption); images lie on disk under names made from the URLs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from xvlm_data.reading import Records
from xvlm_data.records import CAPTION, Sink
from xvlm_data.sources.base import Request
from xvlm_data.storage import AnyPath

#: From a URL to the image's name in its id, and to where its file may lie under the root.
NameImage = Callable[[str], tuple[str, list[str]]]


def url_digest(url: str) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of a URL."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def last_part(url: str) -> str:
    """The last part of a URL's path: ``4385058960_b0f291553e.jpg``."""
    return urlsplit(url).path.rsplit("/", 1)[-1]


def name_by_digest(url: str) -> tuple[str, list[str]]:
    """``<key>`` and ``images/<xx>/<key>.jpg``, where key is the digest and xx its first digits."""
    key = url_digest(url)
    return key, [f"images/{key[:2]}/{key}.jpg"]


def image_key(name: str) -> int:
    """A 63-bit join key of an image name."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def write_images(
    source: str,
    urls: Sequence[str],
    indices: Sequence[int],
    part: int,
    sink: Sink,
    name: NameImage,
    *,
    as_urls: bool,
    problems: dict[str, Any] | None = None,
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """One image record a URL; returns their keys. The same URL twice is the same image.

    With ``as_urls`` the record's path is the URL itself. ``problems`` are the columns problem and
    detail, where some images are known to be left out.
    """
    named = [name(url) for url in urls]
    keys = np.fromiter((image_key(image) for image, _ in named), np.int64, len(named))
    if len(urls):
        sink.images(
            {
                "key": keys,
                "id": [f"{source}/{image}" for image, _ in named],
                "paths": [[url] for url in urls] if as_urls else [paths for _, paths in named],
                "part": np.full(len(urls), part, np.int16),
                "index": indices,
                **(problems or {}),
            }
        )
    return keys


def write_captions(
    texts: Sequence[str], keys: pa.Array, indices: Sequence[int], part: int, sink: Sink
) -> None:
    """One caption record a text; a key of null means that its URL is unusable."""
    if len(texts):
        unusable = keys.is_null()
        columns: dict[str, Any] = {
            "key": keys,
            "kind": np.full(len(texts), CAPTION, np.int8),
            "part": np.full(len(texts), part, np.int16),
            "index": indices,
            "text": texts,
        }
        if keys.null_count:
            bad = unusable.to_pylist()
            columns["problem"] = ["malformed" if b else None for b in bad]
            columns["detail"] = ["its URL is not usable" if b else None for b in bad]
        sink.annotations(columns)


def is_url(text: str) -> bool:
    """Whether a text can name an image on the web."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def read_tsv(
    source: str, path: AnyPath, request: Request, records: Records, *, url_first: bool
) -> None:
    """Read a TSV of captions and URLs: no header, no quoting.

    Args:
        source: for the ids.
        path: the file.
        request: says whether images are named by their addresses.
        records: where the records go.
        url_first: URL before caption (CC12M), or after it (CC3M).
    """
    part = records.part(path, "line {line}")
    convert = partial(
        _convert_lines, source=source, part=part, url_first=url_first, as_urls=request.urls
    )
    records.read_lines(path, convert)


def _convert_lines(
    first: int,
    lines: list[bytes],
    sink: Sink,
    *,
    source: str,
    part: int,
    url_first: bool,
    as_urls: bool,
) -> None:
    urls, captions, places = [], [], []
    malformed: list[tuple[int, str, bytes]] = []
    for index, line in enumerate(lines, first):
        pair = _parse(line, url_first)
        if isinstance(pair, str):
            malformed.append((index, pair, line))
        else:
            captions.append(pair[0])
            urls.append(pair[1])
            places.append(index)
    sink.malformed_images(part, malformed)
    keys = write_images(source, urls, places, part, sink, name_by_digest, as_urls=as_urls)
    write_captions(captions, pa.array(keys), places, part, sink)


def _parse(line: bytes, url_first: bool) -> tuple[str, str] | str:
    """(caption, URL), or what is wrong with the line."""
    try:
        columns = line.decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        return str(error)
    if len(columns) != 2:
        return f"{len(columns)} columns where caption and URL should be"
    url, caption = columns if url_first else reversed(columns)
    url = url.strip()
    return (caption, url) if is_url(url) else f"not a web address: {url[:80]!r}"
