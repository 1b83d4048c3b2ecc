"""What a process does that only builds: less memory, and less time spent on getting it."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from importlib.abc import MetaPathFinder
from typing import Any

#: glibc's names for when memory is mapped by itself, and given back.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 64 << 20


class _NoPandas(MetaPathFinder):
    """Says that pandas is not installed, unless it is imported already."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """Refuse pandas, leave the rest to others."""
        if fullname == "pandas":
            raise ModuleNotFoundError("not needed in a build", name=fullname)


def make_lean() -> None:
    """Set up this process for builds; call it before pyarrow has made its first array.

    Tables and arrays of a few MB come and go all the time. Given back to the system each time, they
    cost a page fault for every 4 KB, a tenth of a build; and pyarrow's own allocator keeps a second
    heap beside the C library's. And pyarrow imports pandas, where that is installed, to recognise
    its types: 40 MB and 0.3 s in each process, for types that do not occur here.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])  # pyarrow looks for pandas once, and remembers
    finally:
        sys.meta_path.remove(finder)
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT)
