"""What a source is: a function that reads an official release into records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from xvlm_data.raw.json_arrays import Elements, read_arrays
from xvlm_data.raw.lines import read_lines
from xvlm_data.records import Records
from xvlm_data.text import SlashedNames

#: Opens a progress display for a file: its name and size in, a function that advances it out.
OpenProgress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass
class Request:
    """What to read, and what the source has to say of it.

    Attributes:
        root: folder of the release.
        split: train, val, test, …: which part.
        slashed_names: which form of a slashed category name becomes the text.
        evaluation_files: files whose images must be left out; None looks in the usual places.
        keep_leaks: leave nothing out.
        progress: opens a progress display for each file read.
        notes: filled by the source: facts the user should read, such as an absent optional file.
        inputs: filled by the source: the files read.
    """

    root: Path
    split: str
    progress: OpenProgress
    slashed_names: SlashedNames = "first"
    evaluation_files: tuple[Path, ...] | None = None
    keep_leaks: bool = False
    notes: list[str] = field(default_factory=list)
    inputs: list[Path] = field(default_factory=list)

    def arrays(self, path: Path, wanted: dict[str, Any]) -> Iterator[Elements[Any]]:
        """`raw.json_arrays.read_arrays` with progress; the file is noted as read."""
        with self._reading(path) as advance:
            yield from read_arrays(path, wanted, on_bytes=advance)

    def lines(self, path: Path) -> Iterator[tuple[int, list[bytes]]]:
        """`raw.lines.read_lines` with progress; the file is noted as read."""
        with self._reading(path) as advance:
            yield from read_lines(path, on_bytes=advance)

    def _reading(self, path: Path) -> AbstractContextManager[Callable[[int], None]]:
        if path not in self.inputs:
            self.inputs.append(path)
        size = path.stat().st_size if path.is_file() else 0
        return self.progress(path.name, size)


class Source(Protocol):
    """A public release in its official raw layout.

    Attributes:
        name: as in ids and on the command line.
        licence: one line on what one may do with it.
        merge_images: whether several image records with one key are one image.
    """

    name: str
    licence: str
    merge_images: bool

    def read(self, request: Request, records: Records) -> None:
        """Write everything the release says of the split into ``records``.

        Raises:
            UserError: a file is missing or is not what it should be.
        """
        ...
