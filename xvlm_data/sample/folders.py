"""Folders that appear complete or not at all, and never on top of somebody's files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xvlm_data.errors import UserError

MARKER = "xvlm-sample.json"  # lies in every folder that `xvlm-data sample` wrote


@contextmanager
def workshop_in(out: Path) -> Iterator[Path]:
    """A folder on the same disk as ``out``, removed at the end whatever happens."""
    workshop = Path(tempfile.mkdtemp(prefix=".sample-", dir=out))
    try:
        yield workshop
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def check_free(folder: Path, overwrite: bool) -> None:
    """Raises UserError where ``folder`` holds anything but a sample, unless told to overwrite."""
    if overwrite or not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is in the way", "move it or choose another --out")
    if any(folder.iterdir()) and not (folder / MARKER).is_file():
        raise UserError(
            f"{folder} holds files that are not a sample",
            "choose another --out, or delete them all with --overwrite",
        )


def publish(workshop: Path, out: Path, name: str) -> None:
    """Moves a finished folder to its place, the former one out of it."""
    target = out / name
    if target.exists() or target.is_symlink():
        target.rename(workshop / f"{name}.former")
    (workshop / name).rename(target)
