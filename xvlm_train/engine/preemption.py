"""Being told to stop: signals end a run after the step at hand, with a checkpoint.

Clusters send SIGTERM (Slurm, Kubernetes, torchrun) or a signal of one's choice (Slurm's
``--signal=USR1@120``) some time before they kill; a person presses Ctrl-C.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum


class Stop(IntEnum):
    """Why to stop; of several reasons the greatest counts."""

    NO = 0
    INTERRUPTED = 1
    """Ctrl-C."""
    PREEMPTED = 2
    """SIGTERM or SIGUSR1."""
    SAVE_FAILED = 3
    """A checkpoint could not be written; going on would be work for nothing."""


#: How a run that was stopped exits: as shells say of an interrupt, and sysexits' EX_TEMPFAIL,
#: "run the same again". (A failed save ends as any other error, with 2.)
EXIT_CODES = {Stop.INTERRUPTED: 130, Stop.PREEMPTED: 75}

_REASONS = {
    signal.SIGINT: Stop.INTERRUPTED,
    signal.SIGTERM: Stop.PREEMPTED,
    signal.SIGUSR1: Stop.PREEMPTED,
}


@contextmanager
def stop_flag() -> Iterator[Callable[[], Stop]]:
    """While active, signals only set the reason that the yielded function tells.

    A second Ctrl-C interrupts at once; a second SIGTERM changes nothing, as launchers repeat it.
    """
    wanted = Stop.NO

    def handler(signum: int, frame: object) -> None:
        nonlocal wanted
        reason = _REASONS[signal.Signals(signum)]
        if wanted == reason == Stop.INTERRUPTED:
            raise KeyboardInterrupt
        wanted = max(wanted, reason)

    before = {number: signal.signal(number, handler) for number in _REASONS}
    try:
        yield lambda: wanted
    finally:
        for number, old in before.items():
            signal.signal(number, old)
