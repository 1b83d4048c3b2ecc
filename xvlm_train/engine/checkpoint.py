"""Checkpoints on disk: safetensors and plain text only, complete or absent, checked when read.

Layout of ``RUN/checkpoints/step_00001000/``:

    model.safetensors      every parameter and persistent buffer once, under the model's own names
    optimizer.safetensors  ``<parameter>.<state>`` (exp_avg, exp_avg_sq, step)
    ema.safetensors        the averaged weights, of runs that average
    state.json             step, seed, loss scaler, positions in the streams, which names share a
                           tensor, format version, and the size of every other file
    config.yaml            the whole configuration
    tokenizer/             what turns text into ids for this model
    SHA256SUMS             of all of these; ``sha256sum --check SHA256SUMS`` agrees

Of a sharded run (:mod:`xvlm_train.engine.sharding`) ``model/``, ``optimizer/`` and ``ema/`` stand
in the place of the three files, with one safetensors file of torch's distributed checkpoint for
each rank.

A checkpoint is written beside its final name and renamed; then ``RUN/checkpoints/latest`` is
replaced by a file with its name. Random numbers are functions of (seed, step, rank), so these are
the whole state of a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xvlm_data.errors import UserError

FOLDER, LATEST = "checkpoints", "latest"
MODEL, OPTIMIZER, EMA = "model", "optimizer", "ema"
SUFFIX = ".safetensors"
STATE, SUMS = "state.json", "SHA256SUMS"
_FORMAT = 2
_NAME = re.compile(r"step_(\d{8,})")
_SUM = re.compile(r"([0-9a-f]{64})  ([^\n]+)")


@dataclass
class Checkpoint:
    """A complete checkpoint on disk and its plain state."""

    path: Path
    state: dict[str, Any]
    passed_over: list[str] = field(default_factory=list)
    """What is wrong with newer ones of the run."""
    damaged: list[Path] = field(default_factory=list)
    """These newer ones."""

    @property
    def step(self) -> int:
        """Steps done when it was written."""
        return int(self.state["step"])

    def has(self, part: str) -> bool:
        """Whether it holds :data:`MODEL`, :data:`OPTIMIZER` or :data:`EMA`."""
        return (self.path / (part + SUFFIX)).exists() or (self.path / part).is_dir()


@dataclass(frozen=True)
class Retention:
    """Which checkpoints of a run stay: the newest ``last``, and every ``every`` steps one."""

    last: int
    every: int = 0  # 0: none for being a milestone


def begin(run: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of ``step`` into; it counts for nothing yet."""
    partial = run / FOLDER / f".{_name(step)}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def commit(run: Path, partial: Path, state: dict[str, Any], keep: Retention) -> Path:
    """Make what lies in ``partial`` the checkpoint of ``state["step"]``, and forget old ones.

    Args:
        run: the run's folder.
        partial: from :func:`begin`, with everything but state and checksums in it.
        state: plain JSON values; ``step`` is required.
        keep: which checkpoints stay.

    Raises:
        OSError: no space, no permission; what was there before is untouched.
    """
    document = {"format": _FORMAT, "files": _sizes(partial), **state}
    (partial / STATE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sums = "".join(f"{_digest(partial / name)}  {name}\n" for name in _sizes(partial))
    (partial / SUMS).write_text(sums, encoding="utf-8")
    _sync(partial)
    folder = run / FOLDER
    final = folder / _name(state["step"])
    replaced = folder / f".{final.name}.replaced"
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():  # the same step of a run that was resumed from before it
        final.rename(replaced)
    partial.rename(final)
    _point_to(final)
    shutil.rmtree(replaced, ignore_errors=True)
    _forget(folder, state["step"], keep)
    return final


def go_on_from(found: Checkpoint, run: Path) -> None:
    """Leave what came after a checkpoint of the run behind, though it has saved nothing new yet."""
    if found.path.resolve().parent == (run / FOLDER).resolve():
        _point_to(found.path)


def _point_to(final: Path) -> None:
    """Let the run's newest checkpoint be this one."""
    pointer = final.with_name(f".{LATEST}.partial")
    pointer.write_text(final.name + "\n", encoding="utf-8")
    pointer.replace(final.with_name(LATEST))
    _sync_folder(final.parent)


def discard(partial: Path) -> None:
    """Remove what is left of a checkpoint that was not committed."""
    shutil.rmtree(partial, ignore_errors=True)


def _forget(folder: Path, newest: int, keep: Retention) -> None:
    """Remove what retention does not keep; later steps belong to an abandoned past, and stay."""
    past = [step for step in _steps(folder) if step <= newest]
    for step in past[: -keep.last]:
        if not keep.every or step % keep.every:
            shutil.rmtree(folder / _name(step), ignore_errors=True)
    for leftover in folder.glob(".step_*"):  # of processes that were killed while they saved
        shutil.rmtree(leftover, ignore_errors=True)


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, ascending."""
    names = (_NAME.fullmatch(path.name) for path in folder.glob("step_*"))
    return sorted(int(match[1]) for match in names if match)


def _sync(folder: Path) -> None:
    """Bytes to the disk before the rename: a power cut must not leave a named, empty checkpoint."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file, by its path in ``folder``."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(path: Path, *, unused: Collection[str] = ()) -> Checkpoint:
    """The checkpoint at ``path``: itself a checkpoint, or a run's newest that is undamaged.

    Args:
        path: a checkpoint, a run's folder, or its folder of checkpoints.
        unused: parts that the caller does not read (such as :data:`OPTIMIZER`); they are not
            checked.

    Raises:
        UserError: nothing is there; the checkpoint, or every one of the run, is damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: not found", "name a run's folder or one of its checkpoints")
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    candidates, passed_over = _candidates(folder)
    if not candidates and not passed_over:
        if _NAME.fullmatch(path.name) or (path / STATE).exists():
            return read(path, unused=unused)
        raise UserError(f"{path}: no checkpoint in it", "name a run's folder or a checkpoint")
    for number, candidate in enumerate(candidates):
        try:
            found = read(candidate, unused=unused)
        except UserError as error:
            passed_over.append(error.what)
            continue
        found.passed_over, found.damaged = passed_over, candidates[:number]
        return found
    raise UserError(
        f"{path}: every checkpoint is damaged ({'; '.join(passed_over)})",
        "restore one from a copy, or start again in another folder",
    )


def _candidates(folder: Path) -> tuple[list[Path], list[str]]:
    """The checkpoints to try, the likeliest first, and what is wrong with ``latest``."""
    steps = _steps(folder)
    pointer = folder / LATEST
    problems = []
    if pointer.is_file():
        name = pointer.read_bytes().decode("utf-8", "replace")
        match = _NAME.fullmatch(name.removesuffix("\n"))
        if match and int(match[1]) in steps:
            # Later ones are of a past that the run was resumed from before.
            steps = [step for step in steps if step <= int(match[1])]
        else:
            problems = [f"{pointer}: damaged (names {name.strip()[:40]!r})"]
    return [folder / _name(step) for step in reversed(steps)], problems


def begun(run: Path) -> bool:
    """Whether a run has a checkpoint, be it a damaged one."""
    return bool(_steps(run / FOLDER)) or (run / FOLDER / LATEST).exists()


def has_run(run: Path) -> bool:
    """Whether a run has left something in this folder that a new one would overwrite."""
    return (run / FOLDER).exists() or (run / "metrics.jsonl").exists()


def read(folder: Path, *, unused: Collection[str] = ()) -> Checkpoint:
    """The checkpoint in ``folder``, every byte of it checked except in ``unused`` parts.

    Raises:
        UserError: it is incomplete, damaged, or of another format.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        version, step, sizes = state["format"], state["step"], dict(state["files"])
    except FileNotFoundError:
        raise damaged(folder / STATE, "missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder / STATE, error) from None
    there = _sizes(folder)
    for name, size in sizes.items():
        if name not in there:
            raise damaged(folder / name, "missing")
        if there[name] != size:
            raise damaged(folder / name, f"{there[name]} bytes, {size} were written")
    _check_sums(folder, [*sizes, STATE], unused)
    if version != _FORMAT or not isinstance(step, int):
        raise UserError(
            f"{folder / STATE}: checkpoint format {version!r}, known is {_FORMAT}",
            "use the version of xvlm that wrote it",
        )
    return Checkpoint(folder, state)


def _check_sums(folder: Path, names: Iterable[str], unused: Collection[str]) -> None:
    path = folder / SUMS
    try:
        *lines, end = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise damaged(path, "missing") from None
    except UnicodeDecodeError as error:
        raise damaged(path, error) from None
    matches = [_SUM.fullmatch(line) for line in lines]
    sums = {match[2]: match[1] for match in matches if match}
    if end or len(sums) != len(lines) or sums.keys() != set(names):
        raise damaged(path, "not the list of the checkpoint's files")
    for name, expected in sums.items():
        part = name.split("/")[0].removesuffix(SUFFIX)
        if part not in unused and _digest(folder / name) != expected:
            raise damaged(folder / name, "its checksum is not the one that was written")


def set_aside_damaged(found: Checkpoint) -> None:
    """Rename what :func:`find` passed over, so that it neither is tried nor counts as kept."""
    for path in found.damaged:
        aside = path.with_name(f"damaged_{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def damaged(path: Path, why: object) -> UserError:
    """What to say of a file in a checkpoint that cannot be what was written."""
    line = str(why).splitlines()[0] if str(why) else type(why).__name__
    return UserError(f"{path}: damaged ({line})", "resume from another checkpoint of the run")
