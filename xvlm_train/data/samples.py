"""From one row to what it gives a batch: pixels, concepts that stay true of them, their texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from xvlm_data.boxes import cxcywh_to_xyxy
from xvlm_data.images.decode import load_row_image
from xvlm_data.schema import IMAGE, OBJECT, REGION, WHOLE_IMAGE_BOX
from xvlm_train.data.augment import rand_augment
from xvlm_train.data.config import DataConfig
from xvlm_train.data.rows import Row
from xvlm_train.data.text import clean_text, says_direction
from xvlm_train.data.transforms import (
    Boxes,
    Crop,
    crop_around,
    crop_boxes,
    crop_resize_flip,
    random_resized_crop,
    to_model_boxes,
    to_pixels,
)


class BadRow(Exception):
    """A row that cannot be used; ``reason`` is what it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class Sample:
    """An image after its transform, with its K concepts in order of preference.

    Attributes:
        record_id: manifest id.
        pixels: ``[3, R, R]`` uint8.
        texts: K cleaned texts, none empty.
        boxes: ``[K, 4]`` float32 (cx, cy, w, h) of the transformed image.
        whole_image: ``[K]`` bool: the text is the image's caption.
        rng: goes on to choose the masks of the texts.
        skipped: concepts left out because they are broken, by reason.
    """

    record_id: str
    pixels: npt.NDArray[np.uint8]
    texts: list[str]
    boxes: npt.NDArray[np.float32]
    whole_image: npt.NDArray[np.bool_]
    rng: np.random.Generator
    skipped: Counter[str] = field(default_factory=Counter)


def image_text_sample(row: Row, config: DataConfig, rng: np.random.Generator) -> Sample:
    """A random caption of the row and a random crop of its image.

    Raises:
        BadRow: no caption with any text in it.
        ImageError: the image cannot be read.
    """
    captions = _captions(row, config)
    if not captions and config.region_as_caption:
        captions = [
            text
            for text, kind in zip(_cleaned(row, config), row.granularity, strict=True)
            if text and kind == REGION
        ]
    if not captions:
        raise BadRow("empty_text")
    texts = [captions[int(rng.integers(len(captions)))]]
    image = load_row_image(row.image, row.width, row.height)
    crop = random_resized_crop(rng, *image.size, config.min_crop_scale)
    flip = _flips(texts, config, rng)
    return Sample(
        record_id=row.id,
        pixels=_pixels(image, crop, flip, config, rng, geometric=True),
        texts=texts,
        boxes=np.array([WHOLE_IMAGE_BOX], dtype=np.float32),
        whole_image=np.ones(1, dtype=bool),
        rng=rng,
    )


def multi_grained_sample(row: Row, config: DataConfig, rng: np.random.Generator) -> Sample:
    """A crop around one random region or object, with the other concepts it still shows.

    The concept the crop was made for comes first; the rest (at most ``max_concepts`` in all, a
    random one of the captions among them) follow in random order, so that a batch that has no
    room for all takes a fair part. With ``distinct_texts``, of equal texts only the first stays.

    Raises:
        BadRow: no region or object with a box and a text.
        ImageError: the image cannot be read.
    """
    corners, texts, skipped = _local_concepts(row, config, rng)
    if not texts:
        raise BadRow("no_usable_box")
    image = load_row_image(row.image, row.width, row.height)
    width, height = image.size
    corners = corners * np.array([width, height, width, height], dtype=np.float64)

    target = int(rng.integers(len(texts)))
    crop: Crop = (0, 0, width, height)
    if rng.random() < config.concept_crop:
        crop = crop_around(rng, corners[target], width, height)
    corners, visible = crop_boxes(corners, crop)
    visible[target] = True
    crop_width, crop_height = crop[2] - crop[0], crop[3] - crop[1]

    # The caption is one more concept, number len(texts), and its box is the whole crop.
    if captions := _captions(row, config):
        texts.append(captions[int(rng.integers(len(captions)))])
        corners = np.vstack([corners, [0, 0, crop_width, crop_height]])
    others = [i for i in rng.permutation(np.flatnonzero(visible)).tolist() if i != target]
    caption = list(range(len(visible), len(texts)))
    chosen = _first_distinct([target, *caption, *others], texts, config)
    chosen = [target, *rng.permutation(np.array(chosen[1:], dtype=np.int64)).tolist()]

    chosen_texts = [texts[i] for i in chosen]
    flip = _flips(chosen_texts, config, rng)
    return Sample(
        record_id=row.id,
        pixels=_pixels(image, crop, flip, config, rng, geometric=False),
        texts=chosen_texts,
        boxes=to_model_boxes(corners[chosen], crop_width, crop_height, flip),
        whole_image=np.array([i in caption for i in chosen]),
        rng=rng,
        skipped=skipped,
    )


def _local_concepts(
    row: Row, config: DataConfig, rng: np.random.Generator
) -> tuple[Boxes, list[str], Counter[str]]:
    """Corners in [0, 1] and texts of the regions and objects, and what is wrong with the rest."""
    corners = cxcywh_to_xyxy(row.boxes).clip(0, 1)
    good_box = np.isfinite(corners).all(axis=1) & (corners[:, 2:] > corners[:, :2]).all(axis=1)
    keep, texts, skipped = [], [], Counter[str]()
    for i, text in enumerate(_cleaned(row, config, rng)):
        if row.granularity[i] not in (REGION, OBJECT):
            continue
        if not text:
            skipped["concept_empty_text"] += 1
        elif not good_box[i]:
            skipped["concept_bad_box"] += 1
        else:
            keep.append(i)
            texts.append(text)
    return corners[keep], texts, skipped


def _cleaned(row: Row, config: DataConfig, rng: np.random.Generator | None = None) -> list[str]:
    """Every concept's text, cleaned; an object with attributes gets a random one in front."""
    texts = []
    for text, attributes, kind in zip(row.texts, row.attributes, row.granularity, strict=True):
        cleaned = clean_text(text, config.max_words)
        if rng is not None and kind == OBJECT and attributes and cleaned:
            attribute = attributes[int(rng.integers(len(attributes)))]
            cleaned = clean_text(f"{attribute} {text}", config.max_words)
        texts.append(cleaned)
    return texts


def _captions(row: Row, config: DataConfig) -> list[str]:
    texts = zip(row.texts, row.granularity, strict=True)
    cleaned = (clean_text(text, config.max_words) for text, kind in texts if kind == IMAGE)
    return [text for text in cleaned if text]


def _first_distinct(order: list[int], texts: list[str], config: DataConfig) -> list[int]:
    """The first ``max_concepts`` of ``order``, without equal texts if so configured."""
    chosen: list[int] = []
    seen: set[str] = set()
    for i in order:
        if len(chosen) == config.max_concepts:
            break
        if config.distinct_texts and texts[i] in seen:
            continue
        seen.add(texts[i])
        chosen.append(i)
    return chosen


def _flips(texts: list[str], config: DataConfig, rng: np.random.Generator) -> bool:
    heads = bool(rng.random() < config.flip)
    return heads and not (config.flip_guard and any(says_direction(text) for text in texts))


def _pixels(
    image: Image.Image,
    crop: Crop,
    flip: bool,
    config: DataConfig,
    rng: np.random.Generator,
    *,
    geometric: bool,
) -> npt.NDArray[np.uint8]:
    image = crop_resize_flip(image, crop, config.image_size, flip)
    image = rand_augment(
        image,
        rng,
        count=config.randaugment_n,
        magnitude=config.randaugment_m,
        prob=config.randaugment_prob,
        geometric=geometric,
    )
    return to_pixels(image)
