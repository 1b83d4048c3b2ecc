"""From one row to what it gives a batch: pixels, concepts that stay true of them, their texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from xvlm_data.schema import IMAGE, OBJECT, REGION, WHOLE_IMAGE_BOX
from xvlm_train.data.augment import Drawn, Pixels, draw_operations, rand_augment
from xvlm_train.data.config import DataConfig
from xvlm_train.data.pixels import Picture
from xvlm_train.data.rows import Reads, Row
from xvlm_train.data.text import clean_text, says_direction
from xvlm_train.data.transforms import (
    Corners,
    Crop,
    crop_around,
    crop_box,
    random_resized_crop,
    to_model_boxes,
)

#: What is read of a manifest that comes without a recipe, by the two streams.
CAPTIONS, LOCAL = Reads((IMAGE,)), Reads((REGION, OBJECT))


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
        pixels: ``[R, R, 3]`` uint8.
        texts: K cleaned texts, none empty.
        boxes: ``[K, 4]`` float32 (cx, cy, w, h) of the transformed image.
        whole_image: ``[K]`` bool: the text is the image's caption.
        rng: goes on to choose the masks of the texts.
        skipped: concepts left out because they are broken, by reason.
        to_augment: operations that are left to the device.
    """

    record_id: str
    pixels: Pixels
    texts: list[str]
    boxes: npt.NDArray[np.float32]
    whole_image: npt.NDArray[np.bool_]
    rng: np.random.Generator
    skipped: dict[str, int] = field(default_factory=dict)
    to_augment: list[Drawn] = field(default_factory=list)


def image_text_sample(
    row: Row, config: DataConfig, rng: np.random.Generator, reads: Reads = CAPTIONS
) -> Sample:
    """A random text of the row and a random crop of its image.

    Raises:
        BadRow: no such text with anything in it.
        ImageError: the image cannot be read.
    """
    texts = _Texts(row, config)
    for kinds in (reads.granularities, reads.otherwise):
        places = _largest(row, row.places(kinds), reads.largest)
        chosen = texts.first(rng.permutation(places).tolist())
        if chosen is not None:
            break
    else:
        raise BadRow("empty_text")
    picture = Picture(row.image, row.width, row.height, config.pixels)
    crop = random_resized_crop(rng, *picture.size, config.min_crop_scale)
    crop = picture.aligned(crop, config.image_size)
    pixels, drawn, _ = _transformed(picture, crop, [texts[chosen]], config, rng, geometric=True)
    return Sample(
        record_id=row.id,
        pixels=pixels,
        texts=[texts[chosen]],
        boxes=np.array([WHOLE_IMAGE_BOX], dtype=np.float32),
        whole_image=np.ones(1, dtype=bool),
        rng=rng,
        to_augment=drawn,
    )


def multi_grained_sample(
    row: Row, config: DataConfig, rng: np.random.Generator, reads: Reads = LOCAL
) -> Sample:
    """A crop around one random region or object, with the other concepts it still shows.

    The concept the crop was made for comes first; the rest (at most ``max_concepts`` in all, a
    random one of the captions among them) follow in random order, so that a batch that has no
    room for all takes a fair part. With ``distinct_texts``, of equal texts only the first stays.

    Raises:
        BadRow: no region or object with a box and a text.
        ImageError: the image cannot be read.
    """
    places = row.places(reads.granularities, boxed=True)
    without = len(row.places(reads.granularities)) - len(places)
    order = rng.permutation(_largest(row, places, reads.largest)).tolist()
    texts = _Texts(row, config, rng)
    target = texts.first(order)
    if target is None:
        raise BadRow("no_usable_box")
    picture = Picture(row.image, row.width, row.height, config.pixels)
    width, height = picture.size
    crop: Crop = (0, 0, width, height)
    if rng.random() < config.concept_crop:
        crop = crop_around(rng, _scaled(row.corners(target), picture.size), width, height)
    crop = picture.aligned(crop, config.image_size)

    whole = (0, 0, crop[2] - crop[0], crop[3] - crop[1])
    caption = texts.first(rng.permutation(row.places((IMAGE,))).tolist())
    boxes: dict[int, Corners] = {}

    def shown() -> Iterator[int]:
        """The target, the caption, and the others of which the crop shows enough."""
        yield target
        if caption is not None:
            boxes[caption] = whole
            yield caption
        for k in order:
            box = crop_box(_scaled(row.corners(k), picture.size), crop)
            if k != target and box is not None:
                boxes[k] = box
                yield k

    # The crop holds all of its target, by rounding a little less.
    boxes[target] = crop_box(_scaled(row.corners(target), picture.size), crop) or whole
    first, *others = texts.distinct(shown())
    chosen = [first, *rng.permutation(others).tolist()] if others else [first]

    words = [texts[k] for k in chosen]
    pixels, drawn, flip = _transformed(picture, crop, words, config, rng, geometric=False)
    broken = {"concept_bad_box": without, "concept_empty_text": texts.empty}
    return Sample(
        record_id=row.id,
        pixels=pixels,
        texts=words,
        boxes=to_model_boxes([boxes[k] for k in chosen], *whole[2:], flip),
        whole_image=np.array([k == caption for k in chosen]),
        rng=rng,
        skipped={reason: number for reason, number in broken.items() if number},
        to_augment=drawn,
    )


def _scaled(corners: Corners, size: tuple[int, int]) -> Corners:
    (x0, y0, x1, y1), (width, height) = corners, size
    return x0 * width, y0 * height, x1 * width, y1 * height


class _Texts:
    """Cleaned texts of a row's concepts, made when asked for; few of many are.

    An object with attributes gets a random one of them in front, where there is an ``rng``.

    Attributes:
        empty: texts without anything in them that were met.
    """

    def __init__(
        self, row: Row, config: DataConfig, rng: np.random.Generator | None = None
    ) -> None:
        self._row, self._config, self._rng = row, config, rng
        self._cleaned: dict[int, str] = {}
        self.empty = 0

    def __getitem__(self, k: int) -> str:
        if k not in self._cleaned:
            self._cleaned[k] = self._clean(k)
        return self._cleaned[k]

    def _clean(self, k: int) -> str:
        text = self._row.text(k)
        cleaned = clean_text(text, self._config.max_words)
        if not cleaned:
            self.empty += self._row.granularity(k) != IMAGE
        elif self._rng is not None and self._row.granularity(k) == OBJECT:
            attributes = self._row.attributes(k)
            if attributes:
                attribute = attributes[int(self._rng.integers(len(attributes)))]
                cleaned = clean_text(f"{attribute} {text}", self._config.max_words)
        return cleaned

    def first(self, places: Iterable[int]) -> int | None:
        """The first of some concepts that has a text."""
        return next((k for k in places if self[k]), None)

    def distinct(self, places: Iterable[int]) -> list[int]:
        """The first ``max_concepts`` that have a text, of equal ones one if so configured."""
        chosen: list[int] = []
        seen: set[str] = set()
        for k in places:
            if len(chosen) == self._config.max_concepts:
                break
            text = self[k]
            if not text or (self._config.distinct_texts and text in seen):
                continue
            seen.add(text)
            chosen.append(k)
        return chosen


def _largest(row: Row, places: npt.NDArray[np.int64], count: int | None) -> npt.NDArray[np.int64]:
    if count is None or len(places) <= count:
        return places
    areas = row.boxes[places, 2] * row.boxes[places, 3]
    return places[np.argsort(-areas, kind="stable")[:count]]


def _transformed(
    picture: Picture,
    crop: Crop,
    texts: Sequence[str],
    config: DataConfig,
    rng: np.random.Generator,
    *,
    geometric: bool,
) -> tuple[Pixels, list[Drawn], bool]:
    """An aligned crop's pixels, the operations left to the device, and whether it is mirrored."""
    flip = bool(rng.random() < config.flip)
    flip = flip and not (config.flip_guard and any(says_direction(text) for text in texts))
    drawn = draw_operations(
        rng, count=config.randaugment_n, prob=config.randaugment_prob, geometric=geometric
    )
    pixels = picture.square(crop, config.image_size)
    if flip:
        pixels = np.asarray(cv2.flip(pixels, 1), dtype=np.uint8)
    if config.augment_on_device:
        return pixels, drawn, flip
    return rand_augment(pixels, drawn, config.randaugment_m), [], flip
