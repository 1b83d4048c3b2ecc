"""What both streams hand to the model: images, encoded once, and the concepts of them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from xvlm_train.data.augment import Drawn
from xvlm_train.data.augment_device import rand_augment_batch
from xvlm_train.data.transforms import normalise


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
    fill: float = 1.0
    """Texts there are, as a share of those there is room for."""
    to_augment: dict[str, list[Drawn]] = field(default_factory=dict)
    """Operations that are left to the device, by record."""
    magnitude: int = 0
    """Of them, 0 to 10."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The same batch on the device that computes, its images normalised there.

        Bytes travel, a quarter of what floats would; arithmetic is the device's.
        """
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        if self.images.dtype is torch.uint8:
            images = moved["images"]
            if self.to_augment:
                drawn = [self.to_augment.get(record, []) for record in self.record_ids]
                images = rand_augment_batch(images, drawn, self.magnitude)
            moved["images"] = normalise(images)
        return replace(self, **moved)
