"""Which texts of a batch are computed together: as few padding tokens as a few groups allow.

Everything here is known on the host before the step starts, so that no shape depends on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xvlm_train.data.batch import Batch
from xvlm_train.model.config import ComputeConfig

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TextGroup:
    """n texts of similar length."""

    rows: Tensor
    """[n] int64: their places in the batch."""
    length: int
    """L: tokens each is padded to."""
    padded: bool
    """Whether any of them is shorter than L."""
    slots: Tensor
    """[n, M] int64: mask slots to look at, those in use first."""
    targets: Tensor
    """[k] int64: the slots in use, as places in the flat [n * M]."""


@dataclass(frozen=True, slots=True)
class TextPlan:
    """All B texts of a batch in groups of growing length."""

    groups: tuple[TextGroup, ...]
    order: Tensor
    """[B] int64: the rows of all groups, one after the other."""
    places: Tensor
    """[B] int64: the place of each row in ``order``; its inverse."""
    group_of: Ints
    """[B], on the host: the group of each row."""

    @property
    def longest(self) -> int:
        """L of the last group."""
        return self.groups[-1].length


def plan_texts(batch: Batch, compute: ComputeConfig) -> TextPlan:
    """The groups of a batch, with indices on its device; ``compute`` says how many they may be."""
    host = batch.host
    device = batch.text_ids.device
    used = host.labels >= 0
    if not compute.masked_only:
        used = np.ones_like(used)
    if compute.length_groups:
        multiple = compute.multiple(device.type)
        rounded = -(-host.lengths // multiple) * multiple
        limits = group_limits(rounded, compute.length_groups)
        group_of = np.searchsorted(limits, rounded).astype(np.int64)
    else:
        limits = [max(compute.pad_to, int(batch.text_ids.shape[1]))]
        group_of = np.zeros(len(host.lengths), dtype=np.int64)
    # Slots in use come first; the sort is stable, so that they keep their order.
    slot_order = np.argsort(~used, axis=1, kind="stable").astype(np.int64)
    arrays: list[Ints] = []
    for group in range(len(limits)):
        rows = np.flatnonzero(group_of == group)
        most = max(1, int(used[rows].sum(1).max()))
        slots = slot_order[rows, :most]
        arrays += [rows, slots, np.flatnonzero(np.take_along_axis(used[rows], slots, 1))]
    order = np.concatenate(arrays[::3])
    arrays += [order, np.argsort(order)]
    moved = to_device(arrays, device)
    groups = tuple(
        TextGroup(
            rows=moved[3 * group],
            length=limit,
            padded=bool((host.lengths[arrays[3 * group]] < limit).any()),
            slots=moved[3 * group + 1],
            targets=moved[3 * group + 2],
        )
        for group, limit in enumerate(limits)
    )
    return TextPlan(groups, moved[-2], moved[-1], group_of)


def group_limits(lengths: Ints, groups: int) -> list[int]:
    """Longest length of each of at most ``groups`` groups, growing, with the least padding in all.

    Args:
        lengths: [B], at least 1 each.
        groups: at least 1.
    """
    distinct, counts = np.unique(lengths, return_counts=True)
    if len(distinct) <= groups:
        return [int(length) for length in distinct]
    # best[j]: least cost of the j shortest lengths in the groups so far; a group of the lengths
    # i … j-1 costs its number of texts times the last of them.
    below = np.concatenate([[0], np.cumsum(counts)])
    size = len(distinct)
    cost = np.full((size + 1, size + 1), np.inf)
    for j in range(1, size + 1):
        cost[:j, j] = (below[j] - below[:j]) * distinct[j - 1]
    best, cuts = cost[0], []
    for _ in range(groups - 1):
        total = best[:, None] + cost
        cuts.append(total.argmin(0))
        best = total.min(0)
    end, limits = size, []
    for cut in reversed(cuts):
        limits.append(int(distinct[end - 1]))
        end = int(cut[end])
    return [int(distinct[end - 1]), *reversed(limits)]


def to_device(arrays: Sequence[Ints], device: torch.device) -> list[Tensor]:
    """Small index arrays as tensors on ``device``, in one copy that does not wait for it."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        flat = flat.pin_memory()
    parts = flat.to(device, non_blocking=True).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
