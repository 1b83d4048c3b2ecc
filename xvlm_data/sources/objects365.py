"""Objects365, version 2 (2020) and version 1 (2019).

Files: ``zhiyuan_objv2_{train,val}.json`` (or ``objects365_{train,val}.json`` of version 1) in the
root or in ``annotations/``. The file names in the JSON (``images/v1/patch8/…jpg``) are not where
the archives unpack to (``train/patch8/…jpg``); both places are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xvlm_data.raw.files import find_file
from xvlm_data.reading import Records
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.coco_json import Image, read_boxes, read_images


@dataclass(frozen=True)
class _Locator:
    split: str

    def __call__(self, image: Image) -> list[str]:
        parts = image.file_name.split("/")
        return [
            f"{self.split}/{'/'.join(parts[-2:])}",
            f"{self.split}/{image.file_name}",
            f"{self.split}/images/{'/'.join(parts[-3:])}",
            image.file_name,
        ]


def _keep(ids: np.ndarray[Any, np.dtype[np.int64]]) -> list[str | None]:
    return [None] * len(ids)


class Objects365(Source):
    """See the module."""

    name = "objects365"
    licence = (
        "annotations CC BY 4.0 (Objects365 Consortium); for academic purposes only, the images "
        "must not be redistributed"
    )
    citation = citations.OBJECTS365
    homepage = "https://www.objects365.org"

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        split = request.split
        names = [f"zhiyuan_objv2_{split}.json", f"objects365_{split}.json"]
        path = find_file(
            request.root, [*names, *(f"annotations/{name}" for name in names)], "annotation file"
        )
        read_images("objects365", path, records, _Locator(split), _keep)
        records.images_complete()
        read_boxes(path, request, records)


SOURCE = Objects365()
