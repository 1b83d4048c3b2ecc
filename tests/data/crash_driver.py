"""Builds that die, over and over: run as a command by ``test_interrupted``.

It imports everything once and forks for each build, so that hundreds of deaths take seconds. A
child dies without any cleaning up, as from ``kill -9``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.pandas_compat  # noqa: F401
from PIL import Image

import xvlm_data.tasks  # noqa: F401
from tests.data.raw_releases import Silent
from xvlm_data import reading
from xvlm_data.build import build
from xvlm_data.build_options import BuildOptions
from xvlm_data.engines import open_engine
from xvlm_data.raw import json_arrays
from xvlm_data.sources import get_source

#: What changes a folder; everything between two of these is the writing of a hidden file.
_STEPS = ("replace", "rename", "unlink", "mkdir", "rmdir")


class Job:
    """A build of a source with options, into a folder."""

    def __init__(self, what: dict[str, Any]) -> None:
        self.source, self.root = what["source"], Path(what["root"])
        self.options, self.workers = what["options"], what["workers"]
        self.ranges = what["range"]
        get_source(self.source)  # imported before the forks, as all else
        Image.init()

    def run(self, out: Path) -> None:
        """In this process."""
        reading.RANGE = self.ranges
        json_arrays.PIECE = 256
        with open_engine("local", self.workers) as engine:
            build(
                self.source,
                self.root,
                out,
                options=BuildOptions(**self.options),
                progress=Silent(),
                engine=engine,
            )


def in_child(work: Callable[[], None]) -> int:
    """Run in a process of its own, with a group of its own; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def ended(pid: int) -> int:
    """Wait for a child; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def digest(out: Path) -> str:
    """Of the names and bytes of all files below a folder, hidden ones included."""
    total = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        total.update(str(path.relative_to(out)).encode() + b"\0")
        if path.is_file():
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def whole_or_absent(out: Path) -> bool:
    """Whether a folder that has a summary has everything that it lists."""
    summary = out / "manifest.json"
    if not summary.exists():
        return True
    listed = json.loads(summary.read_bytes())["shards"]
    return (out / "rejects.parquet").exists() and all(
        (out / shard["file"]).is_file()
        and hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
        for shard in listed
    )


def watched(job: Job, out: Path, states: Path, last: int) -> None:
    """Build, and keep a copy of the folder as it is right before each step.

    A process that is killed there leaves just that: its memory is not in the copy either.

    Args:
        job: what to build.
        out: into this folder.
        states: folder of the copies, by number.
        last: how many to keep at most.
    """
    step = 0
    watching = True

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal step, watching
            if watching:
                watching = False
                if out.exists():
                    shutil.copytree(out, states / str(step))
                    shutil.rmtree(states / str(step - last), ignore_errors=True)
                    step += 1
                watching = True
            return real(*args, **more)

        return call

    for name in _STEPS:
        setattr(os, name, before(getattr(os, name)))
    job.run(out)


def die_at_every_step(job: Job, former: Job | None, folder: Path, last: int) -> dict[str, Any]:
    """Take what a build leaves at each step (of the last so many), resume it, and look at it."""
    clean, states = folder / "clean", folder / "states"
    states.mkdir()
    if former is not None:
        assert ended(in_child(lambda: former.run(clean))) == 0
    assert ended(in_child(lambda: watched(job, clean, states, last))) == 0
    wrong = []
    kept = sorted(states.iterdir(), key=lambda path: int(path.name))
    for out in kept:
        whole = whole_or_absent(out)
        resumed = ended(in_child(lambda out=out: job.run(out)))  # type: ignore[misc]
        if not whole or resumed or digest(out) != digest(clean):
            left = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
            wrong.append([out.name, whole, resumed, left[:20]])
    return {"steps": len(kept), "wrong": wrong}


def die_at_random(job: Job, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill builds at random moments until that many were killed; each is resumed to its end."""
    chance = random.Random(seed)
    clean = folder / "clean"
    start = time.monotonic()
    assert ended(in_child(lambda: job.run(clean))) == 0
    lasts = time.monotonic() - start
    killed = builds = 0
    wrong, runs = [], []
    most = 0
    while killed < kills:
        out = folder / f"build{builds}"
        builds += 1
        kept: set[str] = set()
        for run in range(1, 1_000):
            child = in_child(lambda out=out: job.run(out))  # type: ignore[misc]
            time.sleep(chance.uniform(0, lasts) if killed < kills else 0)
            gone, status = os.waitpid(child, 0 if killed >= kills else os.WNOHANG)
            if gone:
                ok = os.waitstatus_to_exitcode(status) == 0 and digest(out) == digest(clean)
                if not ok:
                    wrong.append([builds, run, status, sorted(map(str, out.rglob("*")))[:20]])
                runs.append(run)
                break
            # All of it, or the driver alone: then its workers have to end by themselves.
            if chance.random() < 0.7:
                os.killpg(child, signal.SIGKILL)
            else:
                os.kill(child, signal.SIGKILL)
            ended(child)
            killed += 1
            if not whole_or_absent(out):
                wrong.append([builds, run, "not whole", sorted(map(str, out.rglob("*")))[:20]])
            if not (out / "manifest.json").exists():
                now = {str(path.relative_to(out)) for path in out.glob(".building/*/*.json")}
                if kept - now:
                    wrong.append([builds, run, "done and lost", sorted(kept - now)[:20]])
                most, kept = max(most, len(now)), now
    return {"killed": killed, "builds": builds, "runs": runs, "wrong": wrong, "most": most}


def main(what: dict[str, Any]) -> None:
    """Do what a test asks for, and print what was found."""
    job, folder = Job(what["job"]), Path(what["folder"])
    former = Job(what["former"]) if what.get("former") else None
    if what["mode"] == "steps":
        found = die_at_every_step(job, former, folder, what["last"])
    else:
        found = die_at_random(job, folder, what["kills"], what["seed"])
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
