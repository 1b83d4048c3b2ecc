"""Objects365 v2 at any scale: 25 million long float boxes, scattered over the file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from xvlm_data.sample.annotations import words
from xvlm_data.sample.annotations.boxes import Sides, draw_boxes
from xvlm_data.sample.annotations.chance import (
    Permutation,
    Weighted,
    block_random,
    keys_of,
    sixteen_bits,
    zipf,
)
from xvlm_data.sample.annotations.coco_json import MALFORMED_BOXES, instance_fates
from xvlm_data.sample.annotations.files import Block, File, Run
from xvlm_data.sample.annotations.images import Images, image_texts
from xvlm_data.sample.annotations.plan import (
    Plan,
    Record,
    Request,
    crowded_numbers,
    finite,
    ids_for,
    rewrite,
    spoilt,
)
from xvlm_data.sample.annotations.sizes import OBJECTS365, scaled
from xvlm_data.sample.annotations.truth import Fate, Tally, without_image

SPLITS = ("train", "val")
_CATEGORY_COUNT = 365
_NO_CATEGORIES = np.array([0, 366, 999, 1_000_000], dtype=np.int64)
_CATEGORY = Weighted(zipf(_CATEGORY_COUNT, 3.0))
_V2_START = 900_000  # version 1's numbers stay below, version 2's start here
_ANNOTATION_ID_PRIME = 31_999_939
_DIGITS = 10
_CROWDED = 20.0


def _categories() -> list[Record]:
    """365 names with the traits of the real ones: alternatives, odd capitals, trailing spaces."""
    first, second = words.NOUNS[:_CATEGORY_COUNT], words.NOUNS[300 : 300 + _CATEGORY_COUNT]
    names = []
    for number, (name, other) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        name = name if number % 50 == 7 else name.capitalize()
        name = f"{name}/{other.capitalize()}" if number % 9 == 4 else name
        name = f"{name}/{other} Board" if number % 91 == 5 else name
        names.append(f"{name} " if number % 73 == 9 else name)
    return [{"id": number, "name": name} for number, name in enumerate(names, 1)]


@dataclass(frozen=True)
class _Images(Images):
    """The images of both splits: those of val after those of train."""

    name = "objects365"
    id_prime = 2_049_961
    usual_sizes = (
        *((1024, 683), (769, 512), (512, 769), (683, 512), (1024, 768), (910, 512), (640, 480)),
        *((768, 1024), (512, 512), (960, 540), (720, 1280), (1920, 1080), (500, 333), (455, 512)),
    )

    @cached_property
    def parts(self) -> tuple[int, int]:
        """How many images each split has."""
        train, val = OBJECTS365.images
        return scaled(train, self.request.scale), scaled(val, self.request.scale)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.parts)


def _plan(folder: Path, request: Request) -> Plan:
    """``zhiyuan_objv2_train.json`` and ``zhiyuan_objv2_val.json``."""
    images = _Images(request)
    tail = f'], "categories": {json.dumps(_categories())}, "licenses": []}}'
    files = [
        File(
            folder / f"zhiyuan_objv2_{split}.json",
            [
                b'{"images": [',
                Run(partial(_image_block, images, part), images.parts[part], 20_000, b", "),
                b'], "annotations": [',
                Run(
                    partial(_box_block, images, part),
                    scaled(OBJECTS365.boxes[part], request.scale),
                    20_000,
                    b", ",
                ),
                tail.encode(),
            ],
        )
        for part, split in enumerate(SPLITS)
    ]
    return Plan(files, _truth)


def _truth(tally: Tally) -> dict[str, Any]:
    return {"splits": {split: tally.settle({split: None}) for split in SPLITS}}


def _image_block(images: _Images, part: int, first: int, stop: int) -> Block:
    numbers = np.arange(first, stop) + sum(images.parts[:part])
    ids = images.ids(numbers)
    draw = sixteen_bits(keys_of(images.request.seed, "objects365/patch", numbers), 0)
    patches = np.where(ids < _V2_START, draw % 16, 16 + draw % 35)
    width, height = images.sizes(numbers)

    def records(widths: Sides, heights: Sides) -> list[str]:
        return [
            f'{{"height": {h}, "id": {id_}, "license": 5, "width": {w}, "file_name": '
            f'"images/{version}/patch{patch}/objects365_{version}_{id_:08d}.jpg", "url": ""}}'
            for h, id_, w, patch, version in zip(
                heights.tolist(),
                ids.tolist(),
                widths.tolist(),
                patches.tolist(),
                ["v1" if id_ < _V2_START else "v2" for id_ in ids.tolist()],
                strict=True,
            )
        ]

    fates = images.fates(numbers)
    texts = image_texts(records(width, height), records(width // 2, height * 2), fates, lost="id")
    tally = Tally()
    tally.add_all("image", fates, SPLITS[part])
    # A second record does not make the first one less good.
    tally.add("image", SPLITS[part], Fate.KEPT, int((fates == Fate.DUPLICATE_IMAGE).sum()))
    return Block(", ".join(texts).encode(), tally)


def _box_block(images: _Images, part: int, first: int, stop: int) -> Block:
    request, split, count = images.request, SPLITS[part], stop - first
    random = block_random(request.seed, f"objects365/{split}/boxes", first)
    scatter = Permutation.of(request.seed, f"objects365/{split}", images.parts[part])
    numbers = crowded_numbers(random, count, scatter, _CROWDED) + sum(images.parts[:part])
    fates = instance_fates(
        random, count, request.invalid, small=OBJECTS365.small, crowd=OBJECTS365.crowd
    )
    width, height = images.sizes(numbers)
    boxes = draw_boxes(random, fates, width, height, _DIGITS)
    fine = finite(boxes)
    # As released: the corner has ten decimals, and the sides are differences of such numbers.
    fine[:, 2:] = np.round(fine[:, :2] + fine[:, 2:], _DIGITS) - fine[:, :2]
    exact = fates == Fate.BOX_EMPTY
    fine[exact] = boxes[exact]
    image_ids = images.stated_ids(random, numbers, fates)
    categories = 1 + _CATEGORY[random.integers(0, 1 << 16, count)]
    astray = fates == Fate.UNKNOWN_CATEGORY
    categories = np.where(astray, random.choice(_NO_CATEGORIES, count), categories)
    ids = ids_for(
        sum(scaled(n, request.scale) for n in OBJECTS365.boxes),
        request.seed,
        "objects365/full/boxes",
        _ANNOTATION_ID_PRIME,
    ).of_all(np.arange(first, stop) + part * scaled(OBJECTS365.boxes[0], request.scale))
    flags = random.random((count, 2)) < (0.02, 0.01)
    texts = [
        f'{{"id": {id_}, "iscrowd": {crowd:d}, "isfake": {fake:d}, "area": {area}, "isreflected": '
        f'{mirrored:d}, "bbox": [{x}, {y}, {w}, {h}], "image_id": {image}, "category_id": '
        f"{category}}}"
        for id_, crowd, fake, area, mirrored, (x, y, w, h), image, category in zip(
            ids.tolist(),
            (fates == Fate.CROWD).tolist(),
            flags[:, 0].tolist(),
            (fine[:, 2] * fine[:, 3]).tolist(),
            flags[:, 1].tolist(),
            fine.tolist(),
            image_ids.tolist(),
            categories.tolist(),
            strict=True,
        )
    ]

    def not_finite(row: int, record: Record) -> Record:
        return {**record, "bbox": boxes[row].tolist()}

    rewrite(texts, np.flatnonzero(fates == Fate.BOX_NOT_FINITE), not_finite)
    spoilt(texts, fates, MALFORMED_BOXES)
    tally = Tally()
    lost = images.fates(numbers) == Fate.MALFORMED
    tally.add_all("object", without_image(fates, lost), split)
    return Block(", ".join(texts).encode(), tally)


PLANS = {"objects365": _plan}
