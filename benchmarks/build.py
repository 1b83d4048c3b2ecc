"""Builds measured side by side, in one run: ``python benchmarks/build.py --help``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from kills import Kills, run_kills
from measure import adopt_orphans
from peers import PEERS
from releases import COCO_LIKE, SOURCES, Release, for_peers, prepare
from report import (
    NOTES,
    Contest,
    machine,
    print_bad_records,
    print_contests,
    print_kills,
    print_machine,
)
from rich.console import Console
from rounds import HERE, Method, naive, parse, run_rounds, xvlm

from xvlm_data.console import stderr

#: With markup, other than our commands': all that is printed is the benchmark's own words.
stdout = Console(highlight=False)
#: Peers that have not ended by then are stopped.
_PATIENCE = 1_800.0


@click.command(context_settings={"show_default": True})
@click.option(
    "--scale",
    type=click.FloatRange(0, 50, min_open=True),
    default=0.1,
    help="1 is the size of the real releases (9 GB of JSON for all three sources).",
)
@click.option(
    "--source",
    "sources",
    type=click.Choice(SOURCES),
    multiple=True,
    default=SOURCES,
    help="Which release; may be repeated.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, help="Timed runs of each method.")
@click.option("--workers", type=click.IntRange(1), help="Of our builds.  [default: all cores]")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/benchmarks"),
    help="Where annotation files are generated and kept, and manifests are written.",
)
@click.option("--seed", type=int, default=0, help="Of the annotation files and of the kills.")
@click.option(
    "--parse-scale",
    type=click.FloatRange(0, 50, min_open=True),
    default=0.2,
    help="The scale at which parsing is measured where its tree does not fit in memory.",
)
@click.option("--peers", "with_peers", is_flag=True, help="Measure datumaro and globox too.")
@click.option(
    "--peer-scale",
    type=click.FloatRange(0, 50, min_open=True),
    default=0.1,
    help="Of the files without spoilt records that peers are measured on.",
)
@click.option(
    "--peer-python",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=Path(sys.executable),
    show_default="this one",
    help="Interpreter of the environment that has the peers (pip install datumaro globox).",
)
@click.option("--peer-rounds", type=click.IntRange(1), default=1, help="Timed runs of peers.")
@click.option(
    "--kills",
    "kill_count",
    type=click.IntRange(0),
    default=0,
    help="Kill builds of the first source so often, and compare every byte.",
)
@click.option(
    "--script/--no-script",
    default=True,
    show_default=True,
    help="Measure the naive json script too, which takes most of the time.",
)
@click.option(
    "--json",
    "json_out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all figures to this file.",
)
def main(
    scale: float,
    sources: tuple[str, ...],
    rounds: int,
    workers: int | None,
    data: Path,
    seed: int,
    parse_scale: float,
    with_peers: bool,
    peer_scale: float,
    peer_python: Path,
    peer_rounds: int,
    kill_count: int,
    json_out: Path | None,
    script: bool,
) -> None:
    """Measure builds beside the mere parsing of their files, a naive script, and other tools.

    Annotation files of the real layouts are generated once, a known share of their records
    spoilt. Then each method runs in a process of its own, in interleaved rounds: xvlm-data build
    as a user runs it, orjson.loads of the same bytes, and json.load with the script that people
    write. The counts of each build must equal the generator's, or the run fails (exit 1), as it
    does when a killed build ends with other bytes than an undisturbed one.

    \b
    Examples:
      python benchmarks/build.py --scale 0.01
      python benchmarks/build.py --scale 1 --source coco --source vg --kills 50
      python benchmarks/build.py --scale 0.2 --source objects365 --rounds 5 --json figures.json
      python benchmarks/build.py --source coco --peers --peer-python peers/bin/python
    """
    if sys.platform != "linux":
        raise click.ClickException("memory and processes are measured by means of Linux")
    adopt_orphans()
    facts = machine()
    print_machine(stdout, facts)
    out = data / "out"
    sources = tuple(dict.fromkeys(sources))
    contests = []
    for source in sources:
        release = prepare(data, source, scale, seed)
        base = parse(release)
        if base.skipped:
            _say(f"{source}: parsing {base.skipped}; measured at scale {parse_scale:g} instead")
            base = parse(prepare(data, source, min(parse_scale, scale), seed))
        ours = xvlm(release, out / source, workers)
        others = [naive(release)] if script else []
        contests.append(Contest(source, release, [base, ours, *others]))
        run_rounds(contests[-1].methods, rounds, _say)
    clean_contests: list[Contest] = []
    spoilt: list[Method] = []
    for source in (s for s in sources if with_peers and s in COCO_LIKE):
        clean = for_peers(prepare(data, source, peer_scale, seed, clean=True))
        methods = [parse(clean), xvlm(clean, out / f"{source}-clean", workers), naive(clean)]
        methods += _peers(clean, peer_python, out)
        clean_contests.append(Contest(f"{source}, clean", clean, methods))
        run_rounds(methods, peer_rounds, _say)
        bad = _peers(for_peers(prepare(data, source, peer_scale, seed)), peer_python, out)
        run_rounds(bad, 0, _say)
        spoilt += bad
    kills = None
    if kill_count:
        victim = contests[0].release
        kills = run_kills(victim, out / "kills", kill_count, workers, seed, _say)
    problems = [line for contest in (*contests, *clean_contests) for line in contest.problems]
    problems += kills.problems if kills else []
    _print(contests, clean_contests, spoilt, kills, problems)
    if json_out:
        settings = {"scale": scale, "rounds": rounds, "workers": workers, "seed": seed}
        figures: dict[str, Any] = {
            "machine": facts,
            "settings": settings,
            "builds": [contest.to_dict() for contest in contests],
            "clean": [contest.to_dict() for contest in clean_contests],
            "spoilt": [{"source": m.release.source, **m.to_dict()} for m in spoilt],
            "kills": kills.to_dict() if kills else None,
            "notes": NOTES,
            "problems": problems,
        }
        json_out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if problems else 0)


def _peers(release: Release, python: Path, out: Path) -> list[Method]:
    """The peers on a release; each writes to a folder that is removed before it runs."""
    found = []
    for peer in PEERS:
        place = out / peer
        command: list[str | Path] = [python, HERE / "peers.py", peer, release.root, place]
        found.append(Method(peer, release, command, own_timer=True, out=place, timeout=_PATIENCE))
    return found


def _say(line: str) -> None:
    stderr.print(line, markup=False, soft_wrap=True)


def _print(
    contests: list[Contest],
    clean_contests: list[Contest],
    spoilt: list[Method],
    kills: Kills | None,
    problems: list[str],
) -> None:
    print_contests(stdout, "Builds", contests)
    if clean_contests:
        print_contests(stdout, "Objects alone, no spoilt records", clean_contests)
        print_bad_records(stdout, spoilt)
    if kills:
        print_kills(stdout, kills)
    for note in NOTES:
        stdout.print(note, style="dim", markup=False, soft_wrap=True)
    for line in problems:
        stdout.print(f"FAILED {line}", style="red", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
