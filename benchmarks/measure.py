"""What a command costs with all its processes: wall and processor time, and memory (Linux).

Processor time and the largest resident set are the kernel's own accounts, of every process of the
command: this process adopts orphans (Linux's "child subreaper"), so that workers of a fork server,
whom their parent never waits for, are waited for here. Peak memory is sampled: the sum of the
proportional set sizes (PSS) of the processes, which counts shared pages once.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

#: Seconds between two looks at memory.
SAMPLE_INTERVAL = 0.05
#: How long workers may outlive their command before they are killed.
_GRACE = 10.0
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Cost:
    """What one run of a command cost.

    Attributes:
        wall: seconds from start to end of the command, as a person waits for it.
        cpu: user and system seconds of all its processes.
        max_rss: largest resident set of any single process, in bytes.
        peak_pss: largest sum of the PSS of all processes at any one time, in bytes; None where it
            was not sampled.
        status: exit status; negative for a signal.
        stdout: what it printed.
        stderr: what it complained about.
    """

    wall: float
    cpu: float
    max_rss: int
    peak_pss: int | None
    status: int
    stdout: str
    stderr: str


def adopt_orphans() -> None:
    """Make orphaned descendants children of this process.

    Raises:
        OSError: the system cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become a child subreaper")


class Group:
    """A running command in a process group of its own.

    Attributes:
        pid: of the command, and of its group.
        started: ``time.perf_counter()`` at its start.
        status: exit status of the command, negative for a signal; None while it runs.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        """Start it; standard output and error go to files without a name."""
        # Files, since a pipe that nobody reads would stop the command.
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `finish`)
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._wall = self._cpu = 0.0
        self._max_rss = 0
        self.status: int | None = None

    def ended(self, *, block: bool = False) -> bool:
        """Whether the command itself has ended; its workers may not have."""
        if self.status is None:
            pid, status, usage = os.wait4(self.pid, 0 if block else os.WNOHANG)
            if pid:
                self._wall = time.perf_counter() - self.started
                self.status = os.waitstatus_to_exitcode(status)
                self._process.returncode = self.status
                self._add(usage)
        return self.status is not None

    def kill(self) -> None:
        """SIGKILL to every process of the group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def finish(self, peak_pss: int | None = None) -> Cost:
        """Wait for the command and for every process that it leaves behind; may be called once."""
        self.ended(block=True)
        patience = time.perf_counter() + _GRACE
        while self._reap():
            if time.perf_counter() > patience:
                self.kill()
            time.sleep(0.002)
        assert self.status is not None
        texts = []
        for file in (self._out, self._err):
            with file:
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        return Cost(self._wall, self._cpu, self._max_rss, peak_pss, self.status, texts[0], texts[1])

    def _reap(self) -> bool:
        """Take in orphans of the group that have ended; whether there are any left."""
        while True:
            try:
                pid, _, usage = os.wait4(-self.pid, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            self._add(usage)

    def _add(self, usage: resource.struct_rusage) -> None:
        self._cpu += usage.ru_utime + usage.ru_stime
        self._max_rss = max(self._max_rss, usage.ru_maxrss * 1024)


def measure(
    command: Sequence[str | Path], *, sample: bool = False, timeout: float | None = None
) -> Cost:
    """Run a command to its end.

    Args:
        command: program and arguments.
        sample: look at memory while it runs, which slows it down: the kernel walks the page tables
            of every process at each look.
        timeout: seconds after which it is killed.
    """
    group = Group(command)
    timer = threading.Timer(timeout, group.kill) if timeout else None
    watch = _Watch(group.pid) if sample else None
    for thread in (timer, watch):
        if thread:
            thread.start()
    try:
        group.ended(block=True)
    except BaseException:
        group.kill()
        raise
    finally:
        if timer:
            timer.cancel()
        if watch:
            watch.stop()
    return group.finish(watch.peak if watch else None)


class _Watch(threading.Thread):
    """Looks at the memory of a process and its descendants again and again."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._root, self._over = psutil.Process(pid), threading.Event()

    def run(self) -> None:
        while not self._over.wait(SAMPLE_INTERVAL):
            self.peak = max(self.peak, self._look())

    def _look(self) -> int:
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return 0
        total = 0
        for process in processes:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:  # it has just ended
                continue
        return total

    def stop(self) -> None:
        self._over.set()
        self.join()
