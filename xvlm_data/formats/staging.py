"""Export folders that appear whole or not at all, and rows that cannot be exported."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xvlm_data.errors import UserError
from xvlm_data.images.decode import ImageError

#: What becomes of a row whose picture is missing or broken.
OnBroken = Literal["refuse", "skip"]


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes it when the context ends well, and goes otherwise.

    Raises:
        UserError: something lies at ``out``.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is there already", "give another --out, or remove it")
    part = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@dataclass
class Exported:
    """What an export did.

    Attributes:
        images: written.
        concepts: written, by granularity.
        left_out: rows that could not be written, by reason.
        turned: pictures that were written anew, turned by their EXIF orientation.
        notes: what the user should know.
    """

    images: int = 0
    concepts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    turned: int = 0
    notes: list[str] = field(default_factory=list)

    def broken(self, row: dict[str, Any], error: ImageError, on_broken: OnBroken) -> None:
        """A row whose picture cannot be had.

        Raises:
            UserError: unless such rows are to be skipped.
        """
        if on_broken == "refuse":
            raise UserError(
                f"{row['id']}: {error.what}", "--on-broken skip leaves such images out"
            ) from error
        self.left_out[error.reason] += 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "images": self.images,
            "concepts": dict(self.concepts),
            "left_out": dict(self.left_out),
            "turned": self.turned,
            "notes": self.notes,
        }
