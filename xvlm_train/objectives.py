"""The five losses of X-VLM (paper, section 3.2), pure functions of tensors.

Each loss is a local (sum, count). Over the ranks of a run it becomes ``world * sum / global
count``, so that the mean of gradients that DDP takes is the exact gradient of the global mean,
also when ranks hold different numbers of concepts, tokens or boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from xvlm_train.data.batch import Batch
from xvlm_train.model.config import Parity
from xvlm_train.model.xvlm import Outputs

CLEAN = Parity()


@dataclass(frozen=True, slots=True)
class Loss:
    """A rank's own part of a loss: the sum, and the number of terms the mean is over."""

    sum: Tensor
    count: Tensor


def compute_losses(
    outputs: Outputs, batch: Batch, *, config: Parity = CLEAN, groups: Tensor | None = None
) -> dict[str, Tensor]:
    """All losses of a batch as scalars, and ``total``, their plain sum.

    Keys: contrastive, matching, mlm, for the multi-grained stream also box_l1 and box_giou, total.
    With an initialised process group every rank must call it, each with its own batch of the same
    stream; the mean of a value over ranks is the loss of the joint batch.

    Args:
        outputs: of the model for ``batch``.
        batch: what the model saw.
        config: where to follow the original instead.
        groups: [B] labels; rows with equal labels count as matching in the contrastive loss.
    """
    parts = {
        "contrastive": contrastive_loss(
            outputs.image_features,
            outputs.text_features,
            outputs.temperature,
            groups=groups,
            encoder_gradient_scale=config.encoder_gradient_scale,
        ),
        "matching": matching_loss(outputs.matching_logits, outputs.matching_labels),
        "mlm": mlm_loss(outputs.mlm_logits, outputs.mlm_labels),
    }
    if outputs.predicted_boxes is not None:
        whole_image = None if config.whole_image_boxes else batch.whole_image
        parts["box_l1"], parts["box_giou"] = box_losses(
            outputs.predicted_boxes,
            batch.boxes,
            whole_image,
            degenerate=config.degenerate_giou,
        )
    losses = _global_means(parts, empty=config.no_region_rows)
    losses["total"] = torch.stack(list(losses.values())).sum()
    return losses


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
    groups: Tensor | None = None,
    encoder_gradient_scale: float = 1.0,
) -> Loss:
    """Symmetric cross entropy over the global batch (paper, equation 2).

    The rank's own rows (image to text) and own columns (text to image) against the features of all
    ranks, which may hold different numbers of concepts.

    Args:
        image_features, text_features: [B, E], L2-normalised; row b of both belongs together.
        temperature: scalar τ.
        groups: [B] labels; the target spreads evenly over the columns of equal label.
        encoder_gradient_scale: factor on the gradient to the features, not to τ.
    """
    if encoder_gradient_scale != 1:
        image_features = _ScaledGradient.apply(image_features, encoder_gradient_scale)
        text_features = _ScaledGradient.apply(text_features, encoder_gradient_scale)
    rows, width = image_features.shape
    sizes = _sizes_over_ranks(image_features)
    joint = gather_rows(torch.cat([image_features, text_features], dim=1), sizes)
    all_images, all_texts = joint.split(width, dim=1)
    with torch.autocast(image_features.device.type, enabled=False):
        to_text = image_features @ all_texts.T / temperature
        to_image = text_features @ all_images.T / temperature
    if groups is None:
        first = sum(sizes[: _rank()])
        target = torch.arange(first, first + rows, device=to_text.device)
    else:
        everyone = gather_rows(groups.to(torch.int64)[:, None], sizes)[:, 0]
        same = (groups[:, None] == everyone[None, :]).float()
        target = same / same.sum(1, keepdim=True)
    both = F.cross_entropy(to_text, target, reduction="sum") + F.cross_entropy(
        to_image, target, reduction="sum"
    )
    return Loss(both / 2, _count(rows, both))


def matching_loss(logits: Tensor, labels: Tensor) -> Loss:
    """Cross entropy of logits [R, 2]; labels [R] are 1, 0, or -100 to leave a row out."""
    return Loss(F.cross_entropy(logits.float(), labels, reduction="sum"), (labels >= 0).sum())


def mlm_loss(logits: Tensor, labels: Tensor) -> Loss:
    """Cross entropy of logits [B, M, V]; labels [B, M], -100 in unused slots."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
    return Loss(losses, (labels >= 0).sum())


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


def _global_means(parts: dict[str, Loss], empty: str) -> dict[str, Tensor]:
    """``world * sum / global count`` of each; a loss without any term is zero, or 0/0."""
    counts = torch.stack([part.count for part in parts.values()]).float()
    if _world() > 1:
        dist.all_reduce(counts)
    if empty == "zero":
        counts = counts.clamp(min=1)
    means = torch.stack([part.sum for part in parts.values()]) * _world() / counts
    return dict(zip(parts, means.unbind(), strict=True))


def _count(rows: int, like: Tensor) -> Tensor:
    return torch.full((), rows, dtype=torch.int64, device=like.device)


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world() > 1 else 0
