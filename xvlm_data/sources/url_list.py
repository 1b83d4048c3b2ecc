"""Sources that are lists of (URL, caption); images lie on disk under names made from the URLs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import numpy as np

from xvlm_data.records import CAPTION, Records

#: From a URL to the image's name in its id, and to where its file may lie under the root.
NameImage = Callable[[str], tuple[str, list[str]]]


def url_digest(url: str) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of a URL."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def last_part(url: str) -> str:
    """The last part of a URL's path: ``4385058960_b0f291553e.jpg``."""
    return urlsplit(url).path.rsplit("/", 1)[-1]


def image_key(name: str) -> int:
    """A 63-bit join key of an image name."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def write_images(
    source: str,
    urls: Sequence[str],
    indices: Sequence[int],
    part: int,
    records: Records,
    name: NameImage,
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """One image record a URL; returns their keys. The same URL twice is the same image."""
    named = [name(url) for url in urls]
    keys = np.array([image_key(image) for image, _ in named], dtype=np.int64)
    if len(urls):
        records.images(
            {
                "key": keys,
                "id": [f"{source}/{image}" for image, _ in named],
                "paths": [paths for _, paths in named],
                "part": [part] * len(urls),
                "index": indices,
            }
        )
    return keys


def write_captions(
    texts: Sequence[str],
    keys: Sequence[int | None],
    indices: Sequence[int],
    part: int,
    records: Records,
) -> None:
    """One caption record a text; a key of None means that its URL is unusable."""
    if len(texts):
        unusable = [key is None for key in keys]
        records.annotations(
            {
                "key": keys,
                "kind": [CAPTION] * len(texts),
                "part": [part] * len(texts),
                "index": indices,
                "text": texts,
                "problem": ["malformed" if bad else None for bad in unusable],
                "detail": ["its URL is not usable" if bad else None for bad in unusable],
            }
        )


def is_url(text: str) -> bool:
    """Whether a text can name an image on the web."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)
