"""Finding and opening raw files, and telling early when a file is not what its name says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import BinaryIO

from xvlm_data.errors import UserError

#: Editors of some systems put it before a text in UTF-8.
BOM = b"\xef\xbb\xbf"

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
#: The byte order marks of encodings other than UTF-8.
_OTHER_TEXT = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
#: What browsers, wget, curl, aria2 and copying programs call a file that is not whole yet.
_UNFINISHED = (
    ".crdownload",
    ".part",
    ".partial",
    ".filepart",
    ".download",
    ".opdownload",
    ".aria2",
    ".tmp",
    ".temp",
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


def is_leftover(name: str) -> bool:
    """Whether a file of this name is no data: hidden, or of a download that was cut off.

    macOS puts ``._name`` beside a file, and rsync writes to ``.name.k3Xy`` until it is whole.
    """
    return name.startswith(".") or name.lower().endswith(_UNFINISHED)


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
    """Open for reading bytes; a compressed, HTML or Git LFS stand-in is refused, and UTF-16.

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
    start = head.lstrip(BOM + b" \t\r\n").lower()
    for mark, state, fix in _IMPOSTORS:
        if start.startswith(mark.lower()):
            file.close()
            raise UserError(f"{path}: {state}", fix)
    for mark, encoding in _OTHER_TEXT:
        if head.startswith(mark):
            file.close()
            raise UserError(
                f"{path}: text in {encoding}, not in UTF-8",
                f"convert it: iconv -f {encoding} -t UTF-8 {quote(path.name)} > "
                f"{quote(f'new-{path.name}')}",
            )
    return file
