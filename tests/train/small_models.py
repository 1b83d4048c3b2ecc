"""A model of a few thousand weights and random batches for it."""

from __future__ import annotations

import torch

from xvlm_train.data.batch import Batch
from xvlm_train.model.config import ModelConfig, TextConfig, VisionConfig

SIZE, GRID, LENGTH, SLOTS, VOCAB = 32, 4, 6, 3, 50


def small_config(**text: float | str | None) -> ModelConfig:
    vision = VisionConfig(
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 2},
        image_size=SIZE,
        drop_path=0.0,
    )
    sizes: dict = {
        "hidden": 16,
        "layers": 3,
        "fusion_layer": 1,
        "heads": 2,
        "intermediate": 24,
        "vocab": VOCAB,
        "max_positions": 40,
    }
    return ModelConfig(vision, TextConfig(**(sizes | text)), embed_dim=8)


def random_batch(
    images: int, concepts: int, regions: int, *, seed: int = 0, multi_grained: bool = True
) -> Batch:
    """The last ``regions`` concepts are regions, the others whole images."""
    draw = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int, low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=draw)

    lengths = integers(LENGTH + 1, concepts, low=3)
    text_mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    text_ids = integers(VOCAB, concepts, LENGTH, low=5) * text_mask
    places = integers(LENGTH, concepts, SLOTS, low=1) % lengths[:, None]
    labels = text_ids.gather(1, places)
    labels[:, 1:][integers(2, concepts, SLOTS - 1).bool()] = -100
    masked = text_ids.scatter(1, places[:, :1], 3)
    whole = torch.arange(concepts) < concepts - regions
    patch_mask = integers(2, concepts, 1 + GRID * GRID)
    patch_mask[whole] = 1
    patch_mask[:, :2] = 1  # v_cls, and at least one patch
    boxes = torch.rand(concepts, 4, generator=draw) * 0.5 + 0.2
    boxes[whole] = torch.tensor([0.5, 0.5, 1, 1])
    return Batch(
        images=torch.randn(images, 3, SIZE, SIZE, generator=draw),
        image_index=torch.arange(concepts) % images,
        patch_mask=patch_mask,
        text_ids=text_ids,
        text_mask=text_mask,
        masked_ids=masked,
        masked_positions=places * (labels >= 0),
        masked_labels=labels,
        boxes=boxes,
        whole_image=whole,
        multi_grained=multi_grained,
        record_ids=[],
    )
