"""Tasks that tests give to engines; in a module of their own so that workers can import them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NoReturn

from xvlm_data.errors import UserError


def squared(number: int) -> int:
    return number * number


def slow_first(number: int) -> int:
    time.sleep(0.3 if number == 0 else 0.0)
    return number


def whose(_: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def refused(number: int) -> int:
    if number == 3:
        raise UserError("raw/x.json: broken\u2028 here", "download it again")
    return number


def divided(number: int) -> float:
    return 1 / (number - 2)


def dies_once(task: tuple[int, Path]) -> int:
    """Dies, by a signal that nobody can catch, the first time that task 2 is run."""
    number, marker = task
    if number == 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def dies(number: int) -> int:
    if number == 1:
        os._exit(1)
    return number


def noted(task: tuple[int, Path]) -> int:
    """Leaves a file that says it was run."""
    number, folder = task
    (folder / str(number)).touch()
    return number


def waits_for_ever(folder: Path) -> NoReturn:
    (folder / str(os.getpid())).touch()
    while True:
        time.sleep(60)
