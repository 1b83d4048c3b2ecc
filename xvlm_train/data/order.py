"""Which row comes when: arithmetic on (seed, epoch, position), so that resuming needs no state.

Row groups are shuffled, taken in pools, and rows are shuffled within their pool: reads stay
sequential, and a loader needs the memory of one pool, not of the data.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

#: What a random number is for; each purpose has its own numbers.
GROUP_ORDER, ROW_ORDER, SAMPLE = range(3)


def generator(seed: int, stream: int, purpose: int, epoch: int, index: int) -> np.random.Generator:
    """A counter-based generator: its numbers are a function of these five and of nothing else."""
    return np.random.Generator(
        np.random.Philox(key=[seed, stream], counter=[0, purpose, epoch, index])
    )


class Order:
    """The order of the usable rows of a data set in every epoch.

    Args:
        counts: ``[G]`` usable rows of each row group.
        pool_groups: row groups that are shuffled together.
        seed: of the run.
        stream: number of the stream, so that two streams over the same rows differ.
    """

    def __init__(
        self, counts: npt.NDArray[np.int64], pool_groups: int, seed: int, stream: int
    ) -> None:
        self.counts = counts
        self.pool_groups = pool_groups
        self.seed = seed
        self.stream = stream
        self._forget()

    def __len__(self) -> int:
        return int(self.counts.sum())

    def _forget(self) -> None:
        # Per instance and bounded: the tables of two epochs and of two pools.
        self._epoch = lru_cache(2)(self._epoch_table)
        self._pool = lru_cache(2)(self._pool_table)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_epoch", "_pool")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def locate(self, epoch: int, position: int) -> tuple[int, int]:
        """The row at a place of an epoch: (row group, number among its usable rows)."""
        _, ends = self._epoch(epoch)
        pool = int(np.searchsorted(ends, position, side="right"))
        start = int(ends[pool - 1]) if pool else 0
        groups, rows = self._pool(epoch, pool)
        return int(groups[position - start]), int(rows[position - start])

    def _epoch_table(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The row groups in the epoch's order, and the position at which each pool ends."""
        rng = generator(self.seed, self.stream, GROUP_ORDER, epoch, 0)
        groups = rng.permutation(np.flatnonzero(self.counts))
        starts = np.arange(0, len(groups), self.pool_groups)
        ends = np.cumsum(np.add.reduceat(self.counts[groups], starts))
        return groups, ends

    def _pool_table(
        self, epoch: int, pool: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """For each place in a pool: row group, and number among the usable rows of the group."""
        groups = self._epoch(epoch)[0][pool * self.pool_groups : (pool + 1) * self.pool_groups]
        sizes = self.counts[groups]
        rows = np.concatenate([np.arange(size) for size in sizes])
        shuffled = generator(self.seed, self.stream, ROW_ORDER, epoch, pool).permutation(len(rows))
        return np.repeat(groups, sizes)[shuffled], rows[shuffled]
