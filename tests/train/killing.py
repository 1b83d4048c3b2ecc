"""Runs of the real command on two ranks, killed or not, in a process that imports things once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xvlm_train.engine.metrics import read_metrics

CLOCK = ("time", "samples_per_second", "data_wait", "save_wait", "memory_gb")


def measured(run: Path) -> list[dict[str, Any]]:
    """A run's metrics without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(run)]


def run_on_two_ranks(
    folder: Path, commands: Sequence[Sequence[str]], **plan: Any
) -> list[dict[str, Any]]:
    """Run each command on two ranks, one after the other; none of them may fail.

    Args:
        folder: for the driver's own files.
        commands: arguments of ``xvlm-train``.
        plan: ``out``, ``kills``, ``steps``, ``seed``, ``step_seconds``: kill the last command so
            often before it may end, see :mod:`tests.train.kill_driver`.

    Returns:
        The kills.
    """
    path, log = folder / "plan.json", folder / "log"
    path.write_text(json.dumps({"commands": commands, "log": str(log), "kills": 0, **plan}))
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.kill_driver", str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == [[0, 0]] * len(commands), log.read_text()[-3000:]
    kills: list[dict[str, Any]] = result["kills"]
    return kills
