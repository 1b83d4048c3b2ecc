"""Other people's formats: manifests written as them, and made of them.

What is written says everything a manifest row has, so that it comes back as it was.
"""

from __future__ import annotations

#: Formats that manifests are written as, and made of.
EXPORTS = ("coco", "webdataset", "xvlm-jsonl", "hf")
IMPORTS = ("xvlm-jsonl", "coco", "webdataset")

__all__ = ["EXPORTS", "IMPORTS"]
