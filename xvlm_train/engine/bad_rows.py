"""The rows that a run could not use: counted, named, and the end of a run that has too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from xvlm_data.errors import UserError
from xvlm_train.engine.distributed import gather_over_ranks

#: Rows tried before the share of bad ones is judged.
_ENOUGH = 200


@dataclass
class BadRows:
    """What became of the rows of a run, over all ranks and, with :meth:`state`, all its processes.

    Args:
        most: share of the rows tried that may be bad.
    """

    most: float
    read: float = 0.0
    bad: float = 0.0
    _own: list[dict[str, Any]] = field(default_factory=list)
    _lately: Counter[str] = field(default_factory=Counter)

    def add(self, step: int, stream: str, rejects: Iterable[tuple[str, str, str]]) -> None:
        """Remember rejects of this rank's batch, (id, reason, detail), until the window closes."""
        for record, reason, detail in rejects:
            line = {"step": step, "stream": stream, "record": record}
            self._own.append({**line, "reason": reason, "detail": detail})

    def close(self, read: float) -> list[dict[str, Any]]:
        """The rejects of all ranks since the last call, in the order of steps; a collective.

        Args:
            read: rows of all ranks that were used since.
        """
        found = [line for lines in gather_over_ranks(self._own) for line in lines]
        found.sort(key=lambda line: int(line["step"]))
        self._own = []
        self._lately = Counter(line["reason"] for line in found)
        self.read += read
        self.bad += len(found)
        return found

    def judge(self, step: int) -> None:
        """Raise UserError where more than ``most`` of the rows could not be used."""
        tried = self.read + self.bad
        if tried >= _ENOUGH and self.bad > self.most * tried:
            now = ", ".join(f"{reason} {number}" for reason, number in sorted(self._lately.items()))
            raise UserError(
                f"step {step}: {self.bad:.0f} of {tried:.0f} rows could not be used"
                f" (lately: {now or 'none'}; each is in rejects.jsonl)",
                "mend them, or raise --set train.max_bad_rows if that is so",
            )

    def state(self) -> dict[str, float]:
        """What a resumed run has to know."""
        return {"read": self.read, "bad": self.bad}

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from what :meth:`state` gave."""
        self.read, self.bad = state["read"], state["bad"]
