"""From the keys that annotations name images by to the place of each image in the manifest.

The *ordinal* of an image is its place among the images of the release, in raw order; a shard is a
range of ordinals. The index is two sorted arrays on disk, 16 bytes an image, which workers map into
memory: never a dictionary of the data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from xvlm_data.array_files import load_array, save_arrays
from xvlm_data.sorting import stable_order
from xvlm_data.storage import AnyPath

Int64s = npt.NDArray[np.int64]

#: What becomes of an image record that is not the first of its image.
SAME, DUPLICATE = -1, -2

#: Keys that lie closer together are looked up in a table, 4 bytes an entry: a search among
#: sorted keys misses the cache at each step, and annotations come in any order.
_TABLE_FACTOR, _TABLE_FREE = 4, 4 << 20

_ARRAYS = ("keys", "ordinals", "records")


@dataclass(frozen=True)
class ImageIndex:
    """The index of a build's images.

    Attributes:
        keys: ``[K]`` sorted distinct keys.
        ordinals: ``[K]`` the ordinal of each.
        records: ``[R]`` for each image record in raw order: its ordinal; SAME where another file
            has said the same image before; DUPLICATE where the same file has.
    """

    keys: Int64s
    ordinals: Int64s
    records: Int64s

    @property
    def images(self) -> int:
        """How many images there are, those without a key included."""
        return int(self.records.max(initial=-1)) + 1

    def find(self, keys: Int64s, known: npt.NDArray[np.bool_], missing: int) -> Int64s:
        """The ordinals of keys.

        Args:
            keys: ``[N]`` keys.
            known: ``[N]`` False where there is no key at all.
            missing: what to give where there is no such image.
        """
        if not len(self.keys):
            return np.full(len(keys), missing, np.int64)
        table = self._table
        if table is not None:
            places = keys - self.keys[0]  # what overflows is outside too
            inside = (places >= 0) & (places < len(table)) & known
            if not inside.all():
                places = np.where(inside, places, 0)
            ordinals = np.where(inside, table[places], -1).astype(np.int64)
            return np.where(ordinals < 0, missing, ordinals)
        places = np.searchsorted(self.keys, keys)
        places[places == len(self.keys)] = 0
        found = (self.keys[places] == keys) & known
        return np.where(found, self.ordinals[places], missing)

    @cached_property
    def _table(self) -> npt.NDArray[np.int32] | None:
        """The ordinal of each number from the first key on, -1 where there is none."""
        low, high = int(self.keys[0]), int(self.keys[-1])
        if high - low >= _TABLE_FREE + _TABLE_FACTOR * len(self.keys) or self.images >= 2**31:
            return None
        table = np.full(high - low + 1, -1, np.int32)
        table[self.keys - low] = self.ordinals
        return table

    def save(self, folder: AnyPath) -> AnyPath:
        """Write the arrays below a folder; returns where, named by their content."""
        return save_arrays(folder, "index", {name: getattr(self, name) for name in _ARRAYS})

    @staticmethod
    def load(folder: AnyPath) -> ImageIndex:
        """Open a saved index, by where it was saved; mapped into memory if that is local."""
        return _load(folder)


@lru_cache(maxsize=1)
def _load(folder: AnyPath) -> ImageIndex:
    return ImageIndex(*(load_array(folder, name) for name in _ARRAYS))


def make_index(
    keys: Sequence[Int64s],
    known: Sequence[npt.NDArray[np.bool_]],
    parts: Sequence[npt.NDArray[np.int16]],
    *,
    merge_images: bool,
) -> ImageIndex:
    """Number the images.

    Args:
        keys: the key of each image record, in raw order, in pieces.
        known: False where a record has no key; such a record is an image of its own.
        parts: the raw file (or array in one) of each record.
        merge_images: several records of one key are one image (URL lists); otherwise a second
            record within the same part is a DUPLICATE.
    """
    all_keys = np.concatenate([np.zeros(0, np.int64), *keys])
    has_key = np.concatenate([np.zeros(0, bool), *known])
    part = np.concatenate([np.zeros(0, np.int16), *parts])
    keyed = np.flatnonzero(has_key)
    order = keyed[stable_order(all_keys[keyed])]
    ordered = all_keys[order]
    first = np.ones(len(order), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    records = np.zeros(len(all_keys), np.int64)
    repeats = order[~first]
    records[repeats] = SAME
    if not merge_images:
        # Within a run of one key, records of the same part stand together: both are in raw order.
        again = part[order[1:]] == part[order[:-1]]
        records[order[1:][again & ~first[1:]]] = DUPLICATE
    images = records == 0
    records[images] = np.arange(int(images.sum()))
    return ImageIndex(ordered[first], records[order[first]], records)
