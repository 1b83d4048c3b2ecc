"""COCO 2017 at any scale: instances, captions, and Karpathy's split of the same images."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from xvlm_data.sample.annotations.boxes import Sides, draw_boxes
from xvlm_data.sample.annotations.chance import (
    Permutation,
    Weighted,
    block_random,
    keys_of,
    mixed,
    sixteen_bits,
    zipf,
)
from xvlm_data.sample.annotations.coco_captions import caption_block, karpathy_block
from xvlm_data.sample.annotations.coco_images import KARPATHY, PARTS, CocoImages
from xvlm_data.sample.annotations.coco_json import (
    ANNOTATION_ID_PRIME,
    COMPACT,
    MALFORMED_BOXES,
    crowd_mask,
    instance_fates,
    polygons,
    whole,
)
from xvlm_data.sample.annotations.files import Block, File, Run
from xvlm_data.sample.annotations.images import image_texts
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
from xvlm_data.sample.annotations.sizes import COCO
from xvlm_data.sample.annotations.truth import Fate, Tally, without_image
from xvlm_data.sample.coco import INFO, LICENSES
from xvlm_data.sample.release import HOST

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

_INFO = {**INFO, "description": "Annotations in the layout of COCO 2017, by xvlm-data sample"}
_FIRST_CROWD_ID = 900_100_000_000  # twelve digits, as released: more than 32 bits
_CROWDED = 5.0  # the fullest images have six times as many objects as the emptiest


def _plan(folder: Path, request: Request) -> Plan:
    """The annotation files of train2017 and val2017, and ``dataset_coco.json``."""
    images = CocoImages(request)
    files = []
    for part, name in enumerate(PARTS):
        head = json.dumps({"info": _INFO, "licenses": LICENSES}, separators=COMPACT)[:-1]
        for kind, make, count, size in (
            ("instances", _instances, images.instances(part), 5_000),
            ("captions", caption_block, images.captions(part), 20_000),
        ):
            tail = "]}"
            if kind == "instances":
                tail = f'],"categories": {json.dumps(_CATEGORIES, separators=COMPACT)}}}'
            files.append(
                File(
                    folder / "annotations" / f"{kind}_{name}.json",
                    [
                        f'{head},"images": ['.encode(),
                        Run(partial(_images, images, part, kind), images.parts[part], 5_000),
                        b'],"annotations": [',
                        Run(partial(make, images, part), count, size),
                        tail.encode(),
                    ],
                )
            )
    files.append(
        File(
            folder / "dataset_coco.json",
            [
                b'{"images": [',
                Run(partial(karpathy_block, images), images.count, 1_000, b", "),
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
        } | {f"karpathy/{name}": None for name in wanted}

    return {
        "splits": {split: tally.settle(parts(wanted)) for split, wanted in _SPLITS.items()},
        "without_karpathy": {
            part.removesuffix("2017"): tally.settle({f"{part}/{name}": None for name in KARPATHY})
            for part in PARTS
        },
    }


def _images(images: CocoImages, part: int, kind: str, first: int, stop: int) -> Block:
    seed = images.request.seed
    numbers = np.arange(first, stop) + images.before(part)
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
        images.tally(tally, "image", part, numbers[good], np.zeros(good.sum(), np.int8))
    spoilt_ = fates != Fate.KEPT
    images.tally(tally, "image", part, numbers[spoilt_], fates[spoilt_])
    return Block(",".join(texts).encode(), tally)


def _instances(images: CocoImages, part: int, first: int, stop: int) -> Block:
    request = images.request
    count = stop - first
    random = block_random(request.seed, f"coco/{PARTS[part]}/instances", first)
    scatter = Permutation.of(request.seed, f"coco/{PARTS[part]}", images.parts[part])
    numbers = crowded_numbers(random, count, scatter, _CROWDED) + images.before(part)
    fates = instance_fates(random, count, request.invalid, small=COCO.small, crowd=COCO.crowd)
    width, height = images.sizes(numbers)
    boxes = draw_boxes(random, fates, width, height, digits=2)
    image_ids = images.stated_ids(random, numbers, fates)
    categories = _CATEGORY_IDS[_CATEGORY[random.integers(0, 1 << 16, count)]]
    astray = fates == Fate.UNKNOWN_CATEGORY
    categories = np.where(astray, random.choice(_NO_CATEGORIES, count), categories)
    running = np.arange(first, stop) + part * images.instances(0)
    ids = ids_for(
        images.instances(0) + images.instances(1),
        request.seed,
        "coco/full/instances",
        ANNOTATION_ID_PRIME,
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

    rewrite(texts, np.flatnonzero(fates == Fate.BOX_NOT_FINITE), not_finite, COMPACT)
    rewrite(texts, crowds, crowd, COMPACT)
    spoilt(texts, fates, MALFORMED_BOXES, COMPACT)
    tally = Tally()
    lost = images.fates(numbers) == Fate.MALFORMED
    images.tally(tally, "object", part, numbers, without_image(fates, lost))
    return Block(",".join(texts).encode(), tally)


PLANS = {"coco": _plan}
