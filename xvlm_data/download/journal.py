"""What is done of a download, on disk: it can be killed at any moment and goes on.

A shard writes its files and then, in one atomic step, its *record*; a shard with a record is done.
The folder belongs to one process at a time, and to one *plan*: inputs and options that decide the
result.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

from xvlm_data.errors import UserError

_LOCK = "lock"
PLAN_NAME = "plan.json"


class Journal:
    """The records of a job's tasks; a context manager that holds the folder's lock.

    Attributes:
        folder: where tasks may write.
        resumed: whether an earlier run of the same plan was found.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], *, restart: bool = False) -> None:
        """Prepare a journal; nothing is written before the context is entered.

        Args:
            folder: the journal's own folder, hidden inside the product's.
            plan: JSON-ready; a run with another plan is refused.
            restart: forget what an earlier run did, whatever its plan.
        """
        self.folder, self._restart = folder, restart
        self._plan = json.loads(json.dumps(plan))
        self.resumed = False
        self._lock: int | None = None

    def __enter__(self) -> Journal:
        """Take the lock and compare the plan.

        Raises:
            UserError: another process works here, or an unfinished run had another plan.
        """
        try:
            self._take_lock()
        except OSError as error:
            what = f"{self.folder.parent}: {error.strerror or error}"
            raise UserError(what, "give another --out") from error
        try:
            found = read_json(self.folder / PLAN_NAME)
            if found is None or self._restart:
                self._clear()
                write_json(self.folder / PLAN_NAME, self._plan)
            elif found != self._plan:
                raise UserError(
                    f"{self.folder.parent}: an unfinished run with other settings lies here"
                    f" ({difference(found, self._plan)})",
                    "run it with the former settings to finish it, or add --restart to begin anew",
                )
            else:
                self.resumed = True
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def done(self, task: str) -> dict[str, Any] | None:
        """The record of a task, or None while it is not done."""
        found: dict[str, Any] | None = read_json(self.folder / f"{task}.json")
        return found

    def record(self, task: str, content: dict[str, Any]) -> None:
        """Say that a task is done; its files are complete by now."""
        write_json(self.folder / f"{task}.json", content)

    def discard(self) -> None:
        """Remove the folder; the job is over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take_lock(self) -> None:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / _LOCK
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._release()
                raise UserError(
                    f"{self.folder.parent}: another process is writing here",
                    "wait for it, or give another --out",
                ) from None
            # Whoever held it may have finished, and removed the folder under us.
            if path.exists() and os.fstat(self._lock).st_ino == path.stat().st_ino:
                return
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()


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


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a whole file or nothing, even when the power fails."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is none, or it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
