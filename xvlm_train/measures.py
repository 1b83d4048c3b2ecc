"""Held-out measures and their chance levels, as pure functions of features and boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

RECALL_AT = (1, 5, 10)


def ranks_of_best(similarity: Tensor, positive: Tensor) -> Tensor:
    """For each row, how many wrong columns come before its best right one; ties count half.

    Half, so that a model whose features are all equal lands in the middle and not in front. What is
    not a number comes before everything that is one, and behind where it is the right one's.

    Args:
        similarity: [Q, C].
        positive: [Q, C] bool, at least one true in each row.

    Returns:
        [Q] float; a hit at k is a rank below k.
    """
    best = similarity.masked_fill(~positive, -math.inf).amax(1, keepdim=True)
    wrong = ~positive
    before = (~(similarity <= best) & wrong).sum(1)
    level = ((similarity == best) & wrong).sum(1)
    return before + level / 2


def retrieval(
    image_features: Tensor, text_features: Tensor, image_of_text: Tensor
) -> dict[str, float]:
    """Recall at 1, 5, 10 by cosine similarity, both ways, and what guessing would give.

    Args:
        image_features: [I, E], L2-normalised.
        text_features: [T, E], L2-normalised; every image has at least one text.
        image_of_text: [T] int64: the image a text belongs to.

    Returns:
        ``text_to_image_r1`` … ``image_to_text_r10`` in [0, 1], and ``…_chance`` beside each: the
        expectation under a random order. An image counts as a hit when any of its texts is.
    """
    similarity = text_features.float() @ image_features.float().T
    images = torch.arange(len(image_features), device=image_of_text.device)
    positive = image_of_text[:, None] == images
    values: dict[str, float] = {}
    for name, ranks, counts, size in (
        ("text_to_image", ranks_of_best(similarity, positive), [1], len(image_features)),
        (
            "image_to_text",
            ranks_of_best(similarity.T, positive.T),
            positive.sum(0).tolist(),
            len(text_features),
        ),
    ):
        hits = torch.stack([(ranks < k).double().mean() for k in RECALL_AT]).tolist()
        for k, hit in zip(RECALL_AT, hits, strict=True):
            values[f"{name}_r{k}"] = hit
            values[f"{name}_r{k}_chance"] = chance_of_hit(counts, size, k)
    return values


def chance_of_hit(positives: Sequence[int], size: int, k: int) -> float:
    """Mean chance that k of ``size`` candidates, drawn blindly, hold one of c right ones.

    1 - C(size - c, k) / C(size, k), averaged over the queries' numbers c.
    """
    k = min(k, size)
    return sum(1 - math.comb(size - c, k) / math.comb(size, k) for c in positives) / len(positives)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of (cx, cy, w, h) boxes, broadcast over all but the last axis."""
    low = torch.maximum(boxes[..., :2] - boxes[..., 2:] / 2, others[..., :2] - others[..., 2:] / 2)
    high = torch.minimum(boxes[..., :2] + boxes[..., 2:] / 2, others[..., :2] + others[..., 2:] / 2)
    shared = (high - low).clamp(min=0).prod(-1)
    union = boxes[..., 2:].prod(-1) + others[..., 2:].prod(-1) - shared
    return shared / union.clamp(min=1e-12)


def grounding(predicted: Tensor, target: Tensor, image_of_text: Tensor) -> dict[str, float]:
    """Share of phrases whose predicted box has IoU ≥ 0.5 with the true one, and two chance levels.

    Args:
        predicted, target: [N, 4] (cx, cy, w, h) in [0, 1].
        image_of_text: [N] int64: the image a phrase belongs to.

    Returns:
        ``grounding_accuracy``, ``grounding_mean_iou``, and what a model could reach
        ``…_chance_constant`` with the best single box for all, seeing neither image nor text;
        ``…_chance_blind`` seeing the image's boxes but not the text: one of them at random.
    """
    overlap = iou(predicted, target)
    return {
        "grounding_accuracy": (overlap >= 0.5).double().mean().item(),
        "grounding_mean_iou": overlap.double().mean().item(),
        "grounding_chance_constant": best_constant_box(target)[1],
        "grounding_chance_blind": blind_accuracy(target, image_of_text),
    }


def best_constant_box(target: Tensor, candidates: int = 1000) -> tuple[Tensor, float]:
    """The one box that is right most often, and how often; tried are true boxes and the median."""
    stride = max(1, len(target) // candidates)
    tried = torch.cat([target.median(0).values[None], target[::stride]])
    accuracy = torch.stack([(iou(box, target) >= 0.5).double().mean() for box in tried])
    best = accuracy.argmax()
    return tried[best], accuracy[best].item()


def blind_accuracy(target: Tensor, image_of_text: Tensor) -> float:
    """Expected accuracy of answering with a random one of the image's own target boxes."""
    order = image_of_text.argsort()
    groups = target[order].split(image_of_text.bincount().tolist())
    right = [(iou(g[:, None], g[None]) >= 0.5).double().mean(1).sum() for g in groups if len(g)]
    return (torch.stack(right).sum() / len(target)).item()
