"""Arrays that many processes read: plain ``.npy`` files, named by their content."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from xvlm_data.storage import AnyPath, is_local, write_bytes

Array = np.ndarray[Any, Any]


def save_arrays(folder: AnyPath, name: str, arrays: Mapping[str, Array]) -> AnyPath:
    """Write arrays below a folder.

    Args:
        folder: where to.
        name: what they are; the digest of their content is appended.
        arrays: by the names of their files.

    Returns:
        The folder of the files; the same arrays always give the same.
    """
    digest = hashlib.blake2b(digest_size=8)
    for key, array in arrays.items():
        digest.update(f"{key} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    place = folder / f"{name}-{digest.hexdigest()}"
    place.mkdir(parents=True, exist_ok=True)
    for key, array in arrays.items():
        data = io.BytesIO()
        np.save(data, array, allow_pickle=False)
        write_bytes(place / f"{key}.npy", data.getvalue())
    return place


def load_array(folder: AnyPath, name: str) -> Array:
    """One of the arrays that :func:`save_arrays` wrote; mapped into memory if that is local."""
    path = folder / f"{name}.npy"
    if is_local(path):
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    found: Array = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    return found
