"""What is worth a curve beside the losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xvlm_train.data.batch import Batch
from xvlm_train.model.xvlm import Outputs


@torch.no_grad()
def measures(outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
    """Losses by granularity and the rate of false negatives, as pairs [2]: a sum, and of how many.

    Returns:
        ``matching_image``, ``matching_region``: matching loss of the pairs of whole images, and of
        regions and objects (multi-grained batches alone); ``mlm_image``, ``mlm_region``: likewise
        of the masked tokens; ``false_negatives``: hard negatives that match after all, the text
        being word for word the pair's own, or the place being the same.
    """
    rows = len(batch.text_ids)
    values = {"false_negatives": _false_negatives(outputs, batch)}
    if not batch.multi_grained:
        return values
    matching = F.cross_entropy(
        outputs.matching_logits[:rows], outputs.matching_labels[:rows], reduction="none"
    )
    labels = outputs.mlm_labels
    tokens = F.cross_entropy(outputs.mlm_logits.float(), labels, reduction="none")
    for kind, chosen in (("image", batch.whole_image), ("region", ~batch.whole_image)):
        values[f"matching_{kind}"] = _pair(matching, chosen)
        values[f"mlm_{kind}"] = _pair(tokens, chosen[outputs.mlm_rows] & (labels >= 0))
    return values


def _false_negatives(outputs: Outputs, batch: Batch) -> Tensor:
    rows = len(batch.text_ids)
    _, has_image, has_text = outputs.matching_labels.view(3, rows) >= 0
    images, texts = outputs.negative_images, outputs.negative_texts

    def alike(others: Tensor) -> Tensor:
        same_text = (batch.text_ids == batch.text_ids[others]).all(1)
        same_image = batch.image_index == batch.image_index[others]
        return same_text | (same_image & (batch.boxes == batch.boxes[others]).all(1))

    both = torch.cat([alike(images), alike(texts)])
    return _pair(both.float(), torch.cat([has_image, has_text]))


def _pair(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.stack([torch.where(chosen, values, 0).sum(), chosen.sum().to(values.dtype)])


def host_measures(batch: Batch, max_texts: int) -> dict[str, tuple[float, float]]:
    """Shares, as (part, whole), that are known before the batch leaves the host.

    Returns:
        ``padding``: text places that hold padding; ``fill``: of the room for texts in a
        multi-grained batch.
    """
    places = batch.text_mask.numel()
    values = {"padding": (float(places - int(batch.text_mask.sum())), float(places))}
    if batch.multi_grained:
        values["fill"] = float(len(batch.text_ids)), float(max_texts)
    return values
