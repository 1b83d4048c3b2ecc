"""Finding and checking the images of a block before anything is written about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.images.decode import (
    DEFAULT_LIMITS,
    ImageError,
    Limits,
    decode,
    header_size,
    read_bytes,
)
from xvlm_data.images.encode import reencode
from xvlm_data.leaks.exclusion import Exclusion
from xvlm_data.records import IMAGES, column
from xvlm_data.storage import AnyPath

#: How closely images are looked at: every pixel, whether there is a file, or not at all.
Check = Literal["decode", "find", "none"]


@dataclass(frozen=True)
class ImageRecord:
    """What a source says of an image: where it may lie, and how large it should be."""

    paths: Sequence[str]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Checked:
    """What was found: the file and its size, or why it is rejected.

    Attributes:
        size: in the pixels that boxes refer to; None where nobody knows.
        shown: of the picture that the manifest has, when it was made smaller.
        read: bytes of the file.
    """

    path: str | None = None
    size: tuple[int, int] | None = None
    data: bytes | None = None
    shown: tuple[int, int] | None = None
    read: int = 0
    problem: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class CheckedImages:
    """What was found of I images, as columns.

    Attributes:
        problems: ``[I]`` why an image is left out, or null.
        details: ``[I]`` more on that.
        paths: ``[I]`` as the manifest has them.
        data: ``[I]`` encoded bytes, null for references.
        sizes: ``[I, 2]`` (width, height) in the pixels that boxes refer to; 0 where unknown.
        shown: ``[I, 2]`` (width, height) for the manifest.
        bytes_read: of image files.
        bytes_stored: in the manifest.
    """

    problems: pa.Array
    details: pa.Array
    paths: pa.Array
    data: pa.Array
    sizes: npt.NDArray[np.int64]
    shown: npt.NDArray[np.int64]
    bytes_read: int = 0
    bytes_stored: int = 0


@dataclass(frozen=True)
class ImageChecker:
    """How images are checked.

    Attributes:
        root: the release's folder; nothing outside it is ever opened by name.
        check: how closely.
        keep_bytes: hand back the encoded bytes, to embed them.
        limits: what an image may cost.
        shortest_side: with ``keep_bytes``: re-encode to this; None keeps bytes as they are.
        quality: of what is re-encoded.
        as_urls: paths are addresses, and nothing is looked at.
        stored_pixels: sizes refer to the stored pixels, whatever EXIF says.
        sizes_unknown: with nothing looked at, an image without a size is no problem.
        exclusion: evaluation images, which are left out as ``leak`` wherever images are decoded.
    """

    root: AnyPath
    check: Check = "decode"
    keep_bytes: bool = False
    limits: Limits = DEFAULT_LIMITS
    shortest_side: int | None = None
    quality: int = 90
    as_urls: bool = False
    stored_pixels: bool = False
    sizes_unknown: bool = False
    exclusion: Exclusion | None = None

    def check_all(self, images: pa.Table, pool: ThreadPoolExecutor | None) -> CheckedImages:
        """Check I image records; Pillow decodes outside the interpreter lock.

        Args:
            images: columns of ``records.IMAGES``.
            pool: threads, or None to do it here.
        """
        if self.check == "none" or self.as_urls:
            return self._unseen(images)
        records = [
            None
            if row["problem"] is not None
            else ImageRecord(
                row["paths"] or [],
                (row["width"], row["height"]) if row["width"] and row["height"] else None,
            )
            for row in images.select(["paths", "width", "height", "problem"]).to_pylist()
        ]
        mapper: Callable[..., object] = pool.map if pool is not None else map
        found: list[Checked | None] = list(
            mapper(lambda record: record and self.check_one(record), records)  # type: ignore[call-overload]
        )
        known = zip(images["problem"].to_pylist(), images["detail"].to_pylist(), strict=True)
        checked = [
            result or Checked(problem=problem, detail=detail)
            for result, (problem, detail) in zip(found, known, strict=True)
        ]
        sizes = np.array([c.size or (0, 0) for c in checked], np.int64).reshape(-1, 2)
        shown = np.array([c.shown or c.size or (0, 0) for c in checked], np.int64).reshape(-1, 2)
        return CheckedImages(
            pa.array([c.problem for c in checked], pa.string()),
            pa.array([c.detail for c in checked], pa.string()),
            pa.array([None if c.path is None else self._path(c) for c in checked], pa.string()),
            pa.array([c.data for c in checked], pa.binary()),
            sizes,
            shown,
            sum(c.read for c in checked),
            sum(len(c.data or b"") for c in checked),
        )

    def _path(self, checked: Checked) -> str:
        """Absolute where it is a reference, so that every reader of Parquet finds the image."""
        if checked.data is not None:
            return str(checked.path)
        return str(self.root / str(checked.path))

    def _unseen(self, images: pa.Table) -> CheckedImages:
        """Everything as the source has it."""
        lists = column(images, "paths", IMAGES)
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        starts = np.cumsum(lengths) - lengths
        first = lists.flatten().take(pa.array(starts, mask=lengths == 0))
        problems, details = column(images, "problem", IMAGES), column(images, "detail", IMAGES)
        sides = [pc.fill_null(column(images, name, IMAGES), 0) for name in ("width", "height")]
        sizes = np.stack([side.to_numpy().astype(np.int64) for side in sides], axis=1)

        def mark(where: pa.Array, problem: str, detail: pa.Array | str) -> None:
            nonlocal problems, details
            free = pc.and_(where, problems.is_null())
            problems = pc.if_else(free, problem, problems)
            details = pc.if_else(free, detail, details)

        mark(first.is_null(), "missing_image", "the record names no file")
        if not self.as_urls:
            suspect = pc.match_substring_regex(first, r"(^$|^[/\\]|\.\.|\x00|^[A-Za-z]:)")
            unsafe = pa.array(
                [
                    bool(s) and is_unsafe(p)
                    for s, p in zip(suspect.to_pylist(), first.to_pylist(), strict=True)
                ]
                if pc.any(suspect).as_py()
                else np.zeros(len(first), bool)
            )
            mark(unsafe, "unsafe_path", first)
            first = pc.binary_join_element_wise(str(self.root).rstrip("/"), first, "/")
        if not self.sizes_unknown:
            mark(
                pa.array((sizes <= 0).any(axis=1)),
                "unknown_size",
                "the release has no size of it, and the image was not looked at",
            )
        return CheckedImages(
            problems, details, first, pa.nulls(len(images), pa.binary()), sizes, sizes
        )

    def check_one(self, record: ImageRecord) -> Checked:
        """Check one image; never raises."""
        try:
            return self._check(record)
        except ImageError as error:
            return Checked(problem=error.reason, detail=error.what)
        except (OSError, ValueError) as error:  # a name that the file system refuses
            return Checked(problem="missing_image", detail=f"{record.paths[0][:200]!r}: {error}")
        except MemoryError:
            return Checked(problem="too_many_pixels", detail="does not fit in memory")

    def _check(self, record: ImageRecord) -> Checked:
        relative = self._locate(record.paths)
        file = self.root / relative
        if self.check != "decode" and not self.keep_bytes and record.size is not None:
            return Checked(relative, record.size)
        return self.look(relative, read_bytes(file, self.limits), record, self.keep_bytes)

    def look(self, relative: str, data: bytes, record: ImageRecord, keep_bytes: bool) -> Checked:
        """Check the bytes of an image.

        Raises:
            ImageError: with its reason.
        """
        apply_exif = record.size is None and not self.stored_pixels
        if keep_bytes and self.shortest_side is not None:
            if self.exclusion is not None:  # of all pixels; what is kept is decoded smaller
                self.exclusion.check(data, relative)
            small, shown = reencode(
                data,
                size=record.size,
                apply_exif=apply_exif,
                shortest_side=self.shortest_side,
                quality=self.quality,
                limits=self.limits,
                name=relative,
            )
            full = record.size or header_size(data, relative)
            return Checked(relative, full, small, shown, len(data))
        kept = data if keep_bytes else None
        if self.check != "decode":
            return Checked(
                relative, record.size or header_size(data, relative), kept, read=len(data)
            )
        image = decode(
            data, size=record.size, apply_exif=apply_exif, limits=self.limits, name=relative
        )
        if self.exclusion is not None:
            self.exclusion.check(data, relative, image)
        return Checked(relative, image.size, kept, read=len(data))

    def _locate(self, paths: Sequence[str]) -> str:
        for path in paths:
            if is_unsafe(path):
                raise ImageError("unsafe_path", f"{path!r} leaves the image folder")
            if (self.root / path).is_file():
                return path
        if not paths:
            raise ImageError("missing_image", "the record names no file")
        raise ImageError("missing_image", f"{paths[0]}: no such file")


def is_unsafe(path: str) -> bool:
    """Whether a path from a raw file could point outside the folder it is relative to."""
    pure = PurePosixPath(path.replace("\\", "/"))
    return not path or "\0" in path or pure.is_absolute() or ".." in pure.parts
