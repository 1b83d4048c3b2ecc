"""Builds that are killed again and again, and whether the result is the same to the byte."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from measure import Group, measure
from releases import Release
from rounds import Say, build_command

JOURNAL = ".building"
#: Recorded when all files are complete; what follows is to move them and to remove the journal.
COMMIT = f"{JOURNAL}/commit.json"
#: Every so many kills one is aimed at the commit, up to so many seconds after it is recorded.
_AIM_EVERY, _AIM_WITHIN = 5, 0.02
_POLL = 0.0005


@dataclass
class Kills:
    """What became of the builds.

    Attributes:
        source: what was built.
        scale: 1 is the size of the real release.
        kills: SIGKILLs that met a running build.
        at_commit: those of them that were aimed at the moment of commit.
        builds: builds that came to their end, each compared with the uninterrupted one.
        files: of an uninterrupted build.
        uninterrupted: seconds that it takes.
        seconds: of all killed and restarted runs.
        kept: finished tasks that a run found in the journal, summed over restarts.
        redone: those of them that were run again.
        problems: builds that failed, or whose bytes differ.
    """

    source: str
    scale: float
    kills: int = 0
    at_commit: int = 0
    builds: int = 0
    files: int = 0
    uninterrupted: float = 0.0
    seconds: float = 0.0
    kept: int = 0
    redone: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def overhead(self) -> float:
        """Seconds beyond those of as many uninterrupted builds, as a share of them."""
        return self.seconds / (self.uninterrupted * self.builds) - 1 if self.builds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "overhead": self.overhead, "identical": not self.problems}


def run_kills(
    release: Release, folder: Path, count: int, workers: int | None, seed: int, say: Say
) -> Kills:
    """Build once undisturbed, then kill builds ``count`` times in all.

    A build is restarted with the same command after each kill until it ends; if kills are left
    then, another build begins. Moments are drawn uniformly from the time an undisturbed build
    takes; one in five is aimed at the commit instead.

    Args:
        release: what is built.
        folder: where manifests may be written.
        count: kills.
        workers: of the build; None for all cores.
        seed: of the moments.
        say: tells a person.
    """
    result = Kills(release.source, release.scale)
    chance = random.Random(seed)
    whole, out = folder / "uninterrupted", folder / "killed"
    for place in (whole, out):
        shutil.rmtree(place, ignore_errors=True)
    cost = measure(build_command(release, whole, workers))
    if cost.status:
        result.problems.append(f"uninterrupted: {_last(cost.stderr)}")
        return result
    wanted = digests(whole)
    result.files, result.uninterrupted = len(wanted), cost.wall
    command = build_command(release, out, workers)
    unfinished = True
    while result.kills < count or unfinished:
        before = _records(out)
        # Where one killed at the commit is to be resumed, there is nothing left to aim at.
        resumes = (out / COMMIT).exists()
        aimed = result.kills % _AIM_EVERY == _AIM_EVERY - 1 and not resumes
        group = Group(command)
        if result.kills >= count:
            moment = None
        elif aimed:
            moment = chance.random() ** 2 * _AIM_WITHIN
        else:
            moment = chance.random() * cost.wall
        try:
            met = moment is not None and _kill(group, out, moment, at_commit=aimed)
            end = group.finish()
        except BaseException:
            group.kill()
            raise
        result.seconds += end.wall
        unfinished = met
        if met:
            result.kills += 1
            result.at_commit += aimed
            after = _records(out)
            # A task that was done before and has been done again has a younger record.
            shared = before.keys() & after.keys()
            result.kept += len(shared)
            redone = sum(before[name] != after[name] for name in shared)
            result.redone += redone
            say(
                f"kill {result.kills}/{count} after {end.wall:.2f} s"
                f"{' (commit)' if aimed else ''}: {len(after)} tasks done, {redone} of "
                f"{len(shared)} done before were done again"
            )
            continue
        if end.status:
            result.problems.append(f"after {result.kills} kills: {_last(end.stderr)}")
            return result
        result.builds += 1
        result.problems += [
            f"after {result.kills} kills: {name}: {how}"
            for name, how in differing(wanted, digests(out)).items()
        ]
        say(f"build {result.builds} ended after {result.kills} kills in all")
        if result.problems:
            return result
        shutil.rmtree(out)
    return result


def _kill(group: Group, out: Path, moment: float, *, at_commit: bool) -> bool:
    """Kill a group at a moment; False where it ended before that."""
    if at_commit:
        while not (out / COMMIT).exists():
            if group.ended():
                return False
            time.sleep(_POLL)
        start = time.perf_counter()
    else:
        start = group.started
    while (left := start + moment - time.perf_counter()) > 0:
        if group.ended():
            return False
        time.sleep(min(_POLL, left))
    group.kill()
    # It may have ended just before the signal came.
    group.ended(block=True)
    return group.status is not None and group.status < 0


def _records(out: Path) -> dict[str, int]:
    """When each finished task of an unfinished build was recorded."""
    found = {}
    for folder in ("read", "shards"):
        for path in (out / JOURNAL / folder).glob("[!.]*.json"):
            found[f"{folder}/{path.name}"] = path.stat().st_mtime_ns
    return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, hidden ones too, by relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
    return found


def differing(wanted: dict[str, str], found: dict[str, str]) -> dict[str, str]:
    """Files that are not the same in two folders, by their :func:`digests`: name -> how."""
    how = {}
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found or name not in wanted:
            how[name] = "missing" if name in wanted else "left over"
        elif wanted[name] != found[name]:
            how[name] = "other bytes"
    return how


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "failed without a word"
