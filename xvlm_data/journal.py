"""What is done of a long job, on disk: so that it can be killed at any moment and goes on.

A job is a set of tasks with names. A task writes its files and then, in one atomic step, its
*record*; a task with a record is done and is never run again. The folder of the journal belongs to
one job at a time, and to one *plan*: inputs and options that decide the result.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from xvlm_data.errors import UserError
from xvlm_data.storage import AnyPath, is_local, read_json, remove_tree, write_json

#: Without the kernel's lock: how often the holder says that it is alive, and when it is not.
_HEARTBEAT, _DEAD = 20.0, 90.0

#: What file systems without locks say (Lustre without ``-o flock``, NFS without a lock service).
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)

_PLAN, _LOCK = "plan.json", "lock"


class Journal:
    """The records of a job's tasks; a context manager that holds the folder's lock.

    Attributes:
        folder: where tasks may write; hidden, beside or inside the product.
        resumed: whether records of an earlier run were found.
    """

    def __init__(self, folder: AnyPath, plan: dict[str, Any], *, restart: bool = False) -> None:
        """Prepare a journal; nothing is written before the context is entered.

        Args:
            folder: the journal's own folder.
            plan: JSON-ready; a run with another plan is refused.
            restart: forget what an earlier run did, whatever its plan.
        """
        self.folder, self._plan, self._restart = folder, plan, restart
        self.resumed = False
        self._inputs: list[str] = []
        self._lock = Lock(folder / _LOCK, f"{folder.parent}: another process is building here")

    def __enter__(self) -> Journal:
        """Take the lock and compare the plan.

        Raises:
            UserError: another process works here, or an unfinished run had another plan.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder.parent}: {error.strerror or error}", "give another --out"
            ) from error
        self._lock.take()
        try:
            found = read_json(self.folder / _PLAN)
            if found is None or self._restart:
                # What lies here without a plan is what a killed process had not yet removed.
                self._clear()
                write_json(self.folder / _PLAN, self._plan)
            elif found != self._plan:
                raise UserError(
                    f"{self.folder.parent}: an unfinished run with other settings lies here "
                    f"({difference(found, self._plan)})",
                    "run it with the former settings to finish it, or add --restart to begin anew",
                )
            else:
                self.resumed = True
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def done(self, task: str) -> dict[str, Any] | None:
        """The record of a task, or None while it is not done."""
        found: dict[str, Any] | None = read_json(self.folder / f"{task}.json")
        return found

    def record(self, task: str, content: dict[str, Any]) -> None:
        """Say that a task is done; its files are complete by now."""
        write_json(self.folder / f"{task}.json", content)

    def check_input(self, path: AnyPath) -> None:
        """Note an input file by size and time of change; inputs come in the same order each time.

        Raises:
            UserError: it is another one than when this job began.
        """
        stat = path.stat()
        name = str(path)
        found = [stat.st_size, getattr(stat, "st_mtime_ns", None) or str(stat.st_mtime)]
        inputs = self.done("inputs") or {}
        if inputs.get(name, found) != found:
            raise _changed(f"{name}: changed since this build began")
        if name in self._inputs:
            return
        former = list(inputs)[len(self._inputs) :]
        if former and former[0] != name:
            if name in former:
                raise _changed(f"{former[0]}: no longer read, but it was when this build began")
            raise _changed(f"{name}: not read when this build began")
        self._inputs.append(name)
        if not former:
            self.record("inputs", inputs | {name: found})

    def check_all_inputs(self) -> None:
        """Say that :meth:`check_input` has seen every input.

        Raises:
            UserError: there was one more when this job began.
        """
        former = list(self.done("inputs") or {})[len(self._inputs) :]
        if former:
            raise _changed(f"{former[0]}: no longer read, but it was when this build began")

    def discard(self) -> None:
        """Remove the journal and everything in its folder; the job is over."""
        if is_local(self.folder):
            # The lock goes last, so that a process that comes now does not lose what it writes.
            self._clear()
            (self.folder / _LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()
        else:
            (self.folder / _PLAN).unlink(missing_ok=True)
            remove_tree(self.folder)

    def _clear(self) -> None:
        # The plan goes first: without it, nothing else is believed.
        (self.folder / _PLAN).unlink(missing_ok=True)
        for path in list(self.folder.iterdir()):
            if path.name != _LOCK:
                if path.is_dir():
                    remove_tree(path)
                else:
                    path.unlink()


def _changed(what: str) -> UserError:
    return UserError(what, "add --restart to build from the files as they are now")


def difference(found: Any, wanted: Any, name: str = "") -> str:
    """The first settings that differ, for a person."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        parts = [
            difference(found.get(key), wanted.get(key), f"{name}.{key}" if name else str(key))
            for key in sorted({*found, *wanted})
            if found.get(key) != wanted.get(key)
        ]
        return ", ".join(parts[:3]) + (", …" if len(parts) > 3 else "")
    return f"{name}: {found!r} there, {wanted!r} now"


class Lock:
    """One process at a time: the kernel's lock on a file here, a heartbeat where there is none.

    Of a killed process the kernel frees the first at once, for this machine and, through NFS, for
    others. Object stores have no such lock, and not every network file system has.

    Args:
        path: the lock's file, in a folder that is there; it may stay, which means nothing.
        taken: what to tell the one who comes second, such as "runs/a: another process trains here".
        patient: before refusing for a heartbeat, wait for the next one, which a killed process does
            not give; so none is refused for the sake of its own predecessor.
    """

    def __init__(self, path: AnyPath, taken: str, *, patient: bool = False) -> None:
        self.path, self._taken, self._patient = path, taken, patient
        self._file: int | None = None
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{time.time_ns()}"

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return self._file is not None or self._beating is not None

    def take(self) -> None:
        """Take it, or keep it.

        Raises:
            UserError: another process has it.
        """
        if not self.held and not (is_local(self.path) and self._take_from_kernel()):
            self._take_by_heartbeat()

    def _take_from_kernel(self) -> bool:
        """False where the file system has no locks."""
        import fcntl

        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            self._file = None
            if error.errno in _NO_LOCKS:
                return False
            self._refuse("")
        # Whoever held it may have finished and removed the folder under us.
        file = self._file
        if file is not None and not self._is_at_path(file):
            self.release()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self._take_from_kernel()
        return True

    def _is_at_path(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False

    def _take_by_heartbeat(self) -> None:
        found = read_json(self.path)
        if found and self._is_alive(found):
            self._refuse(f" ({found['owner']}; a killed one frees it after {_DEAD:.0f} s)")
        self._beat()
        time.sleep(0.2)
        if (read_json(self.path) or {}).get("owner") != self._owner:
            self._refuse("")
        self._beating = threading.Thread(target=self._beat_on, daemon=True)
        self._beating.start()

    def _is_alive(self, found: dict[str, Any]) -> bool:
        if not self._patient:
            return bool(time.time() - found["alive"] < _DEAD)
        enough = time.monotonic() + _DEAD  # whatever the other's clock says
        while time.time() - found["alive"] < _DEAD and time.monotonic() < enough:
            now = read_json(self.path)
            if now != found:
                return now is not None  # it beats, or has ended
            time.sleep(0.2)
        return False

    def _beat(self) -> None:
        write_json(self.path, {"owner": self._owner, "alive": time.time()})

    def _beat_on(self) -> None:
        while not self._stop.wait(_HEARTBEAT):
            with suppress(Exception):  # a store that is away for a moment; the next beat comes soon
                self._beat()

    def _refuse(self, who: str) -> None:
        raise UserError(f"{self._taken}{who}", "wait for it, or give another --out")

    def release(self) -> None:
        """Give it back, if this process has it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        elif self._beating is not None:
            self._stop.set()
            self._beating.join()
            self._beating = None
            if (read_json(self.path) or {}).get("owner") == self._owner:
                self.path.unlink()
