"""The passes of a batch through text and cross-modal encoder, in as few calls as possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xvlm_train.data.batch import Batch
from xvlm_train.model.config import ComputeConfig
from xvlm_train.model.grouping import Ints, TextPlan, plan_texts, to_device
from xvlm_train.model.segments import Segment, VisionTokens
from xvlm_train.model.text import TextEncoder


@dataclass(frozen=True, slots=True)
class Fused:
    """Cross-modal states of a batch of B concepts where a head reads them."""

    pairs: Tensor
    """[3B, D]: [CLS] of pairs, (negative image, text), (image, negative text), B each."""
    boxes: Tensor | None
    """[B, D]: [CLS] of each text with its whole image."""
    masked: Tensor
    """[K, D] at the masked positions."""
    labels: Tensor
    """[K] int64: the tokens that stood there; -100 where a slot is not in use."""
    rows: Tensor
    """[K] int64: the concept whose text each is of."""


@dataclass(frozen=True, slots=True)
class GroupedTexts:
    """States of all texts of a batch, group by group of the plan."""

    plan: TextPlan
    clean: list[Tensor]
    """[n, L, D] each."""
    masked: list[Tensor]
    """[n, L, D] each, of the texts after masking."""
    masks: list[Tensor | None]
    """[n, L] each; none: no text of the group is shorter."""

    @classmethod
    def encode(cls, encoder: TextEncoder, batch: Batch, compute: ComputeConfig) -> GroupedTexts:
        """Text states of a batch, clean and masked."""
        plan = plan_texts(batch, compute)
        masks = [
            _fit(batch.text_mask.index_select(0, group.rows), group.length)
            if group.padded
            else None
            for group in plan.groups
        ]
        clean, masked = (
            [
                Segment(_fit(ids.index_select(0, group.rows), group.length), mask)
                for group, mask in zip(plan.groups, masks, strict=True)
            ]
            for ids in (batch.text_ids, batch.masked_ids)
        )
        if compute.joint_passes:
            merged, members = merge([*clean, *masked])
            states = unmerge(encoder.encode(merged), members)
            return cls(plan, states[: len(clean)], states[len(clean) :], masks)
        return cls(plan, encoder.encode(clean), encoder.encode(masked), masks)

    @property
    def cls_states(self) -> Tensor:
        """[B, D] of [CLS]."""
        return torch.cat([states[:, 0] for states in self.clean]).index_select(0, self.plan.places)

    def cross_modal(
        self,
        encoder: TextEncoder,
        batch: Batch,
        vision: VisionTokens,
        whole: VisionTokens | None,
        images: Tensor,
        texts: Tensor,
        compute: ComputeConfig,
    ) -> Fused:
        """All cross-modal passes of a batch.

        Args:
            encoder: the text encoder, whose later layers are the cross-modal ones.
            batch: its images and concepts.
            vision: a view for each concept.
            whole: a view of each whole image, for the boxes; none: no boxes are wanted.
            images: [B] the concept that is the negative image of each text.
            texts: [B] the concept that is the negative text of each image.
            compute: which work is saved.
        """
        plan = self.plan
        if whole is not None:
            vision = VisionTokens.cat([vision, whole])
        pairs, other_images, masked, boxes = [], [], [], []
        labels, targets, owners = [], [], []
        for group, clean, hidden, mask in zip(
            plan.groups, self.clean, self.masked, self.masks, strict=True
        ):
            rows = group.rows
            pairs.append(Segment(clean, mask, rows, _first(rows)))
            other_images.append(Segment(clean, mask, images.index_select(0, rows), _first(rows)))
            places = batch.masked_positions.index_select(0, rows).gather(1, group.slots)
            masked.append(Segment(hidden, mask, rows, places))
            labels.append(batch.masked_labels.index_select(0, rows).gather(1, group.slots))
            targets.append(group.targets)
            owners.append(rows[:, None].expand_as(group.slots))
            if whole is not None:
                view = batch.image_index.index_select(0, rows) + len(batch.text_ids)
                boxes.append(Segment(clean, mask, view, _first(rows)))
        other_texts, order = _negative_texts(batch, self, texts, compute)

        # In the original's order, and with its calls where no calls are joined.
        passes = [pairs, [*other_images, *other_texts], masked, boxes]
        if compute.joint_passes:
            passes = [[segment for part in passes for segment in part]]
        states: list[Tensor] = []
        for segments in passes:
            states += _fuse(encoder, segments, vision, compute) if segments else []

        def take(count: int) -> list[Tensor]:
            taken, states[:] = states[:count], states[count:]
            return taken

        def in_rows(parts: Sequence[Tensor]) -> Tensor:
            return torch.cat([part[:, 0] for part in parts]).index_select(0, plan.places)

        of_pairs, of_images = in_rows(take(len(pairs))), in_rows(take(len(other_images)))
        of_texts = torch.cat([part[:, 0] for part in take(len(other_texts))])
        if order is not None:
            of_texts = of_texts.index_select(0, order)
        of_masked = [
            part.flatten(0, 1).index_select(0, target)
            for part, target in zip(take(len(masked)), targets, strict=True)
        ]
        return Fused(
            pairs=torch.cat([of_pairs, of_images, of_texts]),
            boxes=in_rows(take(len(boxes))) if whole is not None else None,
            masked=torch.cat(of_masked),
            labels=_chosen(labels, targets),
            rows=_chosen(owners, targets),
        )


def _chosen(parts: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """The elements at some places of each part."""
    return torch.cat(
        [part.flatten().index_select(0, place) for part, place in zip(parts, places, strict=True)]
    )


def _negative_texts(
    batch: Batch, states: GroupedTexts, texts: Tensor, compute: ComputeConfig
) -> tuple[list[Segment], Tensor | None]:
    """Segments of (image, negative text) for all B images, and where each of them is found.

    Which texts were drawn is known to the device alone. Where their lengths are read, they join
    their groups; else each has room for the longest text of the batch.
    """
    plan, count = states.plan, len(texts)
    group_of = _drawn_groups(plan, texts, compute)
    if group_of is None:
        length = plan.longest
        every = torch.cat([_fit_states(part, length) for part in states.clean])
        drawn = plan.places.index_select(0, texts)
        masks = _fit(batch.text_mask, length).index_select(0, texts)
        rows = torch.arange(count, device=texts.device)
        return [Segment(every.index_select(0, drawn), masks, rows, _first(rows))], None
    members = [(group_of == group).nonzero()[0] for group in range(len(plan.groups))]
    *images, order = to_device([*members, np.argsort(np.concatenate(members))], texts.device)
    segments, start = [], 0
    for rows, clean, visible in zip(images, states.clean, states.masks, strict=True):
        if len(rows):
            drawn = plan.places.index_select(0, texts.index_select(0, rows)) - start
            mask = None if visible is None else visible.index_select(0, drawn)
            segments.append(Segment(clean.index_select(0, drawn), mask, rows, _first(rows)))
        start += len(clean)
    return segments, order


def _drawn_groups(plan: TextPlan, texts: Tensor, compute: ComputeConfig) -> Ints | None:
    """[B] the group of each image's negative text; none where reading it would wait."""
    if len(plan.groups) == 1:
        return plan.group_of * 0
    if not compute.reads_negatives(texts.device.type):
        return None
    # Without data (meta), as if the texts of the batch were drawn once each.
    return plan.group_of if texts.is_meta else plan.group_of[texts.numpy(force=True)]


def _fuse(
    encoder: TextEncoder, segments: Sequence[Segment], vision: VisionTokens, compute: ComputeConfig
) -> list[Tensor]:
    """The states of each segment's queries."""
    wanted = [segment.queries for segment in segments]
    if not compute.pruned_queries:
        segments = [Segment(s.tokens, s.mask, s.views) for s in segments]
    merged, members = merge(segments)
    fused = encoder.fuse(merged, vision, share_images=compute.share_images)
    states = unmerge(fused, members)
    if compute.pruned_queries:
        return states
    return [
        part if places is None else part.gather(1, places[..., None].expand(-1, -1, part.shape[-1]))
        for part, places in zip(states, wanted, strict=True)
    ]


def merge(segments: Sequence[Segment]) -> tuple[list[Segment], list[list[tuple[int, int]]]]:
    """Segments of one length and number of queries as one.

    Returns:
        Fewer segments, and for each the (index, rows) of those that it is made of.
    """
    alike: dict[tuple[int, int, bool, bool], list[int]] = {}
    for index, segment in enumerate(segments):
        whole = segment.queries is None
        kind = (segment.tokens.shape[1], segment.wanted, whole, segment.mask is None)
        alike.setdefault(kind, []).append(index)
    merged, members = [], []
    for indices in alike.values():
        parts = [segments[index] for index in indices]
        merged.append(
            Segment(
                tokens=torch.cat([part.tokens for part in parts]),
                mask=_cat([part.mask for part in parts]),
                views=_cat([part.views for part in parts]),
                queries=_cat([part.queries for part in parts]),
            )
        )
        members.append([(index, len(segments[index].tokens)) for index in indices])
    return merged, members


def unmerge(states: Sequence[Tensor], members: Sequence[list[tuple[int, int]]]) -> list[Tensor]:
    """The states of the segments that were merged, in their own order."""
    found: dict[int, Tensor] = {}
    for part, made_of in zip(states, members, strict=True):
        pieces = part.split([rows for _, rows in made_of])
        found |= {index: piece for (index, _), piece in zip(made_of, pieces, strict=True)}
    return [found[index] for index in range(len(found))]


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def _first(rows: Tensor) -> Tensor:
    """[R, 1]: place 0, [CLS], of each."""
    return torch.zeros_like(rows).unsqueeze(1)


def _fit(values: Tensor, length: int) -> Tensor:
    """[R, *] cut or filled up with zeros to [R, length]."""
    missing = length - values.shape[1]
    return F.pad(values, (0, missing)) if missing > 0 else values[:, :length]


def _fit_states(states: Tensor, length: int) -> Tensor:
    """[R, L, D] filled up to [R, length, D]."""
    return F.pad(states, (0, 0, 0, length - states.shape[1]))
