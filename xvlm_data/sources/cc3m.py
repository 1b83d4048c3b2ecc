"""Conceptual Captions (CC3M): a TSV of caption and URL, without header or quoting.

Files: ``Train_GCC-training.tsv`` and ``Validation_GCC-1.1.0-Validation.tsv``, or without the first
part, or a single file under another name that browsers save them by. Images:
``images/<first two digits>/<key>.jpg``, where key is the first 32 hexadecimal digits of the SHA-256
of the URL; the type is read from the content, not the name.
"""

from __future__ import annotations

from xvlm_data.errors import UserError
from xvlm_data.raw.files import check_root, is_leftover
from xvlm_data.reading import Records
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.url_list import read_tsv
from xvlm_data.storage import AnyPath

#: The official name of each split's list, and the name that its address ends with.
_NAMES = {
    "train": ("Train_GCC-training.tsv", "GCC-training.tsv"),
    "val": ("Validation_GCC-1.1.0-Validation.tsv", "GCC-1.1.0-Validation.tsv"),
}


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
    root, split = request.root, request.split
    check_root(root)
    if split not in _NAMES:
        raise UserError(f"cc3m has no published split {split!r}", "choose from train, val")
    short = _NAMES[split][-1]
    near = sorted(
        path for path in root.glob(f"*{short}*") if "Labels" not in path.name and path.is_file()
    )
    found = [path for path in near if not is_leftover(path.name)]
    official = [path for name in _NAMES[split] for path in found if path.name == name]
    if not found:
        passed = ", ".join(path.name for path in near)
        raise UserError(
            f"{root}: no {short}" + (f" (hidden or unfinished: {passed})" if passed else ""),
            "put the TSV there, or give its folder with --root",
        )
    if not official and len(found) > 1:
        raise UserError(
            f"{root}: {', '.join(path.name for path in found)}: which of them is it?",
            f"call the right one {_NAMES[split][0]}",
        )
    return (official or found)[0]


SOURCE = Cc3m()
