"""Visual Genome 1.2 at any scale: image list, region descriptions, objects and attributes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xvlm_data.sample.annotations import words
from xvlm_data.sample.annotations.boxes import (
    Boxes,
    Sides,
    choose_fates,
    draw_boxes,
    invalid_shares,
)
from xvlm_data.sample.annotations.chance import (
    Keys,
    block_random,
    keys_of,
    mixed,
    sixteen_bits,
    uniform,
)
from xvlm_data.sample.annotations.files import Block, File, Run
from xvlm_data.sample.annotations.images import image_texts
from xvlm_data.sample.annotations.plan import (
    Plan,
    Record,
    Request,
    Spoil,
    finite,
    having,
    ids_for,
    replaced_by,
    rewrite,
    spoilt,
    without,
)
from xvlm_data.sample.annotations.sizes import VG, scaled
from xvlm_data.sample.annotations.truth import Fate, Fates, Tally
from xvlm_data.sample.annotations.vg_images import FREE, LEAKED, Owned, VgImages
from xvlm_data.sample.release import HOST

_REGION_ID_PRIME, _OBJECT_ID_PRIME = 6_000_011, 4_999_999
_IMAGES_A_BLOCK = 250

_BOXES = (
    *(Fate.CLIPPED, Fate.BOX_EMPTY, Fate.BOX_OUTSIDE, Fate.BOX_NOT_FINITE),
    *(Fate.EMPTY_TEXT, Fate.MALFORMED),
)
_MALFORMED_REGIONS: tuple[Spoil, ...] = (
    *(without("phrase"), having("phrase", 7), having("x", "left"), without("width")),
    *(having("height", None), replaced_by(17), replaced_by(None)),
)
_MALFORMED_OBJECTS: tuple[Spoil, ...] = (
    *(without("w"), having("y", "top"), having("names", 5), having("h", None)),
    *(replaced_by(17), replaced_by("a lamp")),
)


def _plan(folder: Path, request: Request) -> Plan:
    """The four files that a builder reads."""
    images = VgImages(request)
    makers: dict[str, Callable[[VgImages, int, int], Block]] = {
        "image_data": _image_block,
        "region_descriptions": _region_block,
        "objects": _object_block,
        "attributes": _attribute_block,
    }
    files = [
        File(
            folder / f"{name}.json",
            [b"[", Run(partial(make, images), images.count, _IMAGES_A_BLOCK, b", "), b"]"],
        )
        for name, make in makers.items()
    ]
    return Plan(files, _truth)


def _truth(tally: Tally) -> dict[str, Any]:
    """With Karpathy's file of the same sample at hand, and without it (or with --keep-leaks)."""
    about = {"unattached_attributes": tally.unattached_attributes}
    return {
        "splits": {"train": {**tally.settle({FREE: None, LEAKED: "leak"}), **about}},
        "keep_leaks": {"train": {**tally.settle({FREE: None, LEAKED: None}), **about}},
    }


def _image_block(images: VgImages, first: int, stop: int) -> Block:
    numbers = np.arange(first, stop)
    width, height = images.sizes(numbers)
    keys = keys_of(images.request.seed, "vg/record", numbers)
    coco_ids = images.coco_ids(numbers)
    flickr_ids = [
        None if coco is None else flickr
        for coco, flickr in zip(
            coco_ids, (10**8 + (keys % np.uint64(10**10)).astype(np.int64)).tolist(), strict=True
        )
    ]

    def records(widths: Sides, heights: Sides) -> list[str]:
        return [
            json.dumps(
                {
                    "width": w,
                    "url": f"https://images.{HOST}/people/rak248/VG_100K{folder}/{id_}.jpg",
                    "height": h,
                    "image_id": id_,
                    "coco_id": coco,
                    "flickr_id": flickr,
                }
            )
            for w, folder, h, id_, coco, flickr in zip(
                widths.tolist(),
                ["_2" if bit else "" for bit in (keys & np.uint64(1)).tolist()],
                heights.tolist(),
                images.ids(numbers).tolist(),
                coco_ids,
                flickr_ids,
                strict=True,
            )
        ]

    fates = images.fates(numbers)
    texts = image_texts(
        records(width, height), records(width // 2, height * 2), fates, lost="image_id"
    )
    tally = Tally()
    again = fates == Fate.DUPLICATE_IMAGE
    leaked = images.leaked(numbers)
    images.tally(tally, "image", fates, leaked)
    # A second record does not make the first one less good.
    images.tally(tally, "image", np.zeros(again.sum(), np.int8), leaked[again])
    return Block(", ".join(texts).encode(), tally)


def _drawn(
    images: VgImages, owned: Owned, fates: Fates, random: np.random.Generator
) -> tuple[Boxes, Iterator[list[int]]]:
    """Boxes, and the same in whole numbers that can be formatted."""
    width, height = images.sizes(owned.numbers)
    boxes = draw_boxes(random, fates, width[owned.owner], height[owned.owner], digits=0)
    return boxes, iter(finite(boxes).astype(np.int64).tolist())


def _region_block(images: VgImages, first: int, stop: int) -> Block:
    request = images.request
    total = scaled(VG.regions, request.scale)
    owned = Owned.of(images, "regions", total, 35, first, stop)
    random = block_random(request.seed, "vg/regions", first)
    count = len(owned.owner)
    fates = choose_fates(
        random,
        count,
        {
            Fate.SMALL: VG.small_regions,
            Fate.TEXT_OVERLAP: VG.repeated_phrases,
            **invalid_shares(request.invalid, *_BOXES),
        },
    )
    keys = keys_of(request.seed, "vg/phrases", owned.running)
    said, fates = _phrases(owned, fates, keys, random)
    boxes, whole = _drawn(images, owned, fates, random)
    ids = ids_for(total, request.seed, "vg/full/regions", _REGION_ID_PRIME).of_all(owned.running)
    texts = [
        f'{{"region_id": {id_}, "width": {w}, "height": {h}, "image_id": {image}, "phrase": '
        f'{words.quoted(text)}, "y": {y}, "x": {x}}}'
        for id_, (x, y, w, h), image, text in zip(
            ids.tolist(), whole, images.ids(owned.numbers)[owned.owner].tolist(), said, strict=True
        )
    ]

    def not_finite(row: int, record: Record) -> Record:
        x, y, w, h = boxes[row].tolist()
        return {**record, "width": w, "height": h, "y": y, "x": x}

    rewrite(texts, np.flatnonzero(fates == Fate.BOX_NOT_FINITE), not_finite)
    spoilt(texts, fates, _MALFORMED_REGIONS)
    text = owned.elements(texts, lambda id_, inner: f'{{"regions": [{inner}], "id": {id_}}}')
    return Block(text.encode(), owned.count(images, "region", fates))


def _phrases(
    owned: Owned, fates: Fates, keys: Keys, random: np.random.Generator
) -> tuple[list[str], Fates]:
    """Phrases; those that overlap repeat an earlier one of their image that is kept.

    Where the earlier one that was drawn is not kept, nothing is repeated.
    """
    places = (owned.place + owned.numbers[owned.owner] * 37) % words.MOST_PHRASES
    said = words.phrases(keys, places)
    kept = np.isin(fates, [Fate.KEPT, Fate.CLIPPED])
    rows = np.flatnonzero(fates == Fate.TEXT_OVERLAP)
    earlier = rows - owned.place[rows] + (random.random(len(rows)) * owned.place[rows]).astype(int)
    possible = kept[earlier] & (earlier < rows)
    fates = fates.copy()
    fates[rows[~possible]] = Fate.KEPT
    forms = random.integers(0, 4, len(rows))
    for row, source, form in zip(
        rows[possible].tolist(), earlier[possible].tolist(), forms[possible].tolist(), strict=True
    ):
        said[row] = words.repeated(said[source], form)
    said = words.as_typed(mixed(keys ^ np.uint64(1)), said)
    for row in np.flatnonzero(fates == Fate.EMPTY_TEXT).tolist():
        said[row] = ("", " ", "\n")[row % 3]
    return said, fates


@dataclass(frozen=True)
class _Objects:
    """The objects of a block of images, as both ``objects.json`` and ``attributes.json`` have them.

    Attributes:
        owned: which image each belongs to.
        fates: ``[N]`` in ``objects.json``.
        boxes: ``[N, 4]``.
        heads: ``[N]`` their JSON up to ``w``.
        tails: ``[N]`` the rest of it.
        keys: ``[N]`` random bits.
    """

    owned: Owned
    fates: Fates
    boxes: Boxes
    heads: list[str]
    tails: list[str]
    keys: Keys

    @classmethod
    def of(cls, images: VgImages, first: int, stop: int) -> _Objects:
        request = images.request
        total = scaled(VG.objects, request.scale)
        owned = Owned.of(images, "objects", total, 25, first, stop)
        random = block_random(request.seed, "vg/objects", first)
        fates = choose_fates(
            random,
            len(owned.owner),
            {Fate.SMALL: VG.small_objects, **invalid_shares(request.invalid, *_BOXES)},
        )
        boxes, whole = _drawn(images, owned, fates, random)
        keys = keys_of(request.seed, "vg/names", owned.running)
        more = mixed(keys)
        names, others = words.nouns(keys), words.nouns(more)
        draws = sixteen_bits(keys, 1).tolist()
        ids = ids_for(total, request.seed, "vg/full/objects", _OBJECT_ID_PRIME)
        heads, tails = [], []
        for name, other, draw, fate, id_, (x, y, w, h) in zip(
            names,
            others,
            draws,
            fates.tolist(),
            ids.of_all(owned.running).tolist(),
            whole,
            strict=True,
        ):
            listed = f'"{name}"' if draw > 4600 else f'"{name}", "{other} {name}"'
            if fate == Fate.EMPTY_TEXT:
                listed = ("", '""', '" "')[draw % 3]
            synset = f'"{name}.n.0{1 + draw % 3}"' if draw % 14 else ""
            heads.append(
                f'{{"synsets": [{synset}], "h": {h}, "object_id": {id_}, "names": [{listed}], '
                f'"w": {w}, '
            )
            tails.append(f'"y": {y}, "x": {x}}}')
        return cls(owned, fates, boxes, heads, tails, keys)

    def rewrite(self, texts: list[str]) -> None:
        """Put in what is not finite."""

        def not_finite(row: int, record: Record) -> Record:
            x, y, w, h = self.boxes[row].tolist()
            return {**record, "h": h, "w": w, "y": y, "x": x}

        rewrite(texts, np.flatnonzero(self.fates == Fate.BOX_NOT_FINITE), not_finite)


def _object_block(images: VgImages, first: int, stop: int) -> Block:
    objects = _Objects.of(images, first, stop)
    texts = [head + tail for head, tail in zip(objects.heads, objects.tails, strict=True)]
    objects.rewrite(texts)
    spoilt(texts, objects.fates, _MALFORMED_OBJECTS)
    owned = objects.owned
    text = owned.elements(texts, lambda id_, inner: f'{{"image_id": {id_}, "objects": [{inner}]}}')
    return Block(text.encode(), owned.count(images, "object", objects.fates))


def _attribute_block(images: VgImages, first: int, stop: int) -> Block:
    """The same objects once more; three in four have attributes, the others not even the key."""
    objects = _Objects.of(images, first, stop)
    owned, keys = objects.owned, mixed(objects.keys ^ np.uint64(2))
    described = uniform(images.request.seed, "vg/described", owned.running) < VG.described_objects
    several = sixteen_bits(keys, 1) % 3
    first_ones, second_ones = words.attributes(keys), words.attributes(mixed(keys))
    lists = [
        f'"attributes": ["{a}"], ' if more else f'"attributes": ["{a}", "{b}"], '
        for a, b, more in zip(first_ones, second_ones, several.tolist(), strict=True)
    ]
    texts = [
        head + (attributes if has else "") + tail
        for head, attributes, has, tail in zip(
            objects.heads, lists, described.tolist(), objects.tails, strict=True
        )
    ]
    objects.rewrite(texts)
    # This file is whole: what is spoilt in objects.json leaves attributes of no object behind.
    no_image = (owned.fates != Fate.KEPT) | (images.fates(owned.numbers) == Fate.MALFORMED)
    gone = (objects.fates == Fate.MALFORMED) | no_image[owned.owner]
    tally = Tally()
    tally.unattached_attributes = int((described & gone).sum())
    start, elements = 0, []
    for count, id_ in zip(owned.counts.tolist(), images.ids(owned.numbers).tolist(), strict=True):
        inner = ", ".join(texts[start : start + count])
        start += count
        elements.append(f'{{"image_id": {id_}, "attributes": [{inner}]}}')
    return Block(", ".join(elements).encode(), tally)


PLANS = {"vg": _plan}
