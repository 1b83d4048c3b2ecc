"""The operations of :mod:`xvlm_train.data.augment` on a batch, where its images are.

Which operations an image gets was drawn on the host, so nothing here asks the device. Lookup
tables give the same numbers as on the host; interpolation and the filter round differently.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from xvlm_train.data.augment import (
    GEOMETRIC,
    GREY,
    Drawn,
    affine_matrix,
    enhancement,
    sharpness_kernel,
)


def rand_augment_batch(images: Tensor, drawn: Sequence[Sequence[Drawn]], magnitude: int) -> Tensor:
    """Carry out the operations drawn for each image, one after the other.

    Args:
        images: ``[I, 3, R, R]`` uint8, on any device.
        drawn: for each image.
        magnitude: of all operations, 0 to 10.

    Returns:
        ``[I, 3, R, R]`` float32 of whole numbers from 0 to 255.
    """
    out = images.float()
    for turn in range(max(map(len, drawn), default=0)):
        wanted: dict[str, list[int]] = {}
        for i, operations in enumerate(drawn):
            if turn < len(operations) and operations[turn][0] != "Identity":
                wanted.setdefault(operations[turn][0], []).append(i)
        moved = {i: drawn[i][turn] for name in GEOMETRIC for i in wanted.pop(name, ())}
        if moved:
            places = _places(list(moved), out.device)
            part = _affine(out.index_select(0, places), list(moved.values()), magnitude / 10)
            out.index_copy_(0, places, part)
        for name, numbers in wanted.items():
            places = _places(numbers, out.device)
            part = _COLOUR[name](out.index_select(0, places), magnitude / 10)
            out.index_copy_(0, places, part)
    return out


def _places(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers).to(device, non_blocking=True)


def _affine(images: Tensor, drawn: Sequence[Drawn], strength: float) -> Tensor:
    side = images.shape[-1]
    matrices = np.stack([np.eye(3)] * len(drawn))
    for matrix, (name, sign) in zip(matrices, drawn, strict=True):
        matrix[:2] = affine_matrix(name, strength, sign, side)
    # From pixels to pixels, there; from [-1, 1] to [-1, 1] the other way, here.
    scale = np.array([[2 / (side - 1), 0, -1], [0, 2 / (side - 1), -1], [0, 0, 1]])
    inverse = scale @ np.linalg.inv(matrices) @ np.linalg.inv(scale)
    theta = torch.from_numpy(inverse[:, :2].astype(np.float32)).to(images.device, non_blocking=True)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=True)
    moved = functional.grid_sample(images - GREY, grid, align_corners=True)
    return (moved + GREY).round_().clamp_(0, 255)


def _auto_contrast(images: Tensor, strength: float) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    width = (high - low).double()
    # Not 255 / width: torch would take a reciprocal, and round twice.
    scale = torch.full_like(width, 255) / width.clamp(min=1)
    stretched = ((images - low).double() * scale).floor()
    return torch.where(width > 0, stretched.float(), images)


def _equalize(images: Tensor, strength: float) -> Tensor:
    values = images.long().flatten(0, 1).flatten(1)  # [I * 3, pixels]
    counts = torch.zeros(len(values), 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, values, torch.ones_like(values))
    highest = counts.gather(1, values.amax(1, keepdim=True))
    step = (values.shape[1] - highest) // 255
    below = counts.cumsum(1) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(0, 255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(1, values).view_as(images).float()


def _brightness(images: Tensor, strength: float) -> Tensor:
    return (images.double() * enhancement(strength)).clamp(0, 255).floor().float()


def _sharpness(images: Tensor, strength: float) -> Tensor:
    kernel = torch.from_numpy(sharpness_kernel(strength)).to(images.device, non_blocking=True)
    filtered = functional.conv2d(images, kernel.expand(3, 1, 3, 3), groups=3)
    out = images.clone()
    out[:, :, 1:-1, 1:-1] = filtered.round_().clamp_(0, 255)
    return out


_COLOUR = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
}
