"""Finding and opening raw files, and telling early when a file is not what its name says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from xvlm_data.errors import UserError

#: What people really have on disk under the name of an annotation file.
_IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the data", "run `git lfs pull`"),
    (b"\x1f\x8b", "gzip-compressed", "unpack it first"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"BZh", "bzip2-compressed", "unpack it first"),
    (b"<!doctype", "an HTML page", "the download failed: fetch it again"),
    (b"<html", "an HTML page", "the download failed: fetch it again"),
    (b"<?xml", "an XML page", "the download failed: fetch it again"),
)


def find_file(root: Path, names: Iterable[str], what: str) -> Path:
    """The first of ``names`` that exists under ``root``.

    Raises:
        UserError: the root is no folder, or none of the names is there.
    """
    tried = list(names)
    found = find_optional(root, tried)
    if found is None:
        raise UserError(
            f"{root}: no {what} (looked for {', '.join(tried)})",
            "unpack the official release there, or give its folder with --root",
        )
    return found


def find_optional(root: Path, names: Iterable[str]) -> Path | None:
    """As :func:`find_file`, but None where nothing is found."""
    check_root(root)
    return next((root / name for name in names if (root / name).is_file()), None)


def check_root(root: Path) -> None:
    """Raises UserError unless ``root`` is a folder that can be read."""
    try:
        is_dir = root.is_dir()
        if is_dir:
            next(root.iterdir(), None)
    except PermissionError:
        raise UserError(f"{root}: not readable", "check its permissions") from None
    if not is_dir:
        state = "is not a folder" if root.exists() else "no such folder"
        raise UserError(
            f"{root}: {state}",
            "give the folder of the raw release with --root, or make one with `xvlm-data sample`",
        )


def open_raw(path: Path) -> BinaryIO:
    """Open for reading bytes; a compressed, HTML or Git LFS stand-in is refused.

    Raises:
        UserError: missing, unreadable, empty, or not the data.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "unpack the official release there") from None
    except PermissionError:
        raise UserError(f"{path}: not readable", "check its permissions") from None
    except IsADirectoryError:
        raise UserError(
            f"{path}: a folder where a file should be", "unpack the official release there"
        ) from None
    head = file.read(64)
    file.seek(0)
    if not head:
        file.close()
        raise UserError(f"{path}: empty file", "download it again")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for mark, state, fix in _IMPOSTORS:
        if start.startswith(mark.lower()):
            file.close()
            raise UserError(f"{path}: {state}", fix)
    return file
