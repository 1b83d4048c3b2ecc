"""What the page of a large manifest costs: ``python benchmarks/inspect_page.py --help``.

Two manifests of Visual Genome's shape: one with annotation files of the real density (some sixty
concepts an image, pictures not there), and one with every picture embedded.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from measure import adopt_orphans, measure
from report import machine, print_machine

from xvlm_data.console import plain_table, print_whole, stderr, stdout

#: What a page of 100,000 rows may cost: seconds, bytes of memory, bytes of the page.
LIMITS = (30.0, 1_000_000_000, 10_000_000)
_VG_IMAGES = 108_077
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Result:
    """One manifest's page."""

    name: str
    rows: int
    concepts: int
    wall: float
    cpu: float
    memory: int
    page: int
    shown: bool | None

    @property
    def passes(self) -> bool:
        """Whether it is within all limits, and a browser shows it where there is one."""
        found = (self.wall, self.memory, self.page)
        within = all(value < limit for value, limit in zip(found, LIMITS, strict=True))
        return within and self.shown is not False


@click.command(context_settings={"show_default": True})
@click.option("--rows", type=click.IntRange(100), default=100_000, help="Of each manifest.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Timed runs of each.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/benchmarks/inspect"),
    help="Where the manifests are made and kept.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(rows: int, rounds: int, data: Path, as_json: bool) -> None:
    """Time and memory of `xvlm-data inspect --html`, and the size of the page."""
    adopt_orphans()
    results = [_measured(name, data, rows, rounds) for name in ("annotations", "pictures")]
    facts = machine()
    if as_json:
        found: list[dict[str, Any]] = [{**asdict(r), "passes": r.passes} for r in results]
        click.echo(json.dumps({"machine": facts, "results": found}, indent=2))
    else:
        _print(results, facts)
    sys.exit(0 if all(result.passes for result in results) else 1)


def _print(results: list[Result], facts: dict[str, Any]) -> None:
    print_machine(stdout, facts)
    columns = ("rows", "concepts", "wall s", "CPU s", "peak MB", "page MB", "in Chromium")
    table = plain_table(
        "xvlm-data inspect --html", ("manifest", "left"), *((name, "right") for name in columns)
    )
    for result in results:
        shown = {True: "no error", False: "ERROR", None: "not at hand"}[result.shown]
        table.add_row(
            result.name,
            f"{result.rows:,}",
            f"{result.concepts:,}",
            f"{result.wall:.1f}",
            f"{result.cpu:.1f}",
            f"{result.memory / 1e6:.0f}",
            f"{result.page / 1e6:.1f}",
            f"{shown}{' PASS' if result.passes else ' over'}",
        )
    print_whole(stdout, table)


def _measured(name: str, data: Path, rows: int, rounds: int) -> Result:
    manifest = _prepared(name, data / f"{name}-{rows}", rows)
    summary = json.loads((manifest / "manifest.json").read_text())
    page = manifest.parent / "page.html"
    command: list[str | Path] = [sys.executable, "-m", "xvlm_data", "inspect", manifest]
    command += ["--html", page]
    memory, walls, cpus = 0, [], []
    for number in range(rounds + 1):
        cost = measure(command, sample=number == 0)
        if cost.status:
            raise click.ClickException(cost.stderr)
        stderr.print(f"{name} round {number}/{rounds}: {cost.wall:.1f} s", markup=False)
        memory = max(memory, cost.max_rss, cost.peak_pss or 0)
        if number:
            walls.append(cost.wall)
            cpus.append(cost.cpu)
    concepts = sum(summary["concepts"].values())
    size = page.stat().st_size
    costs = (median(walls), median(cpus), memory, size)
    return Result(name, summary["rows"], concepts, *costs, _shows(page))


def _prepared(name: str, folder: Path, rows: int) -> Path:
    """The manifest, made at the first call; some records are spoilt, so some more are asked for."""
    manifest = folder / "manifest"
    if not (manifest / "manifest.json").exists():
        xvlm = [sys.executable, "-m", "xvlm_data"]
        sample = [*xvlm, "sample", "--overwrite", "--source", "vg", "--out", str(folder)]
        build = [*xvlm, "build", "--source", "vg", "--root", str(folder / "vg"), "--keep-leaks"]
        build += ["--out", str(manifest)]
        if name == "annotations":
            sample += ["--annotations-only", "--scale", str(1.01 * rows / _VG_IMAGES)]
            build += ["--check", "none"]
        else:
            sample += ["--images", str(rows)]
            build += ["--images", "embed"]
        for command in (sample, build):
            stderr.print(" ".join(command[2:]), markup=False)
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return manifest


def _shows(page: Path) -> bool | None:
    """Whether headless Chromium draws the page and its console stays empty; None without one."""
    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options += ["--disable-background-networking", "--enable-logging=stderr"]
        options += [f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom"]
        command = [program, *options, page.resolve().as_uri()]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return 'data-ready="true"' in found.stdout[:2000] and "CONSOLE" not in found.stderr


if __name__ == "__main__":
    main()
