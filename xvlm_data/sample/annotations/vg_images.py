"""The images of Visual Genome, and the records that the elements of its files hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from xvlm_data.sample.annotations.chance import Numbers, Permutation, Shares, uniform
from xvlm_data.sample.annotations.coco_images import CocoImages
from xvlm_data.sample.annotations.images import Images
from xvlm_data.sample.annotations.sizes import VG, scaled
from xvlm_data.sample.annotations.truth import Fate, Fates, Tally, without_image

# Parts of the truth: images that evaluation sets hold out, and the others.
LEAKED, FREE = "leaked", "free"

#: An element that belongs to no image, or is none, takes some fifty records with it.
_ORPHAN_ELEMENTS, _MALFORMED_ELEMENTS = 0.15, 0.10


@dataclass(frozen=True)
class VgImages(Images):
    """The images of the release; some are COCO's, and of those some are held out by Karpathy."""

    name = "vg"
    id_prime = 2_417_983  # the largest image id of VG is 2,417,997
    usual_sizes = (
        *((800, 600), (500, 375), (1024, 768), (640, 480), (1024, 683), (375, 500), (500, 333)),
        *((683, 1024), (480, 640), (640, 427), (768, 1024), (1280, 960), (333, 500), (600, 800)),
    )

    @property
    def count(self) -> int:
        """How many there are."""
        return scaled(VG.images, self.request.scale)

    @cached_property
    def coco(self) -> CocoImages:
        """The images of the COCO sample of the same request."""
        return CocoImages(self.request)

    @cached_property
    def leaked_count(self) -> int:
        """How many are in Karpathy's val or test."""
        most = min(2 * self.coco.held_out, self.count)
        return min(scaled(VG.leaked_images, self.request.scale), most)

    def _ranks(self, numbers: Numbers) -> Numbers:
        """The leaked images come first, then the other ones that are COCO's."""
        return Permutation.of(self.request.seed, "vg/coco", self.count)[numbers]

    def leaked(self, numbers: Numbers) -> npt.NDArray[np.bool_]:
        """Which images Karpathy's val or test holds out."""
        return self._ranks(numbers) < self.leaked_count

    def coco_ids(self, numbers: Numbers) -> list[int | None]:
        """Ids of the images that are COCO's; the others' are null."""
        ranks, leaked = self._ranks(numbers), self.leaked_count
        most = min(
            scaled(VG.coco_images, self.request.scale), leaked + self.coco.of_train2014, self.count
        )
        held_out = self.coco.in_karpathy_held_out(np.minimum(ranks, max(leaked - 1, 0)))
        trained = self.coco.in_karpathy_train(
            np.clip(ranks - leaked, 0, self.coco.of_train2014 - 1)
        )
        ids = self.coco.ids(np.where(ranks < leaked, held_out, trained))
        return [
            id_ if rank < most else None
            for id_, rank in zip(ids.tolist(), ranks.tolist(), strict=True)
        ]

    def tally(self, tally: Tally, kind: str, fates: Fates, leaked: npt.NDArray[np.bool_]) -> None:
        """Count records by whether their images are held out."""
        tally.add_all(kind, fates, (FREE, LEAKED), leaked.astype(np.int8))


@dataclass(frozen=True)
class Owned:
    """Records of a kind that a block of images has.

    Attributes:
        numbers: ``[I]`` of the images.
        counts: ``[I]`` records of each.
        owner: ``[N]`` which of these images each record belongs to.
        place: ``[N]`` the record's place within its image.
        running: ``[N]`` its number in the release.
        ids: ``[I]`` the image ids that the file gives: some belong to no image.
        fates: ``[I]`` of the elements: KEPT, UNKNOWN_IMAGE, or MALFORMED (the element is none).
    """

    numbers: Numbers
    counts: Numbers
    owner: npt.NDArray[np.intp]
    place: Numbers
    running: Numbers
    ids: Numbers
    fates: Fates

    @classmethod
    def of(
        cls, images: VgImages, name: str, total: int, spread: int, first: int, stop: int
    ) -> Owned:
        """Divide ``total`` records over all images, and take those of a block of images.

        Args:
            images: all of them.
            name: of the kind of records.
            total: how many the release has.
            spread: how many more or fewer than the mean an image has at most.
            first: number of the first image.
            stop: one past the last.
        """
        request = images.request
        shares = Shares(request.seed, f"vg/{name}", total, images.count, spread)
        numbers = np.arange(first, stop)
        starts, counts = shares.starts(numbers), shares.counts(numbers)
        owner = np.repeat(np.arange(len(numbers)), counts)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        draw = uniform(request.seed, f"vg/{name}/elements", numbers)
        fates = np.full(len(numbers), Fate.KEPT, dtype=np.int8)
        orphans, broken = request.invalid * _ORPHAN_ELEMENTS, request.invalid * _MALFORMED_ELEMENTS
        fates[draw < orphans + broken] = Fate.MALFORMED
        fates[draw < orphans] = Fate.UNKNOWN_IMAGE
        ids = images.ids(numbers)
        ids = np.where(fates == Fate.UNKNOWN_IMAGE, images.no_id + numbers, ids)
        return cls(numbers, counts, owner, place, starts[owner] + place, ids, fates)

    def elements(self, texts: list[str], form: Callable[[int, str], str]) -> str:
        """The records' texts, put together image by image."""
        start = 0
        elements = []
        for row, (count, id_, fate) in enumerate(
            zip(self.counts.tolist(), self.ids.tolist(), self.fates.tolist(), strict=True)
        ):
            inner = ", ".join(texts[start : start + count])
            start += count
            broken = fate == Fate.MALFORMED
            elements.append(_NO_ELEMENTS[row % len(_NO_ELEMENTS)] if broken else form(id_, inner))
        return ", ".join(elements)

    def count(self, images: VgImages, kind: str, fates: Fates) -> Tally:
        """What becomes of the records, with what becomes of their elements and images."""
        tally = Tally()
        leaked = images.leaked(self.numbers)
        broken = self.fates == Fate.MALFORMED
        # Nobody can tell how many records such an element would have had: it counts as one.
        images.tally(tally, kind, self.fates[broken], leaked[broken])
        lost = (images.fates(self.numbers) == Fate.MALFORMED) | (self.fates == Fate.UNKNOWN_IMAGE)
        inside = ~broken[self.owner]
        owner = self.owner[inside]
        images.tally(tally, kind, without_image(fates[inside], lost[owner]), leaked[owner])
        return tally


_NO_ELEMENTS = ('"nothing"', "null", "12")
