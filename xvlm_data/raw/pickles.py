"""Reading pickles of plain data, such as RefCOCO's ``refs(unc).p``, without running anything.

A pickle is a program. Lists, dictionaries, numbers and texts need none of the opcodes that load
code, so a file that asks for any of those is refused before it can do harm.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from xvlm_data.errors import UserError
from xvlm_data.raw.files import open_raw
from xvlm_data.storage import AnyPath

#: The largest official file has some 40 MB.
MAX_PICKLE = 1 << 30


class PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, numbers and texts; anything that could run code is refused.

    Python 2 wrote the official files, and its byte strings are read as UTF-8; what is none comes
    back escaped, for :func:`plain_text` to resolve.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refused, whatever the class is."""
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refused: plain data refers to nothing outside its file."""
        raise pickle.UnpicklingError("it refers to objects outside the file")


class _Counted:
    """A file that tells how much of it has been read."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None] | None) -> None:
        self._file, self._on_bytes = file, on_bytes

    def _tell(self, data: bytes) -> bytes:
        if self._on_bytes:
            self._on_bytes(len(data))
        return data

    def read(self, size: int = -1) -> bytes:
        return self._tell(self._file.read(size))

    def readline(self) -> bytes:
        return self._tell(self._file.readline())


def read_pickle(path: AnyPath, *, on_bytes: Callable[[int], None] | None = None) -> Any:
    """The plain data in a pickle, all of it at once.

    Args:
        path: the file.
        on_bytes: called with the number of bytes of each piece read.

    Raises:
        UserError: missing, larger than 1 GiB, damaged, or not plain data.
    """
    with open_raw(path) as file:
        if path.stat().st_size > MAX_PICKLE:
            raise UserError(f"{path}: a pickle of more than 1 GiB", "is it the right file?")
        try:
            return PlainUnpickler(_Counted(file, on_bytes)).load()
        # Damaged opcodes end in almost any exception, and in absurd allocations.
        except Exception as error:
            why = " ".join(str(error).split())[:120] or type(error).__name__
            raise UserError(
                f"{path}: not a pickle of plain data ({why})", "download it again"
            ) from error


def plain_text(text: str) -> str:
    """A text of a pickle as Unicode: bytes that were no UTF-8 are Latin-1, as ``refer`` has it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        try:
            return text.encode("utf-8", "surrogateescape").decode("latin-1")
        except UnicodeEncodeError:  # a surrogate that no byte explains
            return text.encode("utf-8", "replace").decode("utf-8")
    return text
