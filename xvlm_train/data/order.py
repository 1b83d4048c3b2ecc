"""Which row comes when: arithmetic on (seed, step), so that resuming needs no state.

Row groups are shuffled anew each epoch and laid end to end; this line of rows is cut into *lanes*.
A step takes rows from a few lanes, and steps take turns among the others, so that a process that
makes a part of a batch, or every other batch, reads a part of the data and no more. Within a lane,
rows are shuffled over a few row groups, a *pool*: reads stay sequential, and what has to be in
memory is one pool for each lane that is read, never the data.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

#: What a random number is for; each purpose has its own numbers.
GROUP_ORDER, ROW_ORDER, SAMPLE = range(3)

#: Rows of a batch that come from one lane: as many as a process usually takes, so that processes
#: have lanes of their own.
LANE_ROWS = 128

Numbers: TypeAlias = npt.NDArray[np.int64]


def generator(seed: int, stream: int, purpose: int, epoch: int, index: int) -> np.random.Generator:
    """A counter-based generator: its numbers are a function of these five and of nothing else."""
    return np.random.Generator(
        np.random.Philox(key=[seed, stream], counter=[0, purpose, epoch, index])
    )


def turn(
    rng: np.random.Generator, seed: int, stream: int, purpose: int, epoch: int, index: int
) -> np.random.Generator:
    """Make what :func:`generator` gave into what it would give now: a new one takes 15 µs."""
    state = dict(_FRESH)
    state["state"] = {"counter": _words(0, purpose, epoch, index), "key": _words(seed, stream)}
    rng.bit_generator.state = state
    return rng


def _words(*numbers: int) -> npt.NDArray[np.uint64]:
    return np.array(numbers, dtype=np.uint64)


_FRESH = np.random.Philox(key=0).state


class Order:
    """The order of the usable rows of a data set, ``batch`` of them a step, in every epoch.

    An epoch is ``steps`` batches in which no row comes twice; the rows that do not fill a last
    batch wait for the next epoch, in a new order. A row's *place* is its number in the epoch's
    line of row groups.

    Args:
        counts: ``[G]`` usable rows of each row group.
        batch: rows of a step, of all processes together; at most as many as there are.
        pool_groups: row groups that are shuffled together.
        lanes: steps that take turns; fewer where there are few row groups.
        seed: of the run.
        stream: number of the stream, so that two streams over the same rows differ.
    """

    def __init__(
        self, counts: Numbers, batch: int, *, pool_groups: int, lanes: int, seed: int, stream: int
    ) -> None:
        self.counts, self.batch, self.pool_groups = counts, batch, pool_groups
        self.seed, self.stream = seed, stream
        self.rows = int(counts.sum())
        self.steps = self.rows // batch
        available = max(1, int(np.count_nonzero(counts)) // pool_groups)
        #: Lanes in a batch, and batches until the first comes again.
        self.across = min(max(1, batch // LANE_ROWS), available)
        self.along = max(1, min(lanes, available // self.across, self.steps // 2))
        self._edges = np.arange(self.across + 1) * batch // self.across
        turns = (self.steps - 1 - np.arange(self.along)) // self.along + 1
        sizes = turns[:, None] * np.diff(self._edges)
        # The rows that wait for the next epoch are the last lane, from which no step takes any.
        self._lanes = np.append(np.cumsum([0, *sizes.ravel()]), self.rows)
        self._forget()

    def _forget(self) -> None:
        # Per instance and bounded: the tables of two epochs, and a shuffle for each lane.
        self._epoch = lru_cache(2)(self._epoch_table)
        self._pool = lru_cache(2 * self.across * self.along + 2)(self._pool_table)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_epoch", "_pool")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def places(self, within: int, slots: Numbers) -> Numbers:
        """The rows of some slots of a batch, which is step ``within`` of its epoch."""
        turn, along = divmod(within, self.along)
        across = np.searchsorted(self._edges, slots, side="right") - 1
        widths = np.diff(self._edges)[across]
        starts = self._lanes[along * self.across + across]
        places: Numbers = starts + turn * widths + slots - self._edges[across]
        return places

    def stand_ins(self, within: int, slot: int, most: int) -> list[int]:
        """Places of rows for a slot whose own cannot be used; none are of the same batch.

        They are those of the slot in other steps, first of its own lane, and then rows that wait
        for the next epoch; no two slots have one in common.
        """
        lane = range(within % self.along, self.steps, self.along)
        ahead = [lane[(within // self.along + k) % len(lane)] for k in range(1, len(lane))[:most]]
        if len(ahead) < most:  # a short epoch
            later = ((within + k) % self.steps for k in range(1, self.steps))
            ahead += [step for step in later if step not in lane]
        slots = np.array([slot])
        found = [int(self.places(step, slots)[0]) for step in ahead[:most]]
        found += range(self.steps * self.batch + slot, self.rows, self.batch)
        return found[:most]

    def lane_of(self, place: int) -> int:
        """The number of the lane that a place lies in."""
        return int(np.searchsorted(self._lanes, place, side="right")) - 1

    def pools_of(self, epoch: int, places: Numbers) -> Numbers:
        """The numbers of the pools that places lie in; pools are read one after the other."""
        return np.searchsorted(self._epoch(epoch)[2], places, side="right")

    def groups(self, epoch: int, pool: int) -> list[int]:
        """The row groups that have to be in memory for a pool."""
        groups, ends, pools = self._epoch(epoch)
        first = np.searchsorted(ends, pools[pool - 1] if pool else 0, side="right")
        last = np.searchsorted(ends, pools[pool], side="left")
        listed: list[int] = groups[first : last + 1].tolist()
        return listed

    def locate(self, epoch: int, places: Numbers) -> tuple[Numbers, Numbers]:
        """What is at places after shuffling: (row groups, numbers among their usable rows)."""
        groups, ends, pools = self._epoch(epoch)
        own = self.pools_of(epoch, places)
        shuffled = places.copy()
        for pool in set(own.tolist()):
            start = int(pools[pool - 1]) if pool else 0
            inside = own == pool
            shuffled[inside] = start + self._pool(epoch, pool)[places[inside] - start]
        number = np.searchsorted(ends, shuffled, side="right")
        found = groups[number]
        return found, shuffled - ends[number] + self.counts[found]

    def _epoch_table(self, epoch: int) -> tuple[Numbers, Numbers, Numbers]:
        """The row groups in the epoch's order, and where each of them and each pool ends."""
        rng = generator(self.seed, self.stream, GROUP_ORDER, epoch, 0)
        groups = rng.permutation(np.flatnonzero(self.counts))
        ends = np.cumsum(self.counts[groups])
        pools = [self._lanes[1:]]
        for start, stop in zip(self._lanes[:-1], self._lanes[1:], strict=True):
            inside = ends[(ends > start) & (ends < stop)]
            pools.append(inside[self.pool_groups - 1 :: self.pool_groups])
        return groups, ends, np.unique(np.concatenate(pools))

    def _pool_table(self, epoch: int, pool: int) -> Numbers:
        pools = self._epoch(epoch)[2]
        size = int(pools[pool] - (pools[pool - 1] if pool else 0))
        return generator(self.seed, self.stream, ROW_ORDER, epoch, pool).permutation(size)


class Mixture:
    """Which of several sources each slot of a batch is for, by their shares.

    A source has the whole part of its share of a batch in every batch, and one slot more as often
    as the fraction asks for: proportions are exact in the long run and as near as can be in every
    single batch, and every process knows them without being told.

    Args:
        shares: of each source; they need not sum to 1.
        batch: slots of a batch.
    """

    def __init__(self, shares: npt.NDArray[np.float64], batch: int) -> None:
        self._bounds = np.cumsum(shares / shares.sum()) * batch
        self._bounds[-1] = batch
        self.batch = batch
        widths = np.diff(self._bounds, prepend=0)
        #: ``[S]``: most slots of each source in one batch.
        self.most = np.minimum(np.ceil(widths - 1e-9).astype(np.int64), batch)

    def slots(self, step: int) -> tuple[Numbers, Numbers]:
        """``[batch]`` the source of each slot, and ``[batch]`` its number among that source's."""
        if len(self._bounds) == 1:
            return np.zeros(self.batch, dtype=np.int64), np.arange(self.batch)
        # The golden ratio spreads the offsets of any run of steps evenly (Weyl's sequence).
        offset = (step * 0.6180339887498949 + 0.5) % 1
        source = np.searchsorted(self._bounds, np.arange(self.batch) + offset, side="right")
        source = np.minimum(source, len(self._bounds) - 1)
        counts = np.bincount(source, minlength=len(self._bounds))
        number = np.arange(self.batch) - (np.cumsum(counts) - counts)[source]
        # Interleaved, so that each process's part of the batch is a fair one.
        order = np.argsort((number + 0.5) / counts[source], kind="stable")
        return source[order], number[order]
