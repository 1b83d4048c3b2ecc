"""What was measured, as tables for a person and as one JSON object."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from kills import Kills
from measure import SAMPLE_INTERVAL
from releases import Release
from rich.console import Console
from rounds import Method, ratios

from xvlm_data.console import plain_table, print_whole

#: The goal: seconds over those of the parser.
MOST_RATIO = 1.0

NOTES = (
    "parse: orjson.loads of the same files one by one, cyclic collector off, reading the file "
    "included, import and freeing excluded; orjson refuses NaN and Infinity, so numbers of the "
    "same length replace them outside the timer.",
    "json: json.load, dictionary of lists by image, pa.Table.from_pylist; no checks, no rules, "
    "nothing written; import excluded. Peers: import and export in their own form, import of the "
    "package excluded.",
    "xvlm: the whole command, start of the interpreter included, all default rules, references, "
    "--check none.",
    f"peak: sum of the PSS of all processes every {SAMPLE_INTERVAL * 1000:.0f} ms, in a round of "
    "its own whose times are not used; or the largest resident set of one process where that is "
    "more. CPU and resident set are the kernel's accounts of every process, workers included.",
    "MB are 10^6 bytes. Ratios are taken within a round; the median and, in brackets, the range.",
)


@dataclass
class Contest:
    """Methods that were measured side by side.

    Attributes:
        title: of the table.
        release: what was built.
        methods: in the order of the rounds.
    """

    title: str
    release: Release
    methods: Sequence[Method] = field(default_factory=list)

    def method(self, name: str) -> Method:
        """The method of that name."""
        return next(method for method in self.methods if method.name == name)

    @property
    def problems(self) -> list[str]:
        """Why the run as a whole fails: counts that are wrong, a build or a parse that failed."""
        found = []
        for method in self.methods:
            found += [f"{self.title} {method.name}: {line}" for line in method.wrong]
            if method.failed and method.name in ("parse", "xvlm"):
                found.append(f"{self.title} {method.name}: {method.failed}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        ours, base = self.method("xvlm"), self.method("parse")
        found = ratios(ours, base)
        limit = self.release.memory_limit
        return {
            "source": self.release.source,
            "scale": self.release.scale,
            "bytes": self.release.size,
            "boxes": self.release.boxes,
            "images": self.release.truth["counts"]["images"]["raw"],
            "methods": [method.to_dict() for method in self.methods],
            "ratios": found,
            "ratio": median(found) if found else None,
            "ratio_by_bytes": base.release.scale != self.release.scale,
            "ratio_passes": median(found) <= MOST_RATIO if found else None,
            "memory_limit": limit,
            "memory_passes": None if ours.peak is None else ours.peak <= limit,
            "counts_equal": bool(ours.memory or ours.costs) and not (ours.wrong or ours.failed),
        }


def machine() -> dict[str, Any]:
    """What ran it."""
    packages = ("orjson", "msgspec", "pyarrow", "numpy", "psutil")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": psutil.virtual_memory().total,
        "load": os.getloadavg()[0],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def print_machine(console: Console, facts: dict[str, Any]) -> None:
    """One line."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    console.print(
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory'] / 1e9:.1f} GB, "
        f"load {facts['load']:.1f}; {facts['system']}, Python {facts['python']}, {versions}",
        soft_wrap=True,
    )


def print_contests(console: Console, title: str, contests: Sequence[Contest]) -> None:
    """A row a method."""
    table = plain_table(
        title,
        *(("release", "left"), ("MB", "right"), ("boxes", "right"), ("method", "left")),
        *(("wall s", "right"), ("CPU s", "right"), ("MB/s", "right"), ("of parse", "left")),
        *(("peak MB", "right"), ("limit", "right"), ("counts", "left")),
    )
    for contest in contests:
        facts = contest.to_dict()
        head = [f"{contest.release.source} × {contest.release.scale:g}"]
        head += [f"{contest.release.size / 1e6:,.0f}", f"{contest.release.boxes:,}"]
        for method in contest.methods:
            table.add_row(*head, method.name, *_row(contest, method, facts))
            head = ["", "", ""]
        table.add_section()
    print_whole(console, table)


def _row(contest: Contest, method: Method, facts: dict[str, Any]) -> list[str]:
    if method.skipped or method.failed:
        return [f"[dim]{method.skipped or method.failed}[/dim]"]
    own = method.to_dict()
    base = contest.method("parse")
    ours = method.name == "xvlm"
    found = ratios(method, base)
    of_parse = ""
    if method is base:
        of_parse = "1"
        if method.release.scale != contest.release.scale:
            of_parse = f"1 (scale {method.release.scale:g})"
    elif found:
        of_parse = f"{median(found):.2f} \\[{min(found):.2f}–{max(found):.2f}]"
        if base.release.scale != contest.release.scale:
            of_parse += " by MB"
        if ours:
            of_parse += _mark(facts["ratio_passes"])
    peak = "" if method.peak is None else f"{method.peak / 1e6:,.0f}"
    limit = f"{facts['memory_limit'] / 1e6:,.0f}{_mark(facts['memory_passes'])}" if ours else ""
    return [
        f"{own['wall']:.2f}",
        f"{own['cpu']:.2f}",
        f"{own['bytes_a_second'] / 1e6:.0f}",
        of_parse,
        peak,
        limit,
        ("equal the truth" if facts["counts_equal"] else "WRONG") if ours else "",
    ]


def _mark(passes: bool | None) -> str:
    return {True: " [green]PASS[/green]", False: " [red]over[/red]", None: ""}[passes]


def print_bad_records(console: Console, methods: Sequence[Method]) -> None:
    """What the peers do on a release with spoilt records."""
    table = plain_table(
        "One spoilt record in 500", *(("release", "left"), ("peer", "left"), ("ends with", "left"))
    )
    for method in methods:
        end = method.skipped or method.failed or "no error"
        table.add_row(f"{method.release.source} × {method.release.scale:g}", method.name, end)
    print_whole(console, table)


def print_kills(console: Console, kills: Kills) -> None:
    """The builds that were killed."""
    console.print(
        f"[bold]Killed[/bold] {kills.source} × {kills.scale:g}: {kills.kills} SIGKILLs "
        f"({kills.at_commit} at the commit) in {kills.builds} builds, "
        + (
            f"[green]all {kills.files} files identical each time[/green]"
            if not kills.problems
            else f"[red]{len(kills.problems)} problems[/red]"
        ),
        soft_wrap=True,
    )
    console.print(
        f"  {kills.kept} finished tasks were met again, {kills.redone} of them were run again; "
        f"{kills.seconds:.0f} s in all, {kills.overhead:+.0%} against as many undisturbed builds "
        f"of {kills.uninterrupted:.1f} s",
        soft_wrap=True,
    )
