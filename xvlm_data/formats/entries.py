"""Entries: an image with all that is said of it, as files of other formats have them.

A format reads files into entries; what becomes of these is the same for all (:mod:`.importing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from xvlm_data.errors import UserError
from xvlm_data.records import CAPTION, OBJECT, REGION

#: Bytes of files that are one task together, and one shard.
TASK_BYTES = 256 << 20
KIND_OF = {"image": CAPTION, "region": REGION, "object": OBJECT}


@dataclass
class Said:
    """One text of an image.

    Attributes:
        kind: ``records.CAPTION``, ``REGION`` or ``OBJECT``.
        text: as it stands.
        box: (x, y, w, h) from the top left; None of a caption.
        attributes: of an object.
        problem: why it cannot be used, where that is known, with what to say of it.
    """

    kind: int
    text: str | None = None
    box: Sequence[float] | None = None
    attributes: list[str] = field(default_factory=list)
    problem: str | None = None
    detail: str | None = None


@dataclass
class Entry:
    """One image with all that is said of it, or why it cannot be read.

    Attributes:
        place: in its file, for rejects: a number that the file's own template is filled with.
        id: of the manifest row.
        name: of the picture, for people.
        data: its bytes; None where it is a file below the image root, called ``name``.
        size: (width, height) of the pixels that boxes refer to; None has the picture tell, turned
            by its EXIF orientation.
        source, split: of the row; None for the import's own.
        said: its texts.
        problem: why the image cannot be used, where that is known, with what to say of it.
    """

    place: int
    id: str
    name: str = ""
    data: bytes | None = None
    size: tuple[int, int] | None = None
    source: str | None = None
    split: str | None = None
    said: list[Said] = field(default_factory=list)
    problem: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Piece:
    """A file to be read, or a range of it.

    Attributes:
        number: of the file.
        path: of it.
        start, stop: bytes.
    """

    number: int
    path: Path
    start: int
    stop: int


class Format(Protocol):
    """How entries are read; picklable."""

    #: How the place of an entry is told, such as ``byte {index}``.
    place: str
    #: Whether boxes are in units of their image instead of pixels.
    normalised_boxes: bool

    def pieces(self, files: Sequence[Path]) -> list[Piece]:
        """Cut the files into pieces of at most about :data:`TASK_BYTES` where that can be."""
        ...

    def read(self, piece: Piece) -> Iterator[Entry]:
        """The entries of a piece.

        Raises:
            UserError: the file is not what it should be.
        """
        ...


def files_of(paths: Sequence[Path], suffixes: Sequence[str], what: str) -> list[Path]:
    """The files that were named, and those in the folders that were, in the order of their names.

    Args:
        paths: files and folders.
        suffixes: of the files in folders that are taken; "" of those without one.
        what: they should be, for people.

    Raises:
        UserError: there are none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(
                file
                for file in path.rglob("*")
                if file.is_file()
                and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
                and (file.suffix.lower() in suffixes or file.name.endswith(".tar.gz"))
            )
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder", "check the path")
    if not found:
        raise UserError(
            f"{paths[0]}: holds no {what}",
            f"files of {', '.join(s or 'no suffix' for s in suffixes)}",
        )
    return found
