"""Conceptual Captions (CC3M): a TSV of caption and URL, without header or quoting.

Files: ``Train_GCC-training.tsv`` and ``Validation_GCC-1.1.0-Validation.tsv``, under any of the
names that browsers save them by. Images: ``images/<first two digits>/<key>.jpg``, where key is the
first 32 hexadecimal digits of the SHA-256 of the URL; the type is read from the content, not the
name.
"""

from __future__ import annotations

from xvlm_data.errors import UserError
from xvlm_data.raw.files import check_root
from xvlm_data.reading import Records
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.url_list import read_tsv
from xvlm_data.storage import AnyPath

_PATTERNS = {"train": "*GCC-training.tsv*", "val": "*GCC-1.1.0-Validation.tsv*"}


class Cc3m(Source):
    """See the module."""

    name = "cc3m"
    licence = (
        "list: free for any purpose, acknowledgement of Google LLC appreciated; images: unknown"
    )
    citation = citations.CC3M
    homepage = "https://ai.google.com/research/ConceptualCaptions"
    merge_images = True
    url_list = True

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        read_tsv("cc3m", _find(request), request, records, url_first=False)


def _find(request: Request) -> AnyPath:
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
