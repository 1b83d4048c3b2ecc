"""Texts in segments of one length each, as the grouped computation gives them to the layers.

Segments lie one after the other in one flat row of tokens; only attention looks at a segment as
[rows, tokens]. So all that is not attention is one matrix product for all texts and passes, without
padding between segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class VisionTokens:
    """Vision tokens [v_cls; v_1 … v_N] of R views, whose patches belong to I <= R images.

    What is computed of a patch is computed once an image, however many views show it.
    """

    patches: Tensor
    """[I, N, C]."""
    image_index: Tensor
    """[R] int64: the image of each view."""
    cls: Tensor
    """[R, C]: v_cls of each view."""
    mask: Tensor | None
    """[R, 1+N]: the tokens that a text may attend to; none: all of them."""

    def __getitem__(self, rows: Tensor) -> VisionTokens:
        """Some views, of the same images."""
        mask = None if self.mask is None else self.mask[rows]
        return VisionTokens(self.patches, self.image_index[rows], self.cls[rows], mask)

    @classmethod
    def cat(cls, parts: Sequence[VisionTokens]) -> VisionTokens:
        """The views of several, which share their images."""
        masks = [part.mask for part in parts if part.mask is not None]
        if masks and len(masks) < len(parts):
            raise ValueError("some of the views have a mask and some have none")
        return cls(
            parts[0].patches,
            torch.cat([part.image_index for part in parts]),
            torch.cat([part.cls for part in parts]),
            torch.cat(masks) if masks else None,
        )

    def dense(self) -> Tensor:
        """[R, 1+N, C], patches repeated."""
        return torch.cat([self.cls.unsqueeze(1), self.patches[self.image_index]], dim=1)


@dataclass(frozen=True, slots=True)
class Segment:
    """Texts of one length: ids [R, L] for the text encoder, states [R, L, D] for the others."""

    tokens: Tensor
    """[R, L] int64 or [R, L, D]."""
    mask: Tensor | None = None
    """[R, L]: 1 on tokens; none: no text is shorter than L."""
    views: Tensor | None = None
    """[R] int64: the view each text looks at; none: text r looks at view r."""
    queries: Tensor | None = None
    """[R, Q] int64: the places whose state is wanted; none: all."""

    @property
    def wanted(self) -> int:
        """Q, the number of states of each text that are asked for."""
        return self.tokens.shape[1] if self.queries is None else self.queries.shape[1]


@dataclass(frozen=True, slots=True)
class SegmentCall:
    """What all layers of one call share: how the flat tokens divide into segments, and masks."""

    keys: list[tuple[int, int]]
    """(texts, tokens) of each segment."""
    queries: list[tuple[int, int]]
    """(texts, places) of each segment that are queries."""
    picked: Tensor | None
    """[sum of texts * places] int64: the queries among the flat tokens; none: all tokens."""
    visible: list[Tensor | None]
    """Boolean [R, 1, 1, L] of each segment, for self-attention."""
    vision: VisionTokens | None
    share_images: bool
    views: list[Tensor | None]
    seen: list[Tensor | None]
    """Boolean [R, 1, 1, 1+N] of each segment, for cross-attention."""
    wanted: list[Tensor | None]
    """Queries of each segment, for the last layer."""

    @classmethod
    def of(
        cls,
        segments: Sequence[Segment],
        vision: VisionTokens | None = None,
        *,
        share_images: bool = True,
    ) -> SegmentCall:
        """The call of all tokens of some segments, which look at ``vision`` if it is given."""
        shapes = [(segment.tokens.shape[0], segment.tokens.shape[1]) for segment in segments]
        seen: list[Tensor | None] = [None] * len(segments)
        if vision is not None and vision.mask is not None:
            masks = [
                vision.mask if segment.views is None else vision.mask.index_select(0, segment.views)
                for segment in segments
            ]
            seen = [_visible(mask) for mask in masks]
        return cls(
            keys=shapes,
            queries=shapes,
            picked=None,
            visible=[None if s.mask is None else _visible(s.mask) for s in segments],
            vision=vision,
            share_images=share_images,
            views=[segment.views for segment in segments],
            seen=seen,
            wanted=[segment.queries for segment in segments],
        )

    def pruned(self) -> SegmentCall:
        """The same call with only the wanted places as queries."""
        if all(queries is None for queries in self.wanted):
            return self
        places, queries, start = [], [], 0
        for (rows, length), wanted in zip(self.keys, self.wanted, strict=True):
            device = next(w for w in self.wanted if w is not None).device
            first = torch.arange(start, start + rows * length, length, device=device)
            chosen = torch.arange(length, device=device).expand(rows, -1)
            chosen = chosen if wanted is None else wanted
            places.append((first[:, None] + chosen).flatten())
            queries.append((rows, chosen.shape[1]))
            start += rows * length
        return replace(self, queries=queries, picked=torch.cat(places))

    @staticmethod
    def cut(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Flat [T, ...] as one [R, L, ...] a segment."""
        parts = flat.split([rows * length for rows, length in shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def _visible(mask: Tensor) -> Tensor:
    """[B, K] of 0/1 to boolean [B, 1, 1, K]. Place 0 is always 1, so no row attends to nothing."""
    return mask.bool()[:, None, None, :]
