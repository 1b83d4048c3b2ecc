"""Conceptual 12M: a TSV of URL and caption (CC3M has them the other way round), without header.

File: ``cc12m.tsv``. Images: ``images/<first two digits>/<key>.jpg`` under the same names as CC3M's.
Names of persons are ``<PERSON>`` in the release and stay so. There is no official split.
"""

from __future__ import annotations

from xvlm_data.raw.files import find_file
from xvlm_data.reading import Records
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.url_list import read_tsv


class Cc12m(Source):
    """See the module."""

    name = "cc12m"
    licence = (
        "list: free for any purpose, acknowledgement of Google LLC appreciated; images: unknown"
    )
    citation = citations.CC12M
    homepage = "https://github.com/google-research-datasets/conceptual-12m"
    merge_images = True
    url_list = True

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        if request.split != "train":
            request.notes.append(
                f"cc12m has no official split: all its images are labelled {request.split!r}"
            )
        path = find_file(request.root, ["cc12m.tsv"], "list of URLs and captions")
        read_tsv("cc12m", path, request, records, url_first=True)


SOURCE = Cc12m()
