"""From one row to what it gives a batch: pixels, concepts that stay true of them, their texts.

First come the texts, as many as the batch has room for (:class:`Draft`), and only then the pixels
(:class:`Sample`): what a batch does not use is neither cleaned nor moved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from xvlm_data.images.decode import header_size, row_bytes
from xvlm_data.schema import IMAGE, OBJECT, REGION
from xvlm_train.data.augment import Drawn, Pixels, draw_operations, rand_augment
from xvlm_train.data.config import DataConfig
from xvlm_train.data.pixels import Picture
from xvlm_train.data.rows import Reads, Row
from xvlm_train.data.text import clean_text, says_direction
from xvlm_train.data.transforms import (
    Corners,
    Crop,
    crop_around,
    random_resized_crop,
    shows,
)

#: What is read of a manifest that comes without a recipe, by the two streams.
CAPTIONS, LOCAL = Reads((IMAGE,)), Reads((REGION, OBJECT))


class BadRow(Exception):
    """A row that cannot be used; ``reason`` is what it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(slots=True)
class Sample:
    """An image after its transform, with its K concepts.

    Attributes:
        record_id: manifest id.
        pixels: ``[R, R, 3]`` uint8.
        texts: K cleaned texts, none empty.
        corners: K boxes, pixels of the image.
        whole_image: K times whether the text is the image's caption, whose box is the crop.
        crop: what is shown of the image.
        flip: whether that is mirrored.
        rng: goes on to choose the masks of the texts.
        skipped: concepts left out because they are broken, by reason.
        to_augment: operations that are left to the device.
    """

    record_id: str
    pixels: Pixels
    texts: list[str]
    corners: list[Corners]
    whole_image: list[bool]
    crop: Crop
    flip: bool
    rng: np.random.Generator
    skipped: dict[str, int] = field(default_factory=dict)
    to_augment: list[Drawn] = field(default_factory=list)


class Draft(ABC):
    """What is going to be shown of a row: texts, and where its crop will be.

    Attributes:
        texts: cleaned texts so far, at least one, none empty.
    """

    texts: list[str]
    _row: Row

    @property
    def record_id(self) -> str:
        """Manifest id of the row."""
        return self._row.id

    def take(self) -> bool:
        """One text more; false where there is none."""
        return False

    @abstractmethod
    def sample(self) -> Sample:
        """The pixels, and what became of the texts.

        Raises:
            ImageError: the image cannot be read.
        """


class CaptionDraft(Draft):
    """A random text of the row, and a random crop of its image.

    Raises:
        BadRow: no such text with anything in it.
    """

    def __init__(
        self, row: Row, config: DataConfig, rng: np.random.Generator, reads: Reads = CAPTIONS
    ) -> None:
        self._row, self._config, self._rng = row, config, rng
        texts = _Texts(row, config)
        for kinds in (reads.granularities, reads.otherwise):
            places = _largest(row, row.places(kinds), reads.largest)
            chosen = texts.first(_shuffled(places, rng))
            if chosen is not None:
                break
        else:
            raise BadRow("empty_text", "no text with a word in it")
        self.texts = [texts[chosen]]

    def sample(self) -> Sample:
        """See :class:`Draft`."""
        config, rng = self._config, self._rng
        picture = _open(self._row, config)
        crop = random_resized_crop(rng, *picture.size, config.min_crop_scale)
        crop = picture.aligned(crop, config.image_size)
        look = _Look.draw(config, rng, geometric=True)
        pixels, drawn, flip = look.of(picture, crop, self.texts, config)
        return Sample(
            record_id=self._row.id,
            pixels=pixels,
            texts=self.texts,
            corners=[crop],
            whole_image=[True],
            crop=crop,
            flip=flip,
            rng=rng,
            to_augment=drawn,
        )


class ConceptDraft(Draft):
    """A crop around one random region or object, with other concepts that it still shows.

    The concept the crop was made for comes first. The rest follow in random order, and among them,
    at a random place of the first ``max_concepts``, one of the captions. With ``distinct_texts``,
    of equal texts only the first is taken.

    Raises:
        BadRow: no region or object with a box and a text.
        ImageError: nobody knows how large the image is, and it cannot be read.
    """

    def __init__(
        self, row: Row, config: DataConfig, rng: np.random.Generator, reads: Reads = LOCAL
    ) -> None:
        self._row, self._config, self._rng = row, config, rng
        places = row.places(reads.granularities, boxed=True)
        self._without = row.count(reads.granularities) - len(places)
        self._order = _shuffled(_largest(row, places, reads.largest), rng)
        # All that chance says of the image now: attributes are drawn as texts are taken, and how
        # many that are depends on the rest of the batch.
        whole, before, self._first_caption, *edges = rng.random(7).tolist()
        self._before_caption = int(before * (config.max_concepts - 1))
        self._look = _Look.draw(config, rng, geometric=False)

        self._texts = _Texts(row, config, rng)
        target = self._texts.first(self._order)
        if target is None:
            raise BadRow("no_usable_box", "no region or object with a box and a text")
        self._target, self._caption = target, -1
        self._size = size = _size(row)
        self._crop: Crop = (0, 0, *size)
        if whole < config.concept_crop:
            self._crop = crop_around(edges, _scaled(row.corners(target), size), *size)
        self._concepts = [target]
        self.texts = [self._texts[target]]
        self._candidates = self._others()

    def take(self) -> bool:
        """See :class:`Draft`."""
        if len(self.texts) == self._config.max_concepts:
            return False
        for k in self._candidates:
            text = self._texts[k]
            if text and not (self._config.distinct_texts and text in self.texts):
                self._concepts.append(k)
                self.texts.append(text)
                return True
        return False

    def _others(self) -> Iterator[int]:
        """What the crop shows enough of, but for its target."""
        (x0, y0, x1, y1), (width, height) = self._crop, self._size
        crop = x0 / width, y0 / height, x1 / width, y1 / height
        others = (k for k in self._order if k != self._target and shows(crop, self._row.corners(k)))
        yield from islice(others, self._before_caption)
        captions = self._row.places((IMAGE,)).tolist()
        start = int(self._first_caption * len(captions))
        caption = self._texts.first(captions[start:] + captions[:start])
        if caption is not None:
            self._caption = caption
            yield caption
        yield from others

    def sample(self) -> Sample:
        """See :class:`Draft`."""
        picture = _open(self._row, self._config)
        crop = picture.aligned(self._crop, self._config.image_size)
        pixels, drawn, flip = self._look.of(picture, crop, self.texts, self._config)
        broken = {"concept_bad_box": self._without, "concept_empty_text": self._texts.empty}
        return Sample(
            record_id=self._row.id,
            pixels=pixels,
            texts=self.texts,
            corners=[
                crop if k == self._caption else _scaled(self._row.corners(k), self._size)
                for k in self._concepts
            ],
            whole_image=[k == self._caption for k in self._concepts],
            crop=crop,
            flip=flip,
            rng=self._rng,
            skipped={reason: number for reason, number in broken.items() if number},
            to_augment=drawn,
        )


def share_budget(drafts: Sequence[Draft], budget: int) -> None:
    """Take texts until there are ``budget`` of them, or no more.

    Every image has one; every image that has another takes a second, and so on: no image is encoded
    for nothing, and none of its concepts is taken twice.

    Args:
        drafts: of the images of a batch.
        budget: most texts of the batch.
    """
    left = budget - sum(len(draft.texts) for draft in drafts)
    while left > 0 and drafts:
        more = []
        for draft in drafts:
            if left > 0 and draft.take():
                left -= 1
                more.append(draft)
        drafts = more


def _size(row: Row) -> tuple[int, int]:
    """(width, height) that the boxes refer to; where the row does not say, the image does."""
    if row.width > 0 and row.height > 0:
        return row.width, row.height
    return header_size(row_bytes(row.image), row.image["path"] or row.id)


def _open(row: Row, config: DataConfig) -> Picture:
    return Picture(row.image, row.width, row.height, config.pixels)


def _shuffled(places: npt.NDArray[np.int64], rng: np.random.Generator) -> list[int]:
    shuffled: list[int] = rng.permutation(places).tolist()
    return shuffled


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


def _largest(row: Row, places: npt.NDArray[np.int64], count: int | None) -> npt.NDArray[np.int64]:
    if count is None or len(places) <= count:
        return places
    areas = row.boxes[places, 2] * row.boxes[places, 3]
    return places[np.argsort(-areas, kind="stable")[:count]]


class _Look(NamedTuple):
    """What chance does to an image's crop.

    Attributes:
        flip: mirror it, if its texts stay true.
        operations: of RandAugment.
    """

    flip: bool
    operations: list[Drawn]

    @classmethod
    def draw(cls, config: DataConfig, rng: np.random.Generator, *, geometric: bool) -> _Look:
        flip = bool(rng.random() < config.flip)
        count, prob = config.randaugment_n, config.randaugment_prob
        return cls(flip, draw_operations(rng, count=count, prob=prob, geometric=geometric))

    def of(
        self, picture: Picture, crop: Crop, texts: Sequence[str], config: DataConfig
    ) -> tuple[Pixels, list[Drawn], bool]:
        """An aligned crop's pixels, the operations left to the device, and if it is mirrored."""
        flip = self.flip and not (config.flip_guard and any(map(says_direction, texts)))
        pixels = picture.square(crop, config.image_size)
        if flip:
            pixels = np.asarray(cv2.flip(pixels, 1), dtype=np.uint8)
        if config.augment_on_device:
            return pixels, self.operations, flip
        return rand_augment(pixels, self.operations, config.randaugment_m), [], flip
