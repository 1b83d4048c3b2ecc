"""Where tasks run: in this process, in processes of this machine, or on a Ray cluster.

An engine maps a function over tasks and gives the results in the order of the tasks. Results are
the same wherever they run: a task depends on its arguments and on files alone. A worker that dies
is replaced and its task tried again.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, redirect_stdout, suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Generic, Protocol, TypeVar

from xvlm_data.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

ENGINES = ("local", "ray")
#: How often a task whose worker died is tried in all.
TRIES = 3


class Engine(AbstractContextManager["Engine"], Protocol):
    """See the module.

    Attributes:
        workers: tasks that run at the same time.
    """

    workers: int

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Results in order. Tasks are taken from the iterable a few ahead of the results.

        Raises:
            UserError: raised by a task, or a task's worker died again and again.
        """
        ...


class Inline:
    """One task after the other, in this process."""

    workers = 1

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """See :class:`Engine`."""
        return map(function, tasks)


def start_fork_server() -> None:
    """Start the process that workers of :class:`Processes` are forked from, and do not wait for it.

    It imports all that tasks need, so starting it first hides the time that takes.
    """
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload(["xvlm_data.tasks"])
    forkserver.ensure_running()


class Processes:
    """Processes of this machine, started when the first task comes."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """See :class:`Engine`."""
        source = iter(tasks)
        head = list(islice(source, 2))
        if len(head) < 2:  # not worth a process
            yield from map(function, head)
            return
        source = chain(head, source)
        waiting: deque[_Waiting[T, R]] = deque()
        deaths = 0
        try:
            while True:
                ahead = self.workers + 1 - len(waiting)
                waiting.extend(_Waiting(task) for task in islice(source, ahead))
                if not waiting:
                    return
                try:
                    for one in waiting:
                        # A pool whose worker has died in the meantime says so here already.
                        one.future = one.future or self._submit(function, one.task)
                    result = waiting[0].result()
                except BrokenProcessPool as error:
                    deaths += 1
                    if deaths >= TRIES:
                        raise UserError(
                            "a worker process was killed, perhaps for its memory",
                            "run the same command again, with fewer --workers; it goes on",
                        ) from error
                    self._pool = None
                    # Nobody knows which task it was, so all that were under way are tried again.
                    for one in waiting:
                        one.forget_unless_done()
                    continue
                deaths = 0
                waiting.popleft()
                yield result
        finally:
            for one in waiting:
                if one.future is not None:
                    one.future.cancel()

    def _submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        if self._pool is None:
            import multiprocessing

            # Not "fork": this process has threads. The server forks, so that workers share the
            # memory of what they import.
            start_fork_server()
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(self.workers, context, initializer=_start_worker)
        return self._pool.submit(function, task)


@dataclass
class _Waiting(Generic[T, R]):
    """A task, and where its result will be once it has been given to a pool."""

    task: T
    future: Future[R] | None = None

    def result(self) -> R:
        assert self.future is not None
        return self.future.result()

    def forget_unless_done(self) -> None:
        """Keep what came back before the pool broke, results and errors alike."""
        future = self.future
        done = future is not None and future.done() and not future.cancelled()
        if future is None or not done or isinstance(future.exception(), BrokenProcessPool):
            self.future = None


def _start_worker() -> None:
    """Workers leave the cyclic collector off, and interrupts to their parent."""
    import gc
    import signal

    from xvlm_data.lean import make_lean

    gc.disable()
    make_lean()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()


def _die_with_parent() -> None:
    """A killed parent must not leave workers behind that go on writing."""
    import multiprocessing
    import threading
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Ray:
    """A Ray cluster, the one at ``address`` or a new one on this machine (``pip install ray``)."""

    def __init__(self, workers: int | None, address: str | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise UserError(
                "--engine ray needs the package ray", "pip install -e '.[ray]' in the clone"
            ) from None
        self._ray = ray
        self._address = address
        self.workers = workers or 0
        # Ray prints what its workers died of to standard output, which is for the answer alone.
        self._aside = redirect_stdout(sys.stderr)

    def __enter__(self) -> Ray:
        ray = self._ray
        if not ray.is_initialized():
            _check_reachable(self._address)
            local = {} if self._address else {"num_cpus": self.workers or None}
            try:
                ray.init(
                    address=self._address or "local",
                    log_to_driver=False,
                    logging_level="ERROR",
                    configure_logging=False,
                    **local,
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"no Ray cluster at {self._address}: {error}",
                    "check --address, and `ray status`",
                ) from error
        self.workers = self.workers or int(ray.cluster_resources().get("CPU", 1))
        self._aside.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self._ray.shutdown()
        self._aside.__exit__(None, None, None)

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """See :class:`Engine`."""
        ray = self._ray
        remote = ray.remote(max_retries=TRIES - 1)(function)
        waiting: deque[Any] = deque()
        source = iter(tasks)
        while True:
            waiting.extend(map(remote.remote, islice(source, self.workers + 1 - len(waiting))))
            if not waiting:
                return
            try:
                result: R = ray.get(waiting.popleft())
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise UserError(
                    f"a Ray worker died again and again ({type(error).__name__})",
                    "run the same command again; it goes on where it was",
                ) from error
            yield result


def _check_reachable(address: str | None) -> None:
    """Ray itself tries an address that nobody listens at for minutes, and then ends the process."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if not (host and port.isdigit()):
        return  # a new cluster, or "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster at {address}: {error}",
            "start one with `ray start --head`, or leave --address out",
        ) from None


def open_engine(name: str, workers: int, address: str | None = None) -> Engine:
    """The engine of that name.

    Raises:
        UserError: there is none, or its package is not installed.
    """
    if name == "ray":
        return Ray(workers, address)
    if name != "local":
        raise UserError(f"unknown engine {name!r}", f"choose from {', '.join(ENGINES)}")
    return Inline() if workers <= 1 else Processes(workers)
