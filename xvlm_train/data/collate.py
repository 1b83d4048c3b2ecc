"""Samples to a batch: tokens, masks, tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch

from xvlm_train.data.batch import Batch
from xvlm_train.data.config import DataConfig
from xvlm_train.data.masking import Ids, draw_chances, mask_tokens
from xvlm_train.data.rejects import Reject
from xvlm_train.data.samples import Sample
from xvlm_train.data.tokenizer import Tokenizer
from xvlm_train.data.transforms import patch_mask, to_model_boxes


def collate(
    samples: Sequence[Sample],
    images: npt.NDArray[np.uint8],
    tokenizer: Tokenizer,
    config: DataConfig,
    grid: tuple[int, int],
    *,
    multi_grained: bool,
    rejects: Sequence[Reject] = (),
) -> Batch:
    """The batch of some samples; text is padded to the longest one at hand, not to the maximum.

    Args:
        samples: at least one; of the image-text stream each has one concept.
        images: ``[I, R, R, 3]``, the pixels of all of them; the batch has them without a copy.
        tokenizer: makes ids of the texts.
        config: the budget they were chosen by, and masking.
        grid: the model's patches, (rows, columns).
        multi_grained: which stream.
        rejects: rows that the batch could have had, but for what is wrong with them.
    """
    counts = [len(sample.texts) for sample in samples]
    encoded = tokenizer.encode([text for s in samples for text in s.texts], config.max_tokens)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    ids = np.fromiter(chain.from_iterable(encoded), np.int64, lengths.sum())
    ends = np.cumsum([0, *counts])
    tokens = np.diff(np.append(0, np.cumsum(lengths))[ends]).tolist()
    masked = mask_tokens(
        ids,
        lengths,
        np.concatenate([draw_chances(s.rng, n) for s, n in zip(samples, tokens, strict=True)], 1),
        tokenizer.mask_vocabulary,
        mask_prob=config.mask_prob,
        max_masks=config.max_masks,
    )
    boxes = to_model_boxes(
        np.array([corners for sample in samples for corners in sample.corners], np.float64),
        np.repeat(np.array([sample.crop for sample in samples]), counts, axis=0),
        np.repeat(np.array([sample.flip for sample in samples]), counts),
    )
    whole = np.array([is_whole for sample in samples for is_whole in sample.whole_image])
    inside = patch_mask(boxes, grid)
    inside[whole] = True
    skipped = Counter(reject.reason for reject in rejects)
    for sample in samples:
        if sample.skipped:
            skipped.update(sample.skipped)
    return Batch(
        # Channels last in memory, as decoders write them.
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        image_index=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        patch_mask=torch.from_numpy(inside),
        text_ids=torch.from_numpy(_padded(ids, lengths, tokenizer.pad_id)),
        text_mask=torch.from_numpy((np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)),
        masked_ids=torch.from_numpy(_padded(masked.ids, lengths, tokenizer.pad_id)),
        masked_positions=torch.from_numpy(masked.positions),
        masked_labels=torch.from_numpy(masked.labels),
        boxes=torch.from_numpy(boxes),
        whole_image=torch.from_numpy(whole),
        multi_grained=multi_grained,
        record_ids=[s.record_id for s in samples],
        skipped=dict(skipped),
        rejects=list(rejects),
        to_augment={s.record_id: s.to_augment for s in samples if s.to_augment},
        magnitude=config.randaugment_m,
        fill=len(encoded) / (config.max_texts if multi_grained else config.batch_size),
    )


def _padded(ids: Ids, lengths: Ids, fill: int) -> Ids:
    """``[B, longest]``: texts that lie one after the other, one below the other."""
    out = np.full((len(lengths), lengths.max()), fill, dtype=np.int64)
    out[np.arange(out.shape[1]) < lengths[:, None]] = ids
    return out
