"""Batches prepared by worker processes, in step order, equal for any number of workers."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from multiprocessing import forkserver, resource_tracker
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset

from xvlm_data.errors import UserError
from xvlm_train.data.batch import Batch
from xvlm_train.data.stream import Stream

#: Batches each worker prepares ahead.
PREFETCH = 2

#: What a terminal or a cluster tells all processes of a job, of which only the run is meant.
_TOLD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def batches(
    stream: Stream,
    steps: Iterable[int],
    *,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """``stream.batch(step, rank, world)`` for each step, prepared by ``config.workers`` processes.

    Args:
        stream: sent to each worker once; workers are started afresh, not forked, so threads and
            devices of this process are safe.
        steps: consumed a little ahead; ``range(k, total)`` resumes at step k.
        rank: of this process.
        world: number of processes.
        pin_memory: put tensors in page-locked memory, for copying to a GPU while it computes.

    Raises:
        UserError: as ``stream.batch``, or a worker died.
    """
    if stream.config.workers == 0:
        return _here(stream, steps, rank, world, pin_memory)
    made = _by_workers(stream, steps, rank, world, pin_memory)
    _open.add(made)
    return made


#: Those that have workers, and were not closed yet.
_open: WeakSet[Generator[Batch]] = WeakSet()


@atexit.register
def _close_all() -> None:
    """End the workers in order, before ``multiprocessing`` does it with a signal at its own exit.

    It would wait for ever: workers let a first SIGTERM pass (:func:`_start_worker`).
    """
    for made in list(_open):
        made.close()


def _here(
    stream: Stream, steps: Iterable[int], rank: int, world: int, pin_memory: bool
) -> Iterator[Batch]:
    for step, later in _with_later(steps, 1):
        batch = stream.batch(step, rank, world)
        if later is not None:
            stream.prefetch(later, rank, world)
        yield pinned(batch) if pin_memory else batch


def _by_workers(
    stream: Stream, steps: Iterable[int], rank: int, world: int, pin_memory: bool
) -> Generator[Batch]:
    context = multiprocessing.get_context("forkserver")
    _start_server()
    loader = DataLoader(
        _Steps(stream, rank, world),
        batch_size=None,
        sampler=_with_later(steps, stream.config.workers),
        num_workers=stream.config.workers,
        prefetch_factor=PREFETCH,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
    )
    try:
        for delivery in loader:
            if delivery.error is not None:
                raise UserError(delivery.error)
            yield delivery.batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a loader worker died ({str(error).splitlines()[0]})",
            "out of memory or of /dev/shm? Lower data.workers or data.pool_groups",
        ) from error


def _start_server() -> None:
    """Start what workers are forked from, in a way that no signal ends it before it is deaf to it.

    Signals are blocked from its first moment on; :mod:`xvlm_train.data.forkserver` leaves them so
    for the workers, and these let them in when they know what to do with them.
    """
    forkserver.set_forkserver_preload(["xvlm_train.data.forkserver", "xvlm_train.data.stream"])
    # In two steps, since the tracker, which the server needs, lets SIGTERM in when it has started.
    for helper in (resource_tracker, forkserver):
        with _blocked():
            helper.ensure_running()


@contextmanager
def _blocked() -> Iterator[None]:
    """Signals of :data:`_TOLD` wait meanwhile; processes that are started let them wait on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TOLD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(slots=True)
class _Delivery:
    """A batch, or the one line that says why there is none (an exception would lose its shape)."""

    batch: Batch | None = None
    error: str | None = None

    def pin_memory(self) -> _Delivery:
        return self if self.batch is None else replace(self, batch=pinned(self.batch))


def _with_later(steps: Iterable[int], ahead: int) -> Iterator[tuple[int, int | None]]:
    """Each step, and the one that the same worker will be given after it."""
    coming: deque[int] = deque()
    for step in steps:
        coming.append(step)
        if len(coming) > ahead:
            yield coming.popleft(), step
    for step in coming:
        yield step, None


class _Steps(Dataset[_Delivery]):
    def __init__(self, stream: Stream, rank: int, world: int) -> None:
        self.stream, self.rank, self.world = stream, rank, world

    def __getitem__(self, steps: tuple[int, int | None]) -> _Delivery:
        step, later = steps
        try:
            delivery = _Delivery(batch=self.stream.batch(step, self.rank, self.world))
            if later is not None:
                self.stream.prefetch(later, self.rank, self.world)
            return delivery
        except UserError as error:
            return _Delivery(error=str(error))


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from where it is copied to a GPU while that computes."""
    tensors: dict[str, Any] = {
        field.name: value.pin_memory()
        for field in fields(batch)
        if torch.is_tensor(value := getattr(batch, field.name))
    }
    return replace(batch, **tensors)


def _start_worker(worker: int) -> None:
    """A worker ends when it is told through its queue, or the run is gone; and it takes one core.

    The number of workers, not each library, decides how many cores are used.
    """
    # A terminal's Ctrl-C reaches the workers too, but the run still needs them to end in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Likewise a cluster's signals; a second SIGTERM is that of somebody who means this process.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _TOLD)
    threading.Thread(target=_end_with_the_run, name="end-with-the-run", daemon=True).start()

    import cv2
    import pyarrow as pa

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with suppress(OSError):
        os.nice(5)  # the process that trains goes first


def _end_with_the_run() -> None:
    """End this worker when the process that trains is gone, be it by SIGKILL.

    torch looks only after the process that workers are forked from. That one in turn ends when
    nobody has the other end of a pipe of its any more, and the workers have it.
    """
    run = multiprocessing.parent_process()
    if run is not None:
        run.join()
        os._exit(1)
