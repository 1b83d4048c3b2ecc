"""COCO 2017 at any scale: instances, captions, and Karpathy's split of the same images."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xvlm_data.sample.annotations import words
from xvlm_data.sample.annotations.boxes import Sides, choose_fates, draw_boxes, invalid_shares
from xvlm_data.sample.annotations.chance import (
    Numbers,
    Permutation,
    Weighted,
    block_random,
    keys_of,
    mixed,
    sixteen_bits,
    zipf,
)
from xvlm_data.sample.annotations.coco_json import (
    MALFORMED_BOXES,
    MALFORMED_CAPTIONS,
    crowd_mask,
    polygons,
    whole,
)
from xvlm_data.sample.annotations.files import Block, File, Run
from xvlm_data.sample.annotations.plan import (
    Plan,
    Record,
    Request,
    crowded_numbers,
    finite,
    ids_for,
    image_fates,
    image_texts,
    rewrite,
    spoilt,
)
from xvlm_data.sample.annotations.sizes import COCO, scaled
from xvlm_data.sample.annotations.truth import Fate, Fates, Tally, without_image
from xvlm_data.sample.coco import IMAGE_ID_PRIME, INFO, LICENSES
from xvlm_data.sample.release import HOST, Ids

PARTS = ("train2017", "val2017")
KARPATHY = ("train", "restval", "val", "test")
#: Which of Karpathy's parts a split of his means.
_SPLITS = {
    "train": ("train", "restval"),
    "restval": ("restval",),
    "val": ("val",),
    "test": ("test",),
}

_NAMES = {
    "person": "1 person",
    "vehicle": "2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat",
    "outdoor": "10 traffic light, 11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench",
    "animal": "16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow, 22 elephant, 23 bear, "
    "24 zebra, 25 giraffe",
    "accessory": "27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase",
    "sports": "34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, "
    "40 baseball glove, 41 skateboard, 42 surfboard, 43 tennis racket",
    "kitchen": "44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl",
    "food": "52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, "
    "59 pizza, 60 donut, 61 cake",
    "furniture": "62 chair, 63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet",
    "electronic": "72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell phone",
    "appliance": "78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator",
    "indoor": "84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier, "
    "90 toothbrush",
}
_CATEGORIES = [
    {"supercategory": above, "id": int(number), "name": name}
    for above, names in _NAMES.items()
    for number, name in (entry.split(" ", 1) for entry in names.split(", "))
]
_CATEGORY_IDS = np.array([category["id"] for category in _CATEGORIES], dtype=np.int64)
_NO_CATEGORIES = np.array([0, 12, 26, 66, 83, 91, 999], dtype=np.int64)
_CATEGORY = Weighted(zipf(len(_CATEGORIES)))

_SIZES = np.array(
    [
        *((640, 480), (640, 427), (480, 640), (427, 640), (500, 375), (640, 426), (640, 425)),
        *((612, 612), (640, 360), (375, 500), (640, 429), (640, 428), (500, 333), (333, 500)),
    ]
)
_SIZE = Weighted(zipf(len(_SIZES), 1.0))

_ANNOTATION_ID_PRIME = 899_999_963
_FIRST_CROWD_ID = 900_100_000_000  # twelve digits, as released: more than 32 bits
_CROWDED = 5.0  # the fullest images have six times as many objects as the emptiest
_CAPTIONS = 5
_COMPACT = (",", ": ")  # the official files of 2017 have no space after a comma


@dataclass(frozen=True)
class CocoImages:
    """The images of both parts: numbers from 0 on, val2017's after train2017's."""

    request: Request

    @cached_property
    def parts(self) -> tuple[int, int]:
        """How many images train2017 and val2017 have."""
        train, val = COCO.images
        return scaled(train, self.request.scale), scaled(val, self.request.scale)

    @cached_property
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
    def _ids(self) -> Ids:
        return ids_for(self.count, self.request.seed, "coco/full", IMAGE_ID_PRIME)

    @cached_property
    def _train2014(self) -> Permutation:
        return Permutation.of(self.request.seed, "coco/train2014", self.parts[0])

    @cached_property
    def _val2014(self) -> Permutation:
        return Permutation.of(self.request.seed, "coco/val2014", self.count - self.of_train2014)

    def ids(self, numbers: Numbers) -> Numbers:
        """COCO ids."""
        return self._ids.of_all(numbers)

    @property
    def no_id(self) -> int:
        """Ids from here on belong to no image."""
        return self._ids.prime

    def sizes(self, numbers: Numbers) -> tuple[Sides, Sides]:
        """Widths and heights in pixels."""
        sizes = _SIZES[_SIZE[sixteen_bits(keys_of(self.request.seed, "coco/size", numbers), 0)]]
        return sizes[:, 0], sizes[:, 1]

    def fates(self, numbers: Numbers) -> Fates:
        """See `image_fates`."""
        return image_fates(self.request, "coco", numbers)

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


def _plan(folder: Path, request: Request) -> Plan:
    """The annotation files of train2017 and val2017, and ``dataset_coco.json``."""
    images = CocoImages(request)
    files = []
    for part, name in enumerate(PARTS):
        head = json.dumps({"info": INFO, "licenses": LICENSES}, separators=_COMPACT)[:-1]
        for kind, make, counts, size in (
            ("instances", _instances, COCO.instances, 5_000),
            ("captions", _captions, COCO.captions, 20_000),
        ):
            tail = "]}"
            if kind == "instances":
                tail = f'],"categories": {json.dumps(_CATEGORIES, separators=_COMPACT)}}}'
            files.append(
                File(
                    folder / "annotations" / f"{kind}_{name}.json",
                    [
                        f'{head},"images": ['.encode(),
                        Run(partial(_images, images, part, kind), images.parts[part], 5_000),
                        b'],"annotations": [',
                        Run(partial(make, images, part), scaled(counts[part], request.scale), size),
                        tail.encode(),
                    ],
                )
            )
    files.append(
        File(
            folder / "dataset_coco.json",
            [
                b'{"images": [',
                Run(partial(_karpathy, images), images.count, 1_000, b", "),
                b'], "dataset": "coco"}',
            ],
        )
    )
    return Plan(files, _truth)


def _truth(tally: Tally) -> dict[str, Any]:
    """With Karpathy's split, as the folder is; and for a copy of it without his file."""

    def parts(wanted: tuple[str, ...]) -> dict[str, str | None]:
        return {
            f"{part}/{name}": None if name in wanted else "other_split"
            for part in PARTS
            for name in KARPATHY
        }

    return {
        "splits": {split: tally.settle(parts(wanted)) for split, wanted in _SPLITS.items()},
        "without_karpathy": {
            part.removesuffix("2017"): tally.settle({f"{part}/{name}": None for name in KARPATHY})
            for part in PARTS
        },
    }


def _count(
    tally: Tally, kind: str, images: CocoImages, part: int, numbers: Numbers, fates: Fates
) -> None:
    names = [f"{PARTS[part]}/{name}" for name in KARPATHY]
    tally.add_all(kind, fates, names, images.karpathy(numbers))


def _images(images: CocoImages, part: int, kind: str, first: int, stop: int) -> Block:
    seed = images.request.seed
    numbers = np.arange(first, stop) + part * images.parts[0]
    width, height = images.sizes(numbers)
    keys = keys_of(seed, "coco/record", numbers)
    draws = [sixteen_bits(keys, place) for place in range(4)]
    columns = (
        1 + draws[0] % 8,
        images.ids(numbers),
        10 + draws[1] % 20,
        draws[1] // 20 % 24,
        draws[1] // 480 % 60,
        draws[2] % 60,
        1 + draws[2] // 60 % 9,
        1000 + draws[3] % 9000,
        10**9 + (keys % np.uint64(8 * 10**9)).astype(np.int64),
        (mixed(keys) >> np.uint64(24)).astype(np.int64),
    )
    rows = list(zip(*(column.tolist() for column in columns), strict=True))

    def records(widths: Sides, heights: Sides) -> list[str]:
        return [
            f'{{"license": {license_},"file_name": "{id_:012d}.jpg","coco_url": '
            f'"http://images.{HOST}/{PARTS[part]}/{id_:012d}.jpg","height": {h},"width": {w},'
            f'"date_captured": "2013-11-{day} {hour:02d}:{minute:02d}:{second:02d}","flickr_url": '
            f'"http://farm{farm}.static.{HOST}/{server}/{photo}_{secret:010x}_z.jpg","id": {id_}}}'
            for (
                license_,
                id_,
                day,
                hour,
                minute,
                second,
                farm,
                server,
                photo,
                secret,
            ), w, h in zip(rows, widths.tolist(), heights.tolist(), strict=True)
        ]

    fates = images.fates(numbers)
    texts = image_texts(records(width, height), records(width // 2, height * 2), fates, lost="id")
    tally = Tally()
    if kind == "instances":  # the captions file lists the same images once more
        good = fates != Fate.MALFORMED
        _count(tally, "image", images, part, numbers[good], np.zeros(good.sum(), np.int8))
    spoilt_ = fates != Fate.KEPT
    _count(tally, "image", images, part, numbers[spoilt_], fates[spoilt_])
    return Block(",".join(texts).encode(), tally)


def _instances(images: CocoImages, part: int, first: int, stop: int) -> Block:
    request = images.request
    count = stop - first
    random = block_random(request.seed, f"coco/{PARTS[part]}/instances", first)
    scatter = Permutation.of(request.seed, f"coco/{PARTS[part]}", images.parts[part])
    numbers = crowded_numbers(random, count, scatter, _CROWDED) + part * images.parts[0]
    fates = choose_fates(
        random,
        count,
        {
            Fate.SMALL: COCO.small,
            Fate.CROWD: COCO.crowd,
            **invalid_shares(
                request.invalid,
                Fate.CLIPPED,
                Fate.BOX_EMPTY,
                Fate.BOX_OUTSIDE,
                Fate.BOX_NOT_FINITE,
                Fate.UNKNOWN_IMAGE,
                Fate.UNKNOWN_CATEGORY,
                Fate.MALFORMED,
            ),
        },
    )
    width, height = images.sizes(numbers)
    boxes = draw_boxes(random, fates, width, height, digits=2)
    orphan = fates == Fate.UNKNOWN_IMAGE
    image_ids = np.where(
        orphan, images.no_id + random.integers(0, 10**5, count), images.ids(numbers)
    )
    categories = _CATEGORY_IDS[_CATEGORY[random.integers(0, 1 << 16, count)]]
    astray = fates == Fate.UNKNOWN_CATEGORY
    categories = np.where(astray, random.choice(_NO_CATEGORIES, count), categories)
    running = np.arange(first, stop) + part * scaled(COCO.instances[0], request.scale)
    ids = ids_for(
        sum(scaled(n, request.scale) for n in COCO.instances),
        request.seed,
        "coco/full/instances",
        _ANNOTATION_ID_PRIME,
    ).of_all(running)
    numbers_only = finite(boxes)
    outlines, areas = polygons(random, numbers_only)
    texts = [
        f'{{"segmentation": {outline},"area": {area},"iscrowd": 0,"image_id": {image},"bbox": '
        f'[{x},{y},{w},{h}],"category_id": {category},"id": {id_}}}'
        for outline, area, image, (x, y, w, h), category, id_ in zip(
            outlines,
            areas,
            image_ids.tolist(),
            numbers_only.tolist(),
            categories.tolist(),
            ids.tolist(),
            strict=True,
        )
    ]

    def not_finite(row: int, record: Record) -> Record:
        return {**record, "bbox": boxes[row].tolist()}

    crowds = np.flatnonzero(fates == Fate.CROWD)
    groups = dict(
        zip(crowds.tolist(), whole(boxes[crowds], width[crowds], height[crowds]), strict=True)
    )

    def crowd(row: int, record: Record) -> Record:
        mask = crowd_mask(random, groups[row], int(width[row]), int(height[row]))
        return {
            **record,
            "segmentation": {name: mask[name] for name in ("counts", "size")},
            "area": mask["area"],
            "iscrowd": 1,
            "bbox": groups[row].tolist(),
            "id": _FIRST_CROWD_ID + int(running[row]),
        }

    rewrite(texts, np.flatnonzero(fates == Fate.BOX_NOT_FINITE), not_finite, _COMPACT)
    rewrite(texts, crowds, crowd, _COMPACT)
    spoilt(texts, fates, MALFORMED_BOXES, _COMPACT)
    tally = Tally()
    lost = images.fates(numbers) == Fate.MALFORMED
    _count(tally, "object", images, part, numbers, without_image(fates, lost))
    return Block(",".join(texts).encode(), tally)


def _caption_image(images: CocoImages, part: int, captions: Numbers) -> Numbers:
    """The image of each caption of a part: five an image, and a few have one or more besides."""
    count = images.parts[part]
    scatter = Permutation.of(images.request.seed, f"coco/{PARTS[part]}/sixth", count)
    return np.where(
        captions < _CAPTIONS * count, captions // _CAPTIONS, scatter[captions % count]
    ) + count_before(images, part)


def count_before(images: CocoImages, part: int) -> int:
    """How many images the parts before this one have."""
    return sum(images.parts[:part])


def _caption_texts(images: CocoImages, part: int, captions: Numbers) -> list[str]:
    return words.captions(keys_of(images.request.seed, f"coco/{PARTS[part]}/captions", captions))


def _caption_ids(images: CocoImages, part: int, captions: Numbers) -> Numbers:
    scale = images.request.scale
    sizes = [scaled(n, scale) for n in COCO.captions]
    ids = ids_for(sum(sizes), images.request.seed, "coco/full/captions", _ANNOTATION_ID_PRIME)
    return ids.of_all(captions + part * sizes[0])


def _captions(images: CocoImages, part: int, first: int, stop: int) -> Block:
    request = images.request
    total = scaled(COCO.captions[part], request.scale)
    captions = Permutation.of(request.seed, f"coco/{PARTS[part]}/captions", total)[
        np.arange(first, stop)
    ]
    numbers = _caption_image(images, part, captions)
    random = block_random(request.seed, f"coco/{PARTS[part]}/caption fates", first)
    fates = choose_fates(
        random,
        len(captions),
        invalid_shares(request.invalid, Fate.EMPTY_TEXT, Fate.UNKNOWN_IMAGE, Fate.MALFORMED),
    )
    said = _caption_texts(images, part, captions)
    for row in np.flatnonzero(fates == Fate.EMPTY_TEXT).tolist():
        said[row] = ("", " ", "\n", "\t ")[row % 4]
    orphan = fates == Fate.UNKNOWN_IMAGE
    image_ids = np.where(
        orphan, images.no_id + random.integers(0, 10**5, len(captions)), images.ids(numbers)
    )
    texts = [
        f'{{"image_id": {image},"id": {id_},"caption": {words.quoted(text)}}}'
        for image, id_, text in zip(
            image_ids.tolist(), _caption_ids(images, part, captions).tolist(), said, strict=True
        )
    ]
    spoilt(texts, fates, MALFORMED_CAPTIONS, _COMPACT)
    tally = Tally()
    lost = images.fates(numbers) == Fate.MALFORMED
    _count(tally, "caption", images, part, numbers, without_image(fates, lost))
    return Block(",".join(texts).encode(), tally)


def _karpathy(images: CocoImages, first: int, stop: int) -> Block:
    """Records of ``dataset_coco.json``: five captions of each image, with their tokens."""
    numbers = Permutation.of(images.request.seed, "coco/karpathy", images.count)[
        np.arange(first, stop)
    ]
    said: dict[int, list[tuple[int, str]]] = {}
    for part in range(len(PARTS)):
        before = count_before(images, part)
        inside = numbers[(numbers >= before) & (numbers < before + images.parts[part])]
        captions = ((inside - before)[:, None] * _CAPTIONS + np.arange(_CAPTIONS)).ravel()
        pairs = zip(
            _caption_ids(images, part, captions).tolist(),
            _caption_texts(images, part, captions),
            strict=True,
        )
        for number, *five in zip(inside.tolist(), *[pairs] * _CAPTIONS, strict=True):
            said[number] = five
    records = []
    for running, (number, cocoid, split) in enumerate(
        zip(
            numbers.tolist(),
            images.ids(numbers).tolist(),
            images.karpathy(numbers).tolist(),
            strict=True,
        ),
        first,
    ):
        filepath = "val2014" if split else "train2014"
        sentences = [
            {
                "tokens": re.findall(r"\w+", text.lower()),
                "raw": text,
                "imgid": running,
                "sentid": id_,
            }
            for id_, text in said[number]
        ]
        records.append(
            {
                "filepath": filepath,
                "sentids": [id_ for id_, _ in said[number]],
                "filename": f"COCO_{filepath}_{cocoid:012d}.jpg",
                "imgid": running,
                "split": KARPATHY[split],
                "sentences": sentences,
                "cocoid": cocoid,
            }
        )
    return Block(json.dumps(records)[1:-1].encode())


PLANS = {"coco": _plan}
