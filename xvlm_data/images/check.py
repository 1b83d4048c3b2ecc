"""Checking the images of a block before anything is written about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xvlm_data.images.decode import (
    DEFAULT_LIMITS,
    ImageError,
    Limits,
    decode,
    header_size,
    read_bytes,
)


@dataclass(frozen=True)
class ImageRecord:
    """What a source says of an image: where it may lie, and how large it should be."""

    paths: Sequence[str]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Checked:
    """What was found: the file and its size, or why it is rejected."""

    path: str | None = None
    size: tuple[int, int] | None = None
    data: bytes | None = None
    problem: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class ImageChecker:
    """How images are checked.

    Attributes:
        root: the release's folder; nothing outside it is ever opened by name.
        decode: decode every pixel, instead of believing what the source and the header say.
        keep_bytes: hand back the encoded bytes, to embed them.
        limits: what an image may cost.
    """

    root: Path
    decode: bool = True
    keep_bytes: bool = False
    limits: Limits = DEFAULT_LIMITS

    def check_all(
        self, records: Sequence[ImageRecord | None], pool: ThreadPoolExecutor
    ) -> Iterator[Checked | None]:
        """Check many, in order; None stays None. Pillow decodes outside the interpreter lock."""
        return pool.map(lambda record: record and self.check(record), records)

    def check(self, record: ImageRecord) -> Checked:
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
        if not self.decode and not self.keep_bytes and record.size is not None:
            return Checked(relative, record.size)
        data = read_bytes(file, self.limits)
        kept = data if self.keep_bytes else None
        if not self.decode and record.size is not None:
            return Checked(relative, record.size, kept)
        if not self.decode:
            return Checked(relative, header_size(data, relative), kept)
        image = decode(
            data,
            size=record.size,
            apply_exif=record.size is None,
            limits=self.limits,
            name=relative,
        )
        return Checked(relative, image.size, kept)

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
