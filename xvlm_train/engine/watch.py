"""What went wrong in which update: skipped updates and loss spikes, by the records they were of.

Nothing here waits for the device in a step: losses stay on it until the window closes.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from xvlm_train.engine.distributed import gather_over_ranks

#: Updates whose numbers stay on the device at most, before they are looked at.
_PENDING = 256
#: Share of a new loss in the running mean and variance that a spike is measured against.
_SHARE = 0.02
#: Updates of a stream before anything counts as a spike.
_LEARNING = 100


@dataclass
class Level:
    """Running mean and variance of a stream's loss."""

    mean: float = 0.0
    variance: float = 0.0
    updates: int = 0

    def excess(self, loss: float) -> float:
        """Standard deviations by which ``loss`` is above the mean; 0 while there is none."""
        if self.updates < _LEARNING or self.variance <= 0:
            return 0.0
        return (loss - self.mean) / math.sqrt(self.variance)

    def take(self, loss: float, most: float) -> None:
        """Let ``loss`` count, but for no more than ``most`` deviations above the mean.

        So a spike does not hide the next one, while a lasting new level is taken on.
        """
        if most and self.excess(loss) > most:
            loss = self.mean + most * math.sqrt(self.variance)
        share = max(_SHARE, 1 / (self.updates + 1))
        difference = loss - self.mean
        self.mean += share * difference
        self.variance = (1 - share) * (self.variance + share * difference**2)
        self.updates += 1


@dataclass
class _Update:
    step: int
    stream: str
    record_ids: list[str]
    loss: Tensor
    finite: Tensor


@dataclass
class Watch:
    """Looks after the updates of a run, the same way on every rank.

    Args:
        spike_sigmas: deviations above its running mean at which a loss is a spike; 0: never.
    """

    spike_sigmas: float
    skipped_in_row: int = 0
    """Updates without a finite loss and gradient, in a row until now."""
    levels: dict[str, Level] = field(default_factory=dict)
    _pending: list[_Update] = field(default_factory=list)
    _events: list[dict[str, Any]] = field(default_factory=list)

    def update(
        self, step: int, stream: str, record_ids: list[str], loss: Tensor, finite: Tensor
    ) -> None:
        """Remember an update until the window closes.

        Args:
            step: zero-based.
            stream: the batch's.
            record_ids: of the images of this rank's batch.
            loss: this rank's, a scalar.
            finite: whether all ranks' losses and gradients were; a scalar, equal on all ranks.
        """
        self._pending.append(_Update(step, stream, record_ids, loss.detach(), finite))
        if len(self._pending) >= _PENDING:
            self._look()

    def close(self) -> list[dict[str, Any]]:
        """The events since the last call, oldest first; a collective.

        Each has ``event`` (``skipped_update``, ``loss_spike``), ``step``, ``stream``, the loss by
        rank, and ``records``: by rank, the ids of the batch that is to blame.
        """
        self._look()
        events, self._events = self._events, []
        return events

    def state(self) -> dict[str, Any]:
        """What a resumed run has to know, as plain values."""
        levels = {name: asdict(level) for name, level in self.levels.items()}
        return {"skipped_in_row": self.skipped_in_row, "levels": levels}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.skipped_in_row = state["skipped_in_row"]
        self.levels = {name: Level(**values) for name, values in state["levels"].items()}

    def _look(self) -> None:
        if not self._pending:
            return
        finite = torch.stack([update.finite for update in self._pending]).tolist()
        own = torch.stack([update.loss.float() for update in self._pending]).tolist()
        losses = list(zip(*gather_over_ranks(own), strict=True))  # by update, then rank
        blamed: dict[int, set[int]] = {}
        kinds: dict[int, dict[str, Any]] = {}
        for i, (update, good, by_rank) in enumerate(
            zip(self._pending, finite, losses, strict=True)
        ):
            if not good:
                self.skipped_in_row += 1
                bad = {r for r, loss in enumerate(by_rank) if not math.isfinite(loss)}
                blamed[i] = bad or set(range(len(by_rank)))  # none: the gradient overflowed
                kinds[i] = {"event": "skipped_update"}
                continue
            self.skipped_in_row = 0
            level = self.levels.setdefault(update.stream, Level())
            mean = sum(by_rank) / len(by_rank)
            excess = level.excess(mean)
            if self.spike_sigmas and excess > self.spike_sigmas:
                blamed[i] = {max(range(len(by_rank)), key=by_rank.__getitem__)}
                kinds[i] = {
                    "event": "loss_spike",
                    "expected": round(level.mean, 4),
                    "sigmas": round(excess, 1),
                }
            level.take(mean, self.spike_sigmas)
        if kinds:  # equally on all ranks
            ids = gather_over_ranks({i: self._pending[i].record_ids for i in kinds})
            for i, kind in kinds.items():
                self._events.append(
                    {
                        **kind,
                        "step": self._pending[i].step,
                        "stream": self._pending[i].stream,
                        "loss": [x if math.isfinite(x) else None for x in losses[i]],
                        "records": {str(rank): ids[rank][i] for rank in sorted(blamed[i])},
                    }
                )
        self._pending = []
