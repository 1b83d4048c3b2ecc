"""Where Triton's kernels run: on NVIDIA's GPUs, where torch came with Triton."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

#: Builds of torch without GPUs come without it.
HAS_TRITON = find_spec("triton") is not None
#: Kernels run on the CPU, step by step: how tests see them.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_planned = False


def run_on(tensor: Tensor) -> bool:
    """Whether kernels take tensors where this one is."""
    if not HAS_TRITON:
        return False
    return INTERPRETED or _planned or (tensor.is_cuda and _able(tensor.device.index or 0))


@torch.compiler.assume_constant_result
def _able(gpu: int) -> bool:
    """Whether a GPU has what the kernels were written for: NVIDIA's, from Ampere on."""
    return torch.version.hip is None and torch.cuda.get_device_capability(gpu) >= (8, 0)


@contextmanager
def planned() -> Iterator[None]:
    """Meanwhile tensors without data go the way that those of a GPU do."""
    global _planned
    before, _planned = _planned, True
    try:
        yield
    finally:
        _planned = before
