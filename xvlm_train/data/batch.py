"""What both streams hand to the model: images, encoded once, and the concepts of them."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xvlm_train.data.augment import Drawn
from xvlm_train.data.augment_device import rand_augment_batch
from xvlm_train.data.rejects import Reject
from xvlm_train.data.transforms import normalise


@dataclass(frozen=True, slots=True, eq=False)
class HostText:
    """What shapes follow from; stays on the host when the batch moves to a device."""

    lengths: npt.NDArray[np.int64]
    """[B] tokens of each text."""
    labels: npt.NDArray[np.int64]
    """[B, M], as ``masked_labels``."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, HostText)
            and np.array_equal(self.lengths, other.lengths)
            and np.array_equal(self.labels, other.labels)
        )


@dataclass(slots=True)
class Batch:
    """I images and their B concepts; N is the number of patches, L of text places, M of mask slots.

    An image-text batch has I = B, ``image_index`` = 0 … B-1, an all-ones ``patch_mask``,
    whole-image boxes, ``whole_image`` all true and ``multi_grained`` false.
    """

    images: Tensor
    """[I, 3, R, R] uint8 as decoded; on the device (:meth:`to`) float32, normalised with CLIP's
    mean and standard deviation. Channels last in memory."""
    image_index: Tensor
    """[B] int64: the image each concept belongs to."""
    patch_mask: Tensor
    """[B, 1+N]: 1 for v_cls (place 0) and for each patch the concept's box touches, row by row."""
    text_ids: Tensor
    """[B, L] int64: [CLS] and the words, no [SEP], 0 where padded."""
    text_mask: Tensor
    """[B, L] int64: 1 for tokens, 0 for padding."""
    masked_ids: Tensor
    """[B, L] int64: the text after masking."""
    masked_positions: Tensor
    """[B, M] int64: the places to predict; unused slots hold 0."""
    masked_labels: Tensor
    """[B, M] int64: the tokens that stood there; unused slots hold -100."""
    boxes: Tensor
    """[B, 4] float32: (cx, cy, w, h) divided by image width and height."""
    whole_image: Tensor
    """[B] bool: the row is a whole image with its caption."""
    multi_grained: bool
    """Which stream: the box losses belong to the multi-grained one."""
    record_ids: list[str]
    """Manifest ids of the I images."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows and concepts that could not be used for this batch, by reason."""
    rejects: list[Reject] = field(default_factory=list)
    """Those of them that are rows."""
    fill: float = 1.0
    """Texts there are, as a share of those there is room for."""
    to_augment: dict[str, list[Drawn]] = field(default_factory=dict)
    """Operations that are left to the device, by record."""
    magnitude: int = 0
    """Of them, 0 to 10."""

    host: HostText = field(init=False, repr=False, compare=False)
    """Known without asking the device, where the batch was made on the host."""

    def __post_init__(self) -> None:
        # Copies: a tensor that a worker sends moves to other memory, and leaves its arrays behind.
        lengths, labels = self.text_mask.sum(1), self.masked_labels
        self.host = HostText(lengths.cpu().numpy().copy(), labels.cpu().numpy().copy())

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on the device that computes, its images normalised there.

        Bytes travel, a quarter of what floats would; arithmetic is the device's.
        """
        moved = copy(self)
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                setattr(moved, item.name, value.to(device, non_blocking=non_blocking))
        if self.images.dtype is torch.uint8:
            if self.to_augment:
                drawn = [self.to_augment.get(record, []) for record in self.record_ids]
                moved.images = rand_augment_batch(moved.images, drawn, self.magnitude)
            moved.images = normalise(moved.images)
        return moved

    def parts(self, count: int) -> list[Batch]:
        """The batch in at most ``count`` parts of about equally many images, with their concepts.

        On the host; ``skipped`` and ``rejects`` stay with the first part.
        """
        count = min(count, len(self.images))
        if count == 1:
            return [self]
        edges = [len(self.images) * n // count for n in range(count + 1)]
        made = []
        for first, end in pairwise(edges):
            rows = ((self.image_index >= first) & (self.image_index < end)).nonzero()[:, 0]
            values: dict[str, Any] = {
                item.name: value.index_select(0, rows)
                for item in fields(self)
                if isinstance(value := getattr(self, item.name), Tensor) and item.name != "images"
            }
            values |= {
                "images": self.images[first:end],
                "image_index": values["image_index"] - first,
            }
            ids = self.record_ids[first:end]
            if first:
                values |= {"skipped": {}, "rejects": []}
            made.append(replace(self, **values, record_ids=ids))
        return made
