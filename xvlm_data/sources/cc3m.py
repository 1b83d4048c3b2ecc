"""Conceptual Captions (CC3M): a TSV of caption and URL, without header or quoting.

Files: ``Train_GCC-training.tsv`` and ``Validation_GCC-1.1.0-Validation.tsv``, under any of the
names that browsers save them by. Images: ``images/<first two digits>/<key>.jpg``, where key is the
first 32 hexadecimal digits of the SHA-256 of the URL; the type is read from the content, not the
name.
"""

from __future__ import annotations

from pathlib import Path

from xvlm_data.errors import UserError
from xvlm_data.raw.files import check_root
from xvlm_data.records import Records
from xvlm_data.sources.base import Request
from xvlm_data.sources.url_list import is_url, url_digest, write_captions, write_images

_PATTERNS = {"train": "*GCC-training.tsv*", "val": "*GCC-1.1.0-Validation.tsv*"}


def name_image(url: str) -> tuple[str, list[str]]:
    """``cc3m/<key>`` and ``images/<xx>/<key>.jpg``."""
    key = url_digest(url)
    return key, [f"images/{key[:2]}/{key}.jpg"]


class Cc3m:
    """See the module."""

    name = "cc3m"
    licence = (
        "list: free for any purpose, acknowledgement of Google LLC appreciated; images: unknown"
    )
    merge_images = True

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        path = _find(request)
        part = records.part(path, "line {line}")
        for first, lines in request.lines(path):
            urls, captions, places = [], [], []
            malformed: list[tuple[int, str, bytes]] = []
            for index, line in enumerate(lines, first):
                pair = _parse(line)
                if isinstance(pair, str):
                    malformed.append((index, pair, line))
                else:
                    captions.append(pair[0])
                    urls.append(pair[1])
                    places.append(index)
            records.malformed_images(part, malformed)
            keys = write_images("cc3m", urls, places, part, records, name_image)
            write_captions(captions, keys.tolist(), places, part, records)


def _parse(line: bytes) -> tuple[str, str] | str:
    """(caption, URL), or what is wrong with the line."""
    try:
        columns = line.decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        return str(error)
    if len(columns) != 2:
        return f"{len(columns)} columns where caption and URL should be"
    caption, url = columns[0], columns[1].strip()
    return (caption, url) if is_url(url) else f"not a web address: {url[:80]!r}"


def _find(request: Request) -> Path:
    check_root(request.root)
    if request.split not in _PATTERNS:
        raise UserError(f"cc3m has no published split {request.split!r}", "choose from train, val")
    found = sorted(
        path
        for path in request.root.glob(_PATTERNS[request.split])
        if "Labels" not in path.name and path.is_file()
    )
    if not found:
        raise UserError(
            f"{request.root}: no {_PATTERNS[request.split].strip('*')}",
            "put the TSV there, or give its folder with --root",
        )
    return found[0]


SOURCE = Cc3m()
