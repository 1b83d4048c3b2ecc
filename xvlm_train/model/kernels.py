"""Where Triton's kernels run: on GPUs, where torch came with Triton."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from torch import Tensor

#: Builds of torch without GPUs come without it.
HAS_TRITON = find_spec("triton") is not None
#: Kernels run on the CPU, step by step: how tests see them.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_planned = False


def run_on(tensor: Tensor) -> bool:
    """Whether kernels take tensors where this one is."""
    return HAS_TRITON and (tensor.is_cuda or INTERPRETED or _planned)


@contextmanager
def planned() -> Iterator[None]:
    """Meanwhile tensors without data go the way that those of a GPU do."""
    global _planned
    before, _planned = _planned, True
    try:
        yield
    finally:
        _planned = before
