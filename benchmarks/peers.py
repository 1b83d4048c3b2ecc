"""Other converters at the same step; run as a program of its own, by ``build.py --peers``.

::

    python benchmarks/peers.py datumaro|globox ROOT OUT

ROOT holds ``annotations/instances_train2017.json``. It needs that package and no other, so that it
can run in an environment of its own. Prints one line of JSON: seconds of wall and of processor
time, without imports; or that the package is ``missing``; or the ``error`` that it ended with.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

PEERS = ("datumaro", "globox")
INSTANCES = "annotations/instances_train2017.json"


def load(peer: str) -> Any:
    """The function that does the step: read the release, write it in the peer's own form."""
    if peer == "datumaro":
        Dataset = import_module(peer).Dataset
        # It warns of every record without a segmentation; what that costs is not counted.
        logging.disable(logging.ERROR)

        def convert(root: Path, out: Path) -> None:
            dataset = Dataset.import_from(str(root), "coco_instances")
            dataset.export(str(out), "datumaro", save_media=False)

    else:
        AnnotationSet = import_module(peer).AnnotationSet

        def convert(root: Path, out: Path) -> None:
            out.mkdir(parents=True, exist_ok=True)
            boxes = AnnotationSet.from_coco(root / INSTANCES)
            boxes.save_coco(out / "boxes.json", auto_ids=True)

    return convert


def main(peer: str, root: Path, out: Path) -> dict[str, Any]:
    """See the module."""
    try:
        convert = load(peer)
    except ImportError as error:
        return {"missing": str(error)}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        convert(root, out)
    except Exception as error:  # whatever it is: what it does is what is wanted to know
        cause: BaseException = error
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        shown = [f"{type(e).__name__}: {e}" for e in dict.fromkeys((error, cause))]
        return {"error": " <- ".join(shown), "version": version(peer)}
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "version": version(peer),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
