"""Two-rank runs that are killed, over and over: run as a command by ``test_killed``.

It imports everything once and forks for each rank, so that a dozen starts take seconds. The ranks
run the real command and die of SIGKILL: at a random moment of a random step, or where a checkpoint
is in the middle of being written.

    python -m tests.train.kill_driver PLAN.json → JSON on standard output
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xvlm_train.pretrain
import xvlm_train.run  # noqa: F401 - all that the forks need
from tests.ports import free_port
from xvlm_train import commands
from xvlm_train.engine import loop

RANKS = 2


def ranks(arguments: list[str], log: Path, before: Callable[[int], None]) -> list[int]:
    """Start the command on every rank; their process ids."""
    port = free_port()
    pids = []
    for rank in range(RANKS):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        status = 1
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ |= {
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            }
            before(rank)
            commands.main(arguments, prog_name="xvlm-train")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pids


def ended(pid: int) -> int:
    """Wait for a child; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pids: list[int]) -> list[int]:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return [ended(pid) for pid in pids]


def tell_of(step: int, told: int) -> None:
    """In a rank: tell the driver when ``step``, or a later one, begins."""
    original = loop.Trainer._step
    quiet = False

    def wrapped(self: loop.Trainer, number: int) -> None:
        nonlocal quiet
        if number >= step and not quiet:
            quiet = True
            os.write(told, b"s")
        original(self, number)

    loop.Trainer._step = wrapped  # type: ignore[method-assign]


def stand_still_while_saving(events: int, told: int) -> None:
    """In rank 0: stop for good at the given file operation of writing checkpoints."""
    left = events

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            return
        path = str(arguments[0])
        if "/.step_" in path or "/.latest" in path:
            left -= 1
            if left == 0:
                os.write(told, b"w")
                time.sleep(600)

    sys.addaudithook(hook)


def main(plan: dict[str, Any]) -> None:
    rng = random.Random(plan.get("seed", 0))
    *before_it, arguments = plan["commands"]
    log, status = Path(plan["log"]), []
    for command in before_it:
        pids = ranks(command, log, lambda rank: None)
        status.append([ended(pid) for pid in pids])
    out = Path(plan.get("out", ""))
    kills: list[dict[str, Any]] = []
    for number in range(plan["kills"]):
        saving = number % 2 == 1
        latest = out / "checkpoints" / "latest"
        done = int(latest.read_text().removeprefix("step_")) if latest.exists() else 0
        step = min(done + rng.randrange(4), plan["steps"] - 3)  # never so late that it ends first
        events = rng.randrange(1, 30)
        heard, told = os.pipe()

        def before(rank: int) -> None:
            if rank == 0 and saving:  # noqa: B023 - called before the next turn
                stand_still_while_saving(events, told)  # noqa: B023
            elif rank == 0:
                tell_of(step, told)  # noqa: B023

        pids = ranks(arguments, log, before)
        os.close(told)
        what = os.read(heard, 1)
        os.close(heard)
        if what == b"s":
            time.sleep(rng.random() * plan["step_seconds"])
        partial = [path.name for path in (out / "checkpoints").glob(".*")]
        kills.append(
            {"step": step, "saving": what == b"w", "partial": partial, "status": kill(pids)}
        )
    pids = ranks(arguments, log, lambda rank: None)
    status.append([ended(pid) for pid in pids])
    print(json.dumps({"kills": kills, "status": status}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
