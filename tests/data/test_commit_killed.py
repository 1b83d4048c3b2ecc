"""A build that is killed at any step of its commit ends, run again, as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

#: Each build runs in a fork, so that a kill is one: no ``finally`` runs and nothing is flushed.
#: A step is a call that changes a folder, from the moment on that the commit is recorded.
SCRIPT = """
import hashlib, json, os, shutil, sys
from contextlib import nullcontext
from pathlib import Path

from xvlm_data.build import build
from xvlm_data.build_options import BuildOptions
from xvlm_data.engines import Inline
from xvlm_data.errors import UserError

import pandas, xvlm_data.tasks  # once, not in each fork (pyarrow imports pandas by itself)
from xvlm_data.sources import get_source

get_source("coco")
root, out = Path(sys.argv[1]), Path(sys.argv[2])


class Silent:
    def reading(self, name, size):
        return nullcontext(lambda count: None)

    def stage(self, name, total, unit):
        return nullcontext(lambda count: None)


def guard(name, step):
    real = getattr(os, name)

    def call(*args, **named):
        if guard.steps or (out / ".building" / "commit.json").exists():
            if guard.steps == step:
                os._exit(9)
            guard.steps += 1
        return real(*args, **named)

    setattr(os, name, call)


def run(step=None):
    child = os.fork()
    if child == 0:
        try:
            if step is not None:
                guard.steps = 0
                for name in ("unlink", "rmdir", "rename", "replace"):
                    guard(name, step)
            options = BuildOptions(check="none", shard_rows=40)
            build("coco", root, out, options=options, progress=Silent(), engine=Inline())
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(2)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digests():
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file()
    }


assert run() == 0
wanted, step, failed, other = digests(), 0, [], {}
shutil.rmtree(out)
while run(step) == 9:
    if run() != 0:
        failed.append(step)
    elif digests() != wanted:
        other[step] = sorted(name for name, _ in digests().items() ^ wanted.items())
    shutil.rmtree(out)
    step += 1
print(json.dumps({"files": len(wanted), "steps": step, "failed": failed, "other": other}))
"""


def test_a_kill_at_any_step_of_the_commit_is_no_loss(tmp_path: Path) -> None:
    sample = [sys.executable, "-m", "xvlm_data", "sample", "--annotations-only", "--source", "coco"]
    subprocess.run(
        [*sample, "--scale", "0.0005", "--out", tmp_path / "raw"], check=True, capture_output=True
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "raw" / "coco", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["files"] > 3 and found["steps"] > found["files"]
    assert found["failed"] == [], done.stderr
    assert found["other"] == {}
