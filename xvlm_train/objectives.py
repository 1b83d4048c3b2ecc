"""The five losses of X-VLM (paper, section 3.2), pure functions of tensors.

Each loss is a local (sum, count). Over the ranks of a run it becomes ``world * sum / global
count``, so that the mean of gradients that DDP takes is the exact gradient of the global mean,
also when ranks hold different numbers of concepts, tokens or boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from xvlm_train.data.batch import Batch
from xvlm_train.model.config import Parity, SameText
from xvlm_train.model.xvlm import Outputs, full_precision

CLEAN = Parity()


@dataclass(frozen=True, slots=True)
class Loss:
    """A rank's own part of a loss: the sum, and the number of terms the mean is over."""

    sum: Tensor
    count: Tensor


@dataclass(frozen=True, slots=True)
class Whole:
    """What the parts of one batch have to know of all of it (:func:`whole_of`)."""

    parts: int
    counts: Tensor
    """[losses] float32: terms of each loss over all parts and ranks."""
    contrastive: Tensor
    """Scalar: the contrastive loss of all parts and ranks."""
    gradients: list[tuple[Tensor, Tensor]]
    """Of the contrastive loss with respect to each part's image and text features, [B, E] each."""
    temperature_gradient: Tensor
    """Scalar: with respect to τ."""


def compute_losses(
    outputs: Outputs,
    batch: Batch,
    *,
    config: Parity = CLEAN,
    keys: Tensor | None = None,
    part: tuple[int, Whole] | None = None,
) -> dict[str, Tensor]:
    """All losses of a batch as scalars, and ``total``, their plain sum.

    Keys: contrastive, matching, mlm, for the multi-grained stream also box_l1 and box_giou, total.
    With an initialised process group every rank must call it, each with its own batch of the same
    stream; the mean of a value over ranks is the loss of the joint batch.

    Args:
        outputs: of the model for ``batch``.
        batch: what the model saw.
        config: where to follow the original instead.
        keys: of :func:`concept_keys`, or any other labels [B, K]; what they mean to the contrastive
            loss is ``config.same_text_negatives``.
        part: the batch is this part of a whole; the sum over parts of a value is then the whole's,
            and so is the sum of gradients.
    """
    if part is None:
        contrastive = contrastive_loss(
            outputs.image_features,
            outputs.text_features,
            outputs.temperature,
            keys=keys,
            same=config.same_text_negatives,
            encoder_gradient_scale=config.encoder_gradient_scale,
        )
    else:
        contrastive = _cached_contrastive(outputs, *part)
    sums = {
        "contrastive": contrastive,
        "matching": matching_loss(outputs.matching_logits, outputs.matching_labels),
        "mlm": mlm_loss(outputs.mlm_logits, outputs.mlm_labels),
    }
    if outputs.predicted_boxes is not None:
        whole_image = None if config.whole_image_boxes else batch.whole_image
        sums["box_l1"], sums["box_giou"] = box_losses(
            outputs.predicted_boxes,
            batch.boxes,
            whole_image,
            degenerate=config.degenerate_giou,
        )
    if part is None:
        counts = _over_ranks(torch.stack([loss.count for loss in sums.values()]))
    else:
        counts = part[1].counts
    losses = _means([loss.sum for loss in sums.values()], counts, empty=config.no_region_rows)
    if part is not None:  # it is no sum of terms
        losses[0] = contrastive.sum
    named = dict(zip(sums, losses, strict=True))
    named["total"] = torch.stack(losses).sum()
    return named


def whole_of(
    parts: Sequence[tuple[Batch, Tensor, Tensor]],
    temperature: Tensor,
    keys: Sequence[Tensor | None],
    config: Parity = CLEAN,
) -> Whole:
    """The contrastive loss over all parts of a batch, and the number of terms of every loss.

    With it, parts that are computed one after the other add up to the gradient of the whole batch,
    though each of them alone knows only its own columns: features of all parts are cached without
    a graph, and the loss is differentiated with respect to them (arXiv 2101.06983). Hard
    negatives are still drawn within a part, so accumulation does change the matching loss.

    Args:
        parts: batch, image features and text features of each; on every rank equally many.
        temperature: scalar τ.
        keys: of each part, as in :func:`compute_losses`.
        config: where to follow the original instead.
    """
    images = torch.cat([part[1] for part in parts]).detach().requires_grad_()
    texts = torch.cat([part[2] for part in parts]).detach().requires_grad_()
    heat = temperature.detach().requires_grad_()
    given = [key for key in keys if key is not None]
    with torch.enable_grad():
        loss = contrastive_loss(
            images,
            texts,
            heat,
            keys=torch.cat(given) if given else None,
            same=config.same_text_negatives,
            encoder_gradient_scale=config.encoder_gradient_scale,
        )
        counts = _over_ranks(
            torch.stack(
                [
                    _counts(batch, key, config)
                    for (batch, _, _), key in zip(parts, keys, strict=True)
                ]
            ).sum(0)
        )
        (value,) = _means([loss.sum], counts[:1], empty=config.no_region_rows)
        of_images, of_texts, of_heat = torch.autograd.grad(value, (images, texts, heat))
    sizes = [len(part[1]) for part in parts]
    gradients = list(zip(of_images.split(sizes), of_texts.split(sizes), strict=True))
    return Whole(len(parts), counts, value.detach(), gradients, of_heat)


def _cached_contrastive(outputs: Outputs, place: int, whole: Whole) -> Loss:
    """A part's share of the contrastive loss: value and gradient of the whole's."""
    of_images, of_texts = whole.gradients[place]
    carrier = (
        (outputs.image_features * of_images).sum()
        + (outputs.text_features * of_texts).sum()
        + outputs.temperature * whole.temperature_gradient / whole.parts
    )
    value = whole.contrastive / whole.parts + (carrier - carrier.detach())
    return Loss(value, whole.counts[0])


def _counts(batch: Batch, keys: Tensor | None, config: Parity) -> Tensor:
    """Terms of each loss of a batch, in the order of :func:`compute_losses`."""
    rows = len(batch.text_ids)
    if keys is None:
        candidates = torch.full((), 2 * rows * (rows > 1), device=batch.text_ids.device)
    else:
        candidates = 2 * (~same_pairs(keys)).any(1).sum()
    found = [_count(rows, candidates), rows + candidates, (batch.masked_labels >= 0).sum()]
    if batch.multi_grained:
        boxes = (~batch.whole_image.bool()).sum()
        found += [_count(rows, boxes) if config.whole_image_boxes else boxes] * 2
    return torch.stack(found)


@torch.no_grad()
def concept_keys(batch: Batch, part: int = 0) -> Tensor:
    """Labels [B, 2] of what each concept says and of what it shows; equal only for equals.

    Two concepts are the same in their text, or in their view: one image and the same patches. The
    other is then no negative for either, though the original takes it for one.

    Args:
        batch: or a part of one.
        part: its place, so that images of other parts are others.
    """
    longest = max(batch.text_ids.shape[1], 1 + batch.patch_mask.shape[1])
    powers = torch.from_numpy(_powers(longest)).to(batch.text_ids.device, non_blocking=True)
    text = (batch.text_ids * powers[: batch.text_ids.shape[1]]).sum(1)
    patches = (batch.patch_mask.long() * powers[1 : 1 + batch.patch_mask.shape[1]]).sum(1)
    image = (batch.image_index + 1 + (part << 24) + (_rank() << 40)) * powers[1]
    return torch.stack([text, patches ^ image], dim=1)


@cache
def _powers(count: int) -> npt.NDArray[np.int64]:
    """[count], of a polynomial modulo 2^64 in the places of tokens or patches."""
    return np.cumprod(np.full(count, 0x9E3779B97F4A7C15, dtype=np.uint64)).astype(np.int64)


def same_pairs(keys: Tensor) -> Tensor:
    """[B, B] boolean: pairs with an equal key [B, K]; the diagonal is among them."""
    return (keys[:, None] == keys[None]).any(2)


@torch.no_grad()
def matching_accuracy(outputs: Outputs) -> Tensor:
    """Share of this rank's matching rows that are judged right; chance by always "no" is 2/3."""
    valid = outputs.matching_labels >= 0
    right = (outputs.matching_logits.argmax(1) == outputs.matching_labels) & valid
    return right.sum() / valid.sum()


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    temperature: Tensor,
    *,
    keys: Tensor | None = None,
    same: SameText = "keep",
    encoder_gradient_scale: float = 1.0,
) -> Loss:
    """Symmetric cross entropy over the global batch (paper, equation 2).

    The rank's own rows (image to text) and own columns (text to image) against the features of all
    ranks, which may hold different numbers of concepts.

    Args:
        image_features, text_features: [B, E], L2-normalised; row b of both belongs together.
        temperature: scalar τ.
        keys: [B, K] labels; two concepts are the same where one of their labels is equal.
        same: other concepts that are the same are negatives (``keep``), left out (``ignore``), or
            positives over which the target spreads evenly (``positive``).
        encoder_gradient_scale: factor on the gradient to the features, not to τ.
    """
    if encoder_gradient_scale != 1:
        image_features = _ScaledGradient.apply(image_features, encoder_gradient_scale)
        text_features = _ScaledGradient.apply(text_features, encoder_gradient_scale)
    rows, width = image_features.shape
    sizes = _sizes_over_ranks(image_features)
    joint = gather_rows(torch.cat([image_features, text_features], dim=1), sizes)
    all_images, all_texts = joint.split(width, dim=1)
    with full_precision(image_features):
        to_text = image_features @ all_texts.T / temperature
        to_image = text_features @ all_images.T / temperature
    first = sum(sizes[: _rank()])
    target = torch.arange(first, first + rows, device=to_text.device)
    if keys is not None and same != "keep":
        everyone = gather_rows(keys.to(torch.int64), sizes)
        alike = (keys[:, None] == everyone[None]).any(2)
        if same == "positive":
            target = alike.float() / alike.sum(1, keepdim=True)
        else:
            others = alike.scatter(1, target[:, None], False)
            to_text = to_text.masked_fill(others, float("-inf"))
            to_image = to_image.masked_fill(others, float("-inf"))
    both = F.cross_entropy(to_text, target, reduction="sum") + F.cross_entropy(
        to_image, target, reduction="sum"
    )
    return Loss(both / 2, _count(rows, both))


def matching_loss(logits: Tensor, labels: Tensor) -> Loss:
    """Cross entropy of logits [R, 2]; labels [R] are 1, 0, or -100 to leave a row out."""
    return Loss(F.cross_entropy(logits.float(), labels, reduction="sum"), (labels >= 0).sum())


def mlm_loss(logits: Tensor, labels: Tensor) -> Loss:
    """Cross entropy of logits [K, V]; labels [K], -100 in unused slots."""
    return Loss(F.cross_entropy(logits.float(), labels, reduction="sum"), (labels >= 0).sum())


def box_losses(
    predicted: Tensor,
    target: Tensor,
    whole_image: Tensor | None = None,
    *,
    degenerate: str = "row",
) -> tuple[Loss, Loss]:
    """L1, summed over the four coordinates, and 1 - GIoU, of the rows that are no whole image.

    Args:
        predicted, target: [B, 4] as (cx, cy, w, h).
        whole_image: [B]: rows to leave out; none = all rows count.
        degenerate: a box with negative width or height zeroes the GIoU loss of its ``row`` only,
            or, as in the original, of the whole ``batch`` (rows left out are looked at too).
    """
    predicted, target = predicted.float(), target.float()
    corners, target_corners = to_corners(predicted), to_corners(target)
    broken = is_degenerate(corners) | is_degenerate(target_corners)
    if degenerate == "batch":
        broken = broken.any().expand_as(broken)
    counted = torch.ones_like(broken) if whole_image is None else ~whole_image.bool()
    l1 = (predicted - target).abs().sum(1).where(counted, 0)
    giou = (1 - generalised_iou(corners, target_corners)).where(counted & ~broken, 0)
    return Loss(l1.sum(), counted.sum()), Loss(giou.sum(), counted.sum())


def to_corners(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) to (left, top, right, bottom), [B, 4], not clipped to the image."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([centre - half, centre + half], dim=1)


def is_degenerate(corners: Tensor) -> Tensor:
    """[B]: right < left or bottom < top."""
    return (corners[:, 2:] < corners[:, :2]).any(1)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU [B] of corner boxes [B, 4], row by row (arXiv 1902.09630); finite for empty boxes."""
    tiny = torch.finfo(a.dtype).tiny
    overlap = _area(torch.cat([a[:, :2].max(b[:, :2]), a[:, 2:].min(b[:, 2:])], dim=1))
    hull = _area(torch.cat([a[:, :2].min(b[:, :2]), a[:, 2:].max(b[:, 2:])], dim=1))
    union = _area(a) + _area(b) - overlap
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _area(corners: Tensor) -> Tensor:
    sides = (corners[:, 2:] - corners[:, :2]).clamp(min=0)
    return sides[:, 0] * sides[:, 1]


def gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """Rows of all ranks in rank order; the gradient of a row is summed over the ranks."""
    return rows if len(sizes) == 1 else _GatherRows.apply(rows, sizes)


class _GatherRows(torch.autograd.Function):
    """All-gather of [n_rank, ...], padded to the largest rank on the way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        first = sum(ctx.sizes[: _rank()])
        return gradient[first : first + ctx.sizes[_rank()]], None


class _ScaledGradient(torch.autograd.Function):
    """Identity forward; the gradient times a constant."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


def _sizes_over_ranks(rows: Tensor) -> list[int]:
    """Rows of each rank.

    Goes over the CPU where the process group can (``cpu:gloo,cuda:nccl``), so that the device is
    not waited for.
    """
    if _world() == 1:
        return [len(rows)]
    device = "cpu" if "cpu:" in dist.get_backend_config() else rows.device
    own = torch.tensor([len(rows)], device=device)
    sizes = [torch.empty_like(own) for _ in range(_world())]
    dist.all_gather(sizes, own)
    return [int(size) for size in sizes]


def _over_ranks(counts: Tensor) -> Tensor:
    counts = counts.float()
    if _world() > 1:
        dist.all_reduce(counts)
    return counts


def _means(sums: Sequence[Tensor], counts: Tensor, empty: str) -> list[Tensor]:
    """``world * sum / global count`` of each; a loss without any term is zero, or 0/0."""
    if empty == "zero":
        counts = counts.clamp(min=1)
    return list((torch.stack(list(sums)) * _world() / counts).unbind())


def _count(rows: int, like: Tensor) -> Tensor:
    return torch.full((), rows, dtype=torch.int64, device=like.device)


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world() > 1 else 0
