"""The passes of a batch with its texts packed: one after the other, without padding.

The same passes as in :mod:`.passes`, each encoder called once. Which texts are drawn as negatives
is known to the device alone, so each of these has room for the longest text of the batch; all other
tokens are real ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xvlm_train.data.batch import Batch
from xvlm_train.model.config import ComputeConfig
from xvlm_train.model.grouping import to_device
from xvlm_train.model.packed_attention import Layout, PackedVision
from xvlm_train.model.passes import Fused
from xvlm_train.model.segments import VisionTokens
from xvlm_train.model.text import TextEncoder


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the B texts of T tokens lie, and their K mask slots in use; int64, on the device."""

    longest: int
    """Tokens of the longest text."""
    most_slots: int
    """At least the slots of any text; M."""
    tokens: Tensor
    """[T]: their places in the flat [B * L] of the batch."""
    places: Tensor
    """[T]: of each token in its text."""
    starts: Tensor
    """[B]"""
    lengths: Tensor
    """[B]"""
    slots: Tensor
    """[K]: their places in the flat [B * M] of the batch."""
    slot_rows: Tensor
    """[K]: the text of each."""
    slot_starts: Tensor
    """[B]: the first slot of each text among the K."""
    slot_counts: Tensor
    """[B]"""


@dataclass(frozen=True, slots=True)
class PackedTexts:
    """States of all texts of a batch, packed."""

    plan: _Plan
    clean: Tensor
    """[T, D]"""
    masked: Tensor
    """[T, D], of the texts after masking."""

    @classmethod
    def encode(cls, encoder: TextEncoder, batch: Batch, compute: ComputeConfig) -> PackedTexts:
        """Both kinds of states, in one call of the text encoder."""
        plan = _plan(batch, compute)
        ids = torch.cat(
            [
                part.flatten().index_select(0, plan.tokens)
                for part in (batch.text_ids, batch.masked_ids)
            ]
        )
        total = len(plan.tokens)
        layout = _own_keys(
            torch.cat([plan.starts, plan.starts + total]), plan.lengths.repeat(2), plan.longest
        )
        clean, masked = encoder.encode_packed(ids, plan.places.repeat(2), layout).split(total)
        return cls(plan, clean, masked)

    @property
    def cls_states(self) -> Tensor:
        """[B, D] of [CLS]."""
        return self.clean.index_select(0, self.plan.starts)

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
        """See :meth:`.passes.GroupedTexts.cross_modal`."""
        plan, device = self.plan, images.device
        count, total = len(plan.starts), len(plan.tokens)
        own = torch.arange(count, device=device)
        # Rows: pairs, (negative image, text), (image, negative text), masked texts, whole images.
        tokens = [self.clean, self.clean, self._drawn(texts), self.masked]
        room = count * plan.longest
        starts = [
            plan.starts,
            plan.starts + total,
            own * plan.longest + 2 * total,
            plan.starts + (2 * total + room),
        ]
        lengths = [plan.lengths, plan.lengths, plan.lengths.index_select(0, texts), plan.lengths]
        views = [own, images, own, own]
        slots = (
            starts[3].index_select(0, plan.slot_rows) + batch.masked_positions.flatten()[plan.slots]
        )
        picked = [*starts[:3], slots]
        masked = len(plan.slots)
        first = [own, own + count, own + 2 * count, plan.slot_starts + 3 * count]
        wanted = [torch.ones_like(own)] * 3 + [plan.slot_counts]
        if whole is not None:
            vision = VisionTokens.cat([vision, whole])
            tokens.append(self.clean)
            starts.append(plan.starts + (3 * total + room))
            lengths.append(plan.lengths)
            views.append(batch.image_index + count)
            picked.append(starts[4])
            first.append(own + (3 * count + masked))
            wanted.append(wanted[0])
        all_lengths, all_views = torch.cat(lengths), torch.cat(views)
        to_texts = _own_keys(torch.cat(starts), all_lengths, plan.longest)
        seen = _images(vision, all_views, to_texts)
        queries, counts = torch.cat(first).int(), torch.cat(wanted).int()
        last = tuple(
            layout._replace(
                query_starts=queries, query_lengths=counts, most_queries=plan.most_slots
            )
            for layout in (to_texts, seen.layout)
        )
        states = encoder.fuse_packed(
            torch.cat(tokens), to_texts, seen, torch.cat(picked), (last[0], last[1])
        )
        return Fused(
            pairs=states[: 3 * count],
            boxes=None if whole is None else states[3 * count + masked :],
            masked=states[3 * count : 3 * count + masked],
            labels=batch.masked_labels.flatten().index_select(0, plan.slots),
            rows=plan.slot_rows,
        )

    def _drawn(self, texts: Tensor) -> Tensor:
        """[B * longest, D] states of drawn texts, each with its last token over and over."""
        plan = self.plan
        step = torch.arange(plan.longest, device=texts.device)
        last = plan.lengths.index_select(0, texts)[:, None] - 1
        places = plan.starts.index_select(0, texts)[:, None] + torch.minimum(step, last)
        return self.clean.index_select(0, places.flatten())


def _plan(batch: Batch, compute: ComputeConfig) -> _Plan:
    host, width = batch.host, batch.text_ids.shape[1]
    used = host.labels >= 0 if compute.masked_only else np.ones_like(host.labels, dtype=bool)
    rows, places = np.nonzero(np.arange(width) < host.lengths[:, None])
    slot_rows, slot_places = np.nonzero(used)
    counts = used.sum(1).astype(np.int64)
    arrays = [
        rows * width + places,
        places,
        np.cumsum(host.lengths) - host.lengths,
        host.lengths,
        slot_rows * used.shape[1] + slot_places,
        slot_rows,
        np.cumsum(counts) - counts,
        counts,
    ]
    moved = to_device(arrays, batch.text_ids.device)
    return _Plan(int(host.lengths.max()), used.shape[1], *moved)


def _own_keys(starts: Tensor, lengths: Tensor, longest: int) -> Layout:
    """Each text looks at its own tokens."""
    rows = torch.arange(len(starts) + 1, device=starts.device, dtype=torch.int32)
    starts, lengths = starts.int(), lengths.int()
    # Batches of all lengths run the same kernels, and need the same graphs.
    most = max(64, longest) if starts.is_cuda else longest
    return Layout(starts, lengths, starts, lengths, rows[:-1], rows[:-1], rows, most, most)


def _images(vision: VisionTokens, views: Tensor, texts: Layout) -> PackedVision:
    """Each text looks at the view it is given."""
    images, patches, width = vision.patches.shape
    groups = vision.image_index.index_select(0, views)
    sorted_groups, order = groups.sort(stable=True)
    bounds = torch.arange(images + 1, device=views.device)
    layout = Layout(
        texts.query_starts,
        texts.query_lengths,
        key_starts=(bounds[:-1] * patches).int(),
        key_lengths=torch.full_like(bounds[:-1], patches, dtype=torch.int32),
        groups=groups.int(),
        order=order.int(),
        row_starts=torch.searchsorted(sorted_groups, bounds, out_int32=True),
        most_queries=texts.most_queries,
        most_keys=patches + 1,
        mask=None if vision.mask is None else vision.mask.to(torch.uint8),
        mask_rows=None if vision.mask is None else views.int(),
    )
    return PackedVision(vision.patches.reshape(-1, width), vision.cls, views, layout)
