"""Being told to stop: signals end a run after the step at hand, with a checkpoint.

Clusters send SIGTERM (Slurm, Kubernetes, torchrun) or a signal of one's choice (Slurm's
``--signal=USR1@120``) some time before they kill; a person presses Ctrl-C. Before the first step
there is nothing to save, and a run that is told then ends at once.

Light to import: signals may come while all the rest is being imported.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
_PREEMPTING = [number for number, reason in _REASONS.items() if reason == Stop.PREEMPTED]

#: Where signals are told of that end the process at once, if they do (:func:`ending_at_once`).
_told: int | None = None


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 end this process, until :func:`stop_flag` is first entered.

    The status is that of a run that was stopped with a checkpoint. Python is not wound up: nothing
    is there to save, and loader workers end by themselves. After the training these signals change
    nothing any more: the run is about to end, with the status that it has.
    """
    global _told
    read, _told = os.pipe()
    os.set_blocking(_told, False)
    # Handlers would not do: they wait for the main thread, and that may wait for other ranks.
    watch = threading.Thread(target=_end_when_told, args=(read,), name="signals", daemon=True)
    watch.start()
    fd_before = signal.set_wakeup_fd(_told, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _let_pass) for number in _PREEMPTING}
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        os.close(_told)
        _told = None
        # What is left is Python's own end, before which loader workers are waited for.
        atexit.unregister(_let_all_pass)
        atexit.register(_let_all_pass)
        for number, old in before.items():
            signal.signal(number, old)


def _end_when_told(pipe: int) -> None:
    """End the process when Python's own handler, which is C, has written of such a signal."""
    with os.fdopen(pipe, "rb", buffering=0) as told:
        while number := told.read(1):
            if number[0] in _PREEMPTING:
                if os.environ.get("RANK", "0") == "0":
                    name = signal.Signals(number[0]).name
                    with suppress(OSError):
                        os.write(2, f"stopped by {name} before the first step\n".encode())
                os._exit(EXIT_CODES[Stop.PREEMPTED])


def _let_pass(signum: int, frame: object) -> None:
    pass


def _let_all_pass() -> None:
    for number in _PREEMPTING:
        signal.signal(number, signal.SIG_IGN)


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
    if _told is not None:
        signal.set_wakeup_fd(-1)  # from here on, and not before, the flag is enough
    try:
        yield lambda: wanted
    finally:
        for number, old in before.items():
            signal.signal(number, old)
