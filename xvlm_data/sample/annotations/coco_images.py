"""The images of COCO 2017, and which part of Karpathy's split each is in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from xvlm_data.sample.annotations.chance import Numbers, Permutation
from xvlm_data.sample.annotations.images import Images
from xvlm_data.sample.annotations.sizes import COCO, scaled
from xvlm_data.sample.annotations.truth import Fates, Tally
from xvlm_data.sample.coco import IMAGE_ID_PRIME

PARTS = ("train2017", "val2017")
CAPTIONS = 5  # of every image; a few have one more
KARPATHY = ("train", "restval", "val", "test")


@dataclass(frozen=True)
class CocoImages(Images):
    """The images of both parts: numbers from 0 on, val2017's after train2017's."""

    name = "coco"
    id_prime = IMAGE_ID_PRIME
    usual_sizes = (
        *((640, 480), (640, 427), (480, 640), (427, 640), (500, 375), (640, 426), (640, 425)),
        *((612, 612), (640, 360), (375, 500), (640, 429), (640, 428), (500, 333), (333, 500)),
    )

    @cached_property
    def parts(self) -> tuple[int, int]:
        """How many images train2017 and val2017 have."""
        train, val = COCO.images
        return scaled(train, self.request.scale), scaled(val, self.request.scale)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.parts)

    @cached_property
    def of_train2014(self) -> int:
        """How many are Karpathy's train: all of train2014, which is within train2017."""
        return min(scaled(COCO.karpathy_train, self.request.scale), self.parts[0])

    @cached_property
    def held_out(self) -> int:
        """How many Karpathy's val has, and his test."""
        most = (self.count - self.of_train2014) // 2
        return min(scaled(COCO.karpathy_held_out, self.request.scale), most)

    @cached_property
    def _train2014(self) -> Permutation:
        return Permutation.of(self.request.seed, "coco/train2014", self.parts[0])

    @cached_property
    def _val2014(self) -> Permutation:
        return Permutation.of(self.request.seed, "coco/val2014", self.count - self.of_train2014)

    def karpathy(self, numbers: Numbers) -> npt.NDArray[np.int8]:
        """Which of :data:`KARPATHY` each image is in: his parts cut across the official ones."""
        train = self.parts[0]
        inside = self._train2014[np.minimum(numbers, train - 1)]
        rest = np.where(numbers < train, inside, numbers) - self.of_train2014
        rank = self._val2014[np.maximum(rest, 0)]
        later = np.where(rank < self.held_out, 2, np.where(rank < 2 * self.held_out, 3, 1))
        return np.where(rest < 0, 0, later).astype(np.int8)

    def in_karpathy_train(self, ranks: Numbers) -> Numbers:
        """Numbers of images in his train, for ranks below ``of_train2014``."""
        return self._train2014.inverse(ranks)

    def in_karpathy_held_out(self, ranks: Numbers) -> Numbers:
        """Numbers of images in his val and test, for ranks below twice ``held_out``."""
        rest = self._val2014.inverse(ranks) + self.of_train2014
        inside = self._train2014.inverse(np.minimum(rest, self.parts[0] - 1))
        return np.where(rest < self.parts[0], inside, rest)

    def instances(self, part: int) -> int:
        """How many annotations with boxes a part has."""
        return scaled(COCO.instances[part], self.request.scale)

    def captions(self, part: int) -> int:
        """How many captions a part has: five an image, and a few more."""
        more = COCO.captions[part] - CAPTIONS * COCO.images[part]
        return CAPTIONS * self.parts[part] + scaled(more, self.request.scale)

    def before(self, part: int) -> int:
        """How many images the parts before this one have."""
        return sum(self.parts[:part])

    def tally(self, tally: Tally, kind: str, part: int, numbers: Numbers, fates: Fates) -> None:
        """Count records of one official part under the Karpathy parts of their images."""
        names = [f"{PARTS[part]}/{name}" for name in KARPATHY]
        tally.add_all(kind, fates, names, self.karpathy(numbers))
