"""What a source is: a function that reads an official release into records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from xvlm_data.storage import AnyPath

if TYPE_CHECKING:
    # Not at run time: the command line asks for the names of sources before anything else.
    import pyarrow as pa

    from xvlm_data.raw.json_arrays import Elements
    from xvlm_data.reading import Records
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
        urls: images are not on disk: name them by their addresses.
        progress: opens a progress display for each file read.
        on_open: called with each file that is read.
        notes: filled by the source: facts the user should read, such as an absent optional file.
        inputs: filled by the source: the files read.
    """

    root: AnyPath
    split: str
    progress: OpenProgress
    slashed_names: SlashedNames = "first"
    evaluation_files: tuple[AnyPath, ...] | None = None
    keep_leaks: bool = False
    urls: bool = False
    on_open: Callable[[AnyPath], None] = lambda path: None
    notes: list[str] = field(default_factory=list)
    inputs: list[AnyPath] = field(default_factory=list)

    def arrays(self, path: AnyPath, wanted: dict[str, Any]) -> Iterator[Elements[Any]]:
        """`raw.json_document.read_arrays` with progress; the file is noted as read."""
        from xvlm_data.raw.json_document import read_arrays

        with self.reading(path) as advance:
            yield from read_arrays(path, wanted, on_bytes=advance)

    def lines(self, path: AnyPath) -> Iterator[tuple[int, list[bytes]]]:
        """`raw.lines.read_lines` with progress; the file is noted as read."""
        from xvlm_data.raw.lines import read_lines

        with self.reading(path) as advance:
            yield from read_lines(path, on_bytes=advance)

    def reading(self, path: AnyPath) -> AbstractContextManager[Callable[[int], None]]:
        """A progress display for a file, which is noted as read."""
        size = path.stat().st_size if path.is_file() else 0
        if path not in self.inputs:
            self.inputs.append(path)
            if size:
                self.on_open(path)
        return self.progress(path.name, size)


class Source:
    """A public release in its official raw layout.

    Attributes:
        name: as in ids and on the command line.
        licence: one line on what one may do with it.
        citation: what its authors ask to be cited, in BibTeX.
        homepage: address of the release.
        merge_images: whether several image records with one key are one image.
        url_list: whether the release is a list of addresses.
        stored_pixels: whether boxes refer to the stored pixels, whatever EXIF says.
        normalised_boxes: whether boxes are given in units of their image's width and height.
        evaluation: whether everything is kept by default: a test set has no small boxes to filter.
        extra: a column after those of every manifest, a list filled from the ``extra`` of the
            image's question records.
    """

    name: ClassVar[str]
    licence: ClassVar[str]
    citation: ClassVar[str] = ""
    homepage: ClassVar[str] = ""
    merge_images: ClassVar[bool] = False
    url_list: ClassVar[bool] = False
    stored_pixels: ClassVar[bool] = False
    normalised_boxes: ClassVar[bool] = False
    evaluation: ClassVar[bool] = False
    extra: ClassVar[pa.Field | None] = None

    def image_root(self, request: Request) -> AnyPath:
        """The folder that the paths of image records are relative to: the release's own.

        Raises:
            UserError: the release has no such split.
        """
        return request.root

    def read(self, request: Request, records: Records) -> None:
        """Write everything the release says of the split into ``records``.

        Raises:
            UserError: a file is missing or is not what it should be.
        """
        raise NotImplementedError
