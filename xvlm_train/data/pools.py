"""Row groups in memory: those of the pools that are being read, and of the ones that come next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from xvlm_train.data.rows import RowGroup

#: A row group: its source, and its number there.
Key: TypeAlias = tuple[int, int]
#: A lane: its source, the epoch, and its number there.
Lane: TypeAlias = tuple[int, int, int]

#: Row groups outside of all open pools that are kept, for rows that stand in for broken ones.
_SPARE = 2


class Pools:
    """Loads row groups when they are asked for, or before; keeps those of the open pools.

    Each lane has one open pool, or two while a batch goes from one to the other, and for a moment
    the next one beside it. Each is the row groups of a pool, and at most one more.

    Args:
        load: reads a row group.
    """

    def __init__(self, load: Callable[[Key], RowGroup]) -> None:
        self._load = load
        self._open: dict[Lane, tuple[Key, ...]] = {}
        self._coming: dict[Lane, tuple[Key, ...]] = {}
        self._held: dict[Key, RowGroup | Future[RowGroup]] = {}
        self._spare: dict[Key, RowGroup] = {}
        self._thread: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        """Row groups in memory, or on their way."""
        return len(self._held) + len(self._spare)

    @property
    def nbytes(self) -> int:
        """Memory of the row groups that are there."""
        groups: Iterable[object] = [*self._held.values(), *self._spare.values()]
        return sum(group.nbytes for group in groups if isinstance(group, RowGroup))

    def open(self, lane: Lane, keys: Iterable[Key]) -> None:
        """From now on a lane is read from these row groups; forget those it was read from before.

        With the first lane of an epoch, all that the source's last epoch left is forgotten.
        """
        source, epoch, _ = lane
        for old in [old for old in self._open if old[0] == source and old[1] != epoch]:
            del self._open[old]
        self._open[lane] = tuple(keys)
        if self._coming.get(lane) == self._open[lane]:
            del self._coming[lane]
        needed = {key for pool in (*self._open.values(), *self._coming.values()) for key in pool}
        for key in [key for key in self._held if key not in needed]:
            del self._held[key]

    def prefetch(self, lane: Lane, keys: Iterable[Key]) -> None:
        """Begin to load the row groups from which a lane will be read next, beside other work."""
        coming = tuple(keys)
        if self._open.get(lane) == coming:
            return
        self._coming[lane] = coming
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="row-groups")
        for key in coming:
            if key not in self._held:
                self._held[key] = self._thread.submit(self._load, key)

    def get(self, key: Key) -> RowGroup:
        """A row group; waits for it, or reads it.

        Raises:
            ManifestError: it cannot be read.
        """
        held = self._held.get(key)
        if isinstance(held, RowGroup):
            return held
        if held is not None:
            self._held[key] = group = held.result()
            return group
        if any(key in pool for pool in self._open.values()):
            self._held[key] = group = self._load(key)
            return group
        if key not in self._spare:
            while len(self._spare) >= _SPARE:
                del self._spare[next(iter(self._spare))]
            self._spare[key] = self._load(key)
        return self._spare[key]
