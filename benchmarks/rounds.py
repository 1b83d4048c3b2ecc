"""Methods side by side: each in a process of its own, one after the other, round after round.

A first round samples memory, which slows processes down, so its times are not used; it also fills
the page cache for all alike. The rounds after it are timed and leave memory alone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from measure import Cost, measure
from releases import Release, differences

HERE = Path(__file__).parent
#: Memory that ``orjson.loads`` and ``json.load`` take, over the size of the file: measured, the
#: first on the largest file (trees are let go one by one), the second on all.
PARSE_FACTOR = {"coco": 9.5, "vg": 7.0, "objects365": 6.7}
JSON_FACTOR, JSON_SHARE = 7.0, 0.7

Say = Callable[[str], None]


@dataclass
class Method:
    """One way to do the step.

    Attributes:
        name: what tables call it.
        release: what it reads.
        command: what is run.
        own_timer: it prints its own ``wall`` and ``cpu``, as JSON; else the command is timed.
        out: folder that is removed before each run.
        check: raises AssertionError where a result is wrong.
        timeout: seconds.
        skipped: why it is not run.
        costs: of each timed run.
        memory: of the run that was sampled.
        failed: what it ended with instead.
        wrong: a result that is not the truth.
        answer: what its last run printed.
    """

    name: str
    release: Release
    command: Sequence[str | Path]
    own_timer: bool = False
    out: Path | None = None
    check: Callable[[], list[str]] | None = None
    timeout: float | None = None
    skipped: str | None = None
    costs: list[tuple[float, float]] = field(default_factory=list)
    memory: Cost | None = None
    failed: str | None = None
    wrong: list[str] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def wall(self) -> float | None:
        """Median seconds."""
        return median(wall for wall, _ in self.costs) if self.costs else None

    @property
    def peak(self) -> int | None:
        """Bytes at the peak: the sampled sum over all processes, or what one alone is known for."""
        if self.memory is None:
            return None
        return max(self.memory.peak_pss or 0, self.memory.max_rss)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "scale": self.release.scale,
            "bytes": self.release.size,
            "skipped": self.skipped,
            "failed": self.failed,
            "wrong": self.wrong,
            "runs": [{"wall": wall, "cpu": cpu} for wall, cpu in self.costs],
            "wall": self.wall,
            "cpu": median(cpu for _, cpu in self.costs) if self.costs else None,
            "bytes_a_second": self.release.size / self.wall if self.wall else None,
            "peak_pss": self.memory.peak_pss if self.memory else None,
            "max_rss": self.memory.max_rss if self.memory else None,
            "answer": self.answer,
        }


def parse(release: Release) -> Method:
    """``orjson.loads``, where the tree fits in memory."""
    command: list[str | Path] = [sys.executable, HERE / "baselines.py", "parse", *release.files]
    method = Method("parse", release, command, own_timer=True)
    needs = release.largest * PARSE_FACTOR[release.source]
    if needs > psutil.virtual_memory().available:
        method.skipped = f"needs about {needs / 1e9:.0f} GB of memory"
    return method


def naive(release: Release) -> Method:
    """The naive script, where its dictionary fits in memory."""
    command: list[str | Path] = [sys.executable, HERE / "baselines.py", "json", release.source]
    command += release.files
    method = Method("json", release, command, own_timer=True)
    needs = release.size * JSON_FACTOR
    if needs > JSON_SHARE * psutil.virtual_memory().total:
        method.skipped = f"may need {needs / 1e9:.0f} GB of memory"
    return method


def build_command(release: Release, out: Path, workers: int | None) -> list[str | Path]:
    """What a user types."""
    command = [sys.executable, "-m", "xvlm_data", "build", "--check", "none"]
    command += [*("--source", release.source), *("--root", str(release.root)), *("--out", str(out))]
    return [*command, *(() if workers is None else ("--workers", str(workers)))]


def xvlm(release: Release, out: Path, workers: int | None) -> Method:
    """``xvlm-data build``, whose counts are compared with the truth after each run."""

    def check() -> list[str]:
        return differences(release, json.loads((out / "manifest.json").read_text()))

    return Method("xvlm", release, build_command(release, out, workers), out=out, check=check)


def run_rounds(methods: Sequence[Method], rounds: int, say: Say) -> None:
    """Fill in what the methods cost: one round for memory, then ``rounds`` for time."""
    for number in range(rounds + 1):
        for method in methods:
            if method.skipped or method.failed:
                continue
            if method.out:
                shutil.rmtree(method.out, ignore_errors=True)
            os.sync()  # what the one before wrote is not to be paid for by this one
            cost = measure(method.command, sample=number == 0, timeout=method.timeout)
            shown = _take(method, cost, timed=number > 0)
            title = f"round {number}/{rounds}" if number else "memory round"
            say(f"{method.release.source} {title} {method.name}: {shown}")
            for line in method.wrong:
                say(f"  WRONG {line}")


def _take(method: Method, cost: Cost, *, timed: bool) -> str:
    """Note what a run cost, or how it failed; returns that in words."""
    if cost.status:
        lines = cost.stderr.strip().splitlines() or [""]
        late = method.timeout is not None and cost.wall >= method.timeout
        signal = f"signal {-cost.status}" if cost.status < 0 else f"status {cost.status}"
        method.failed = f"stopped after {cost.wall:.0f} s" if late else f"{signal} {lines[-1]}"
        return method.failed
    wall, cpu = cost.wall, cost.cpu
    if method.own_timer:
        method.answer = json.loads(cost.stdout.strip().splitlines()[-1])
        if "missing" in method.answer:
            method.skipped = f"not installed ({method.answer['missing']})"
            return method.skipped
        if "error" in method.answer:
            method.failed = str(method.answer["error"])
            return method.failed
        wall, cpu = method.answer["wall"], method.answer["cpu"]
    if method.check:
        method.wrong = method.check()
    if timed:
        method.costs.append((wall, cpu))
        return f"{wall:.2f} s, {cpu:.2f} s of CPU"
    method.memory = cost
    return f"{wall:.2f} s, {cpu:.2f} s of CPU, {(method.peak or 0) / 1e6:,.0f} MB"


def ratios(method: Method, base: Method) -> list[float]:
    """Seconds a byte over the base's, round by round (seconds over seconds, of the same files)."""
    share = base.release.size / method.release.size
    return [
        wall * share / other
        for (wall, _), (other, _) in zip(method.costs, base.costs, strict=False)
    ]
