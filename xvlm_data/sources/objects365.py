"""Objects365, version 2 (2020) and version 1 (2019).

Files: ``zhiyuan_objv2_{train,val}.json`` (or ``objects365_{train,val}.json`` of version 1) in the
root or in ``annotations/``. The file names in the JSON (``images/v1/patch8/…jpg``) are not where
the archives unpack to (``train/patch8/…jpg``); both places are accepted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xvlm_data.raw.files import find_file
from xvlm_data.records import Records
from xvlm_data.sources.base import Request
from xvlm_data.sources.coco_json import Image, read_instances


class Objects365:
    """See the module."""

    name = "objects365"
    licence = (
        "annotations CC BY 4.0 (Objects365 Consortium); for academic purposes only, the images "
        "must not be redistributed"
    )
    merge_images = False

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        split = request.split
        names = [f"zhiyuan_objv2_{split}.json", f"objects365_{split}.json"]
        path = find_file(
            request.root, [*names, *(f"annotations/{name}" for name in names)], "annotation file"
        )

        def locate(image: Image) -> list[str]:
            tail = "/".join(image.file_name.split("/")[-2:])
            return [
                f"{split}/{tail}",
                f"{split}/{image.file_name}",
                f"{split}/images/{'/'.join(image.file_name.split('/')[-3:])}",
                image.file_name,
            ]

        def exclude(ids: np.ndarray[Any, np.dtype[np.int64]]) -> list[str | None]:
            return [None] * len(ids)

        read_instances("objects365", path, request, records, locate, exclude)


SOURCE = Objects365()
