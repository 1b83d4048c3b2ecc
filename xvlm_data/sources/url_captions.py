"""Tab-separated lists of a URL and a caption, without quoting: CC3M and CC12M.

They differ in which column comes first, and in nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from xvlm_data.records import Records
from xvlm_data.sources.base import Request
from xvlm_data.sources.url_list import NameImage, is_url, write_captions, write_images

Order = Literal["caption, url", "url, caption"]

#: Headers that people put above the list for a download tool; the official files have none.
_HEADERS = ({"url", "caption"}, {"image_url", "caption"})


def read_url_captions(
    source: str,
    path: Path,
    order: Order,
    request: Request,
    records: Records,
    name_image: NameImage,
) -> None:
    """One image and one caption a line; a line that is not both is malformed.

    Args:
        source: prefix of the ids.
        path: the list.
        order: which column comes first.
        request: notes, progress.
        records: where to.
        name_image: from a URL to the image's name and places.
    """
    part = records.part(path, "line {line}")
    url_first = order.startswith("url")
    for first, lines in request.lines(path):
        urls, captions, places = [], [], []
        malformed: list[tuple[int, str, bytes]] = []
        for index, line in enumerate(lines, first):
            if index == 0 and _is_header(line):
                request.notes.append(f"{path.name}: line 1 is a header, not a record")
                continue
            pair = parse_line(line, url_first=url_first)
            if isinstance(pair, str):
                malformed.append((index, pair, line))
            else:
                urls.append(pair[0])
                captions.append(pair[1])
                places.append(index)
        records.malformed_images(part, malformed)
        keys = write_images(source, urls, places, part, records, name_image)
        write_captions(captions, keys.tolist(), places, part, records)


def parse_line(line: bytes, *, url_first: bool) -> tuple[str, str] | str:
    """(URL, caption), or what is wrong with the line."""
    try:
        columns = line.decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        return str(error)
    if len(columns) != 2:
        names = "URL and caption" if url_first else "caption and URL"
        return f"{len(columns)} columns where {names} should be"
    url, caption = columns if url_first else columns[::-1]
    url = url.strip()
    return (url, caption) if is_url(url) else f"not a web address: {url[:80]!r}"


def _is_header(line: bytes) -> bool:
    words = line.removeprefix(b"\xef\xbb\xbf").lower().split(b"\t")
    return {word.strip().decode("utf-8", "replace") for word in words} in _HEADERS
