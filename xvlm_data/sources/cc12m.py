"""Conceptual 12M: a TSV of URL and caption (CC3M has them the other way round), without header.

File: ``cc12m.tsv``. Images: ``images/<first two digits>/<key>.jpg`` under the same names as CC3M's.
Names of persons are ``<PERSON>`` in the release and stay so. There is no official split.
"""

from __future__ import annotations

from xvlm_data.raw.files import find_file
from xvlm_data.records import Records
from xvlm_data.sources.base import Request
from xvlm_data.sources.cc3m import name_image
from xvlm_data.sources.url_captions import read_url_captions


class Cc12m:
    """See the module."""

    name = "cc12m"
    licence = (
        "list: free for any purpose, acknowledgement of Google LLC appreciated; images: unknown"
    )
    merge_images = True

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        if request.split != "train":
            request.notes.append(
                f"cc12m has no official split: all its images are labelled {request.split!r}"
            )
        path = find_file(request.root, ["cc12m.tsv"], "list of URLs and captions")
        read_url_captions("cc12m", path, "url, caption", request, records, name_image)


SOURCE = Cc12m()
