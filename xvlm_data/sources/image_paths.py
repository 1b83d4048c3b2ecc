"""Where images may lie on disk, written as columns for many images at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.storage import AnyPath, is_local

TRAIN2014, VAL2014, TEST2015 = "train2014", "val2014", "test2015"

#: Folders that hold COCO's image folders, within a release: plain, and as ``refer`` asks for them.
_PREFIXES = ("", "images/", "images/mscoco/images/")
#: Releases that hold the pictures of one part of the 2014 release, under either year's names.
_COCO_FOLDERS = {
    TRAIN2014: ("train2014", "train2017", "val2017"),
    VAL2014: ("val2014", "train2017", "val2017"),
    TEST2015: ("test2015",),
}


def as_lists(columns: Sequence[pa.Array]) -> pa.ListArray:
    """Row i of the result is the list of every column's element i."""
    length, width = len(columns[0]), len(columns)
    order = np.arange(length * width).reshape(width, length).T.ravel()
    return pa.ListArray.from_arrays(
        pa.array(np.arange(length + 1) * width, pa.int32()),
        pa.concat_arrays([column.cast(pa.string()) for column in columns]).take(pa.array(order)),
    )


def joined(*pieces: pa.Array | str) -> pa.Array:
    """Texts put together piece by piece; a constant piece repeats."""
    return pc.binary_join_element_wise(*pieces, "")


def coco_root(root: AnyPath, part: str) -> AnyPath:
    """The folder that COCO's images lie under: this release's, or a coco folder beside it.

    Args:
        root: folder of a release that uses COCO's images.
        part: which of them: train2014, val2014 or test2015.
    """
    if is_local(root):
        root = root.resolve()
    usual = (root, root / "coco", root.parent / "coco", root.parent, root.parent.parent / "coco")
    return next((place for place in usual if _present(place, part)), root)


def coco_paths(ids: npt.NDArray[np.int64], root: AnyPath, part: str) -> pa.ListArray:
    """Where images of COCO may lie under ``root``, by their ids.

    The same pictures have other names in the 2017 release, and either will do. Where no folder is
    there, the official one is named.

    Args:
        ids: ``[N]`` COCO ids.
        root: from :func:`coco_root`.
        part: train2014, val2014 or test2015.

    Returns:
        ``[N]`` lists of paths relative to ``root``.
    """
    digits = pc.utf8_lpad(pa.array(ids, pa.int64()).cast(pa.string()), 12, "0")
    paths = []
    for folder in _present(root, part) or [part]:
        name = folder.rsplit("/", 1)[-1]
        prefix = "" if name.endswith("2017") else f"COCO_{name}_"
        paths.append(joined(f"{folder}/{prefix}", digits, ".jpg"))
    return as_lists(paths)


def _present(root: AnyPath, part: str) -> list[str]:
    folders = [prefix + name for name in _COCO_FOLDERS[part] for prefix in _PREFIXES]
    return [folder for folder in folders if (root / folder).is_dir()]
