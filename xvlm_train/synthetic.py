"""Batches without data: noise for pixels, and texts as long as those of the paper's sources are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from xvlm_train.data.batch import Batch
from xvlm_train.data.config import DataConfig
from xvlm_train.data.transforms import patch_mask

#: (share, mean, standard deviation) of bert-base-uncased tokens in the texts of a stream, [CLS]
#: not counted: image-text as the paper's 4M set mixes COCO, Visual Genome, SBU and Conceptual
#: Captions (lengths: arXiv 2102.03334, table 6), multi-grained as Visual Genome's regions and
#: the objects of both (a word or two).
LENGTHS = {
    "image_text": (
        (0.11, 11.81, 2.81),
        (0.16, 5.53, 1.76),
        (0.17, 15.0, 7.74),
        (0.56, 10.66, 4.93),
    ),
    "multi_grained": ((0.6, 5.53, 1.76), (0.4, 1.6, 0.7)),
}
_FIRST_WORD, _MASK_ID, _CLS_ID = 5, 4, 2


def text_lengths(
    stream: str, count: int, max_tokens: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """[count] tokens with [CLS], at least 2, drawn from :data:`LENGTHS`."""
    shares, means, deviations = (np.array(values) for values in zip(*LENGTHS[stream], strict=True))
    source = rng.choice(len(shares), size=count, p=shares / shares.sum())
    # Gamma: never below zero, and with the long tail that the longest text of a batch comes from.
    shape, scale = (means / deviations) ** 2, deviations**2 / means
    drawn = np.rint(rng.gamma(shape[source], scale[source])).astype(np.int64)
    return np.clip(drawn + 1, 2, max_tokens)


def synthetic_batch(
    stream: str,
    data: DataConfig,
    *,
    images: int,
    texts: int,
    vocab: int,
    grid: tuple[int, int],
    seed: int = 0,
) -> Batch:
    """A batch of one stream as the feed would give it: on the host, pixels as bytes.

    Args:
        stream: ``image_text`` or ``multi_grained``.
        data: image size, longest text, masking.
        images: I.
        texts: B; of the image-text stream equal to I.
        vocab: ids are below this.
        grid: patch rows and columns of the model.
        seed: of all that is drawn.
    """
    rng = np.random.default_rng(seed)
    multi_grained = stream == "multi_grained"
    lengths = text_lengths(stream, texts, data.max_tokens, rng)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = rng.integers(_FIRST_WORD, vocab, mask.shape) * mask
    ids[:, 0] = _CLS_ID
    positions = np.zeros((texts, data.max_masks), dtype=np.int64)
    labels = np.full_like(positions, -100)
    hidden = ids.copy()
    for row, length in enumerate(lengths):
        count = min(data.max_masks, max(1, round(data.mask_prob * int(length))))
        chosen = np.sort(1 + rng.permutation(length - 1)[:count])
        positions[row, : len(chosen)] = chosen
        labels[row, : len(chosen)] = ids[row, chosen]
        hidden[row, chosen] = _MASK_ID
    boxes = np.tile(np.array([0.5, 0.5, 1.0, 1.0], dtype=np.float32), (texts, 1))
    inside = np.ones((texts, 1 + grid[0] * grid[1]), dtype=np.int64)
    if multi_grained:
        boxes[:, 2:] = rng.uniform(0.15, 0.6, (texts, 2))
        boxes[:, :2] = boxes[:, 2:] / 2 + rng.uniform(size=(texts, 2)) * (1 - boxes[:, 2:])
        inside = np.asarray(patch_mask(boxes, grid)).astype(np.int64)
    tensor = torch.from_numpy
    side = data.image_size
    pixels = rng.integers(256, size=(images, side, side, 3), dtype=np.uint8)
    return Batch(
        images=tensor(pixels).permute(0, 3, 1, 2),
        image_index=tensor(np.sort(np.arange(texts) % images)),
        patch_mask=tensor(inside),
        text_ids=tensor(ids),
        text_mask=tensor(mask.astype(np.int64)),
        masked_ids=tensor(hidden),
        masked_positions=tensor(positions),
        masked_labels=tensor(labels),
        boxes=tensor(boxes),
        whole_image=torch.full((texts,), not multi_grained),
        multi_grained=multi_grained,
        record_ids=[f"synthetic/{number}" for number in range(images)],
    )
