"""COCO 2017 in miniature: instances, captions, and Karpathy's split of the same images."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from xvlm_data.sample import language, render
from xvlm_data.sample.release import HOST, Ids, Picture, Release, held_out, sentence, write_json
from xvlm_data.sample.scene import Crowd, Scene, SceneKey, Thing, make_scene

Record = dict[str, Any]

INFO = {
    "description": "Miniature in the layout of COCO 2017, made by xvlm-data sample",
    "url": f"http://{HOST}",
    "version": "1.0",
    "year": 2017,
    "contributor": "xvlm-data",
    "date_created": "2017/09/01",
}
_CREATIVE_COMMONS = (
    ("by-nc-sa", "Attribution-NonCommercial-ShareAlike License"),
    ("by-nc", "Attribution-NonCommercial License"),
    ("by-nc-nd", "Attribution-NonCommercial-NoDerivs License"),
    ("by", "Attribution License"),
    ("by-sa", "Attribution-ShareAlike License"),
    ("by-nd", "Attribution-NoDerivs License"),
)
LICENSES = [
    {"url": f"http://creativecommons.org/licenses/{code}/2.0/", "id": number, "name": name}
    for number, (code, name) in enumerate(_CREATIVE_COMMONS, 1)
] + [
    {
        "url": "http://flickr.com/commons/usage/",
        "id": 7,
        "name": "No known copyright restrictions",
    },
    {"url": "http://www.usa.gov/copyright.shtml", "id": 8, "name": "United States Government Work"},
]
_NO_RESTRICTIONS = 7

# Ids with holes, as COCO's 80 categories have ids up to 90.
_CATEGORIES = [
    {"supercategory": "round", "id": 1, "name": "circle"},
    {"supercategory": "polygon", "id": 2, "name": "square"},
    {"supercategory": "polygon", "id": 3, "name": "triangle"},
    {"supercategory": "figure", "id": 5, "name": "star"},
    {"supercategory": "polygon", "id": 6, "name": "diamond"},
    {"supercategory": "round", "id": 8, "name": "ring"},
    {"supercategory": "figure", "id": 9, "name": "cross"},
    {"supercategory": "figure", "id": 11, "name": "heart"},
]
_CATEGORY_ID = {str(category["name"]): int(str(category["id"])) for category in _CATEGORIES}

IMAGE_ID_PRIME = 581_921  # the largest id of COCO 2017 is 581,929
_ANNOTATION_ID_PRIME = 899_999_963
CAPTIONS_PER_IMAGE = 5


def validation_scene(seed: int, number: int) -> tuple[int, SceneKey]:
    """Image id and scene of the ``number``-th image of val2017."""
    ids = Ids.of(seed, "coco", IMAGE_ID_PRIME)
    # Even numbers are val2017's, odd ones train2017's: neither part moves when the other grows.
    return ids[2 * number], SceneKey(seed, "coco/val2017", number, crowds=True)


def validation_images(images: int) -> int:
    """Twice the usual number: half of val2017 is Karpathy's val, half his test."""
    return 2 * held_out(images)


@dataclass(slots=True)
class _Part:
    """One of train2017 and val2017 while it is put together."""

    name: str
    images: list[Record] = field(default_factory=list)
    instances: list[Record] = field(default_factory=list)
    captions: list[Record] = field(default_factory=list)


def write(folder: Path, images: int, seed: int) -> list[tuple[str, Release]]:
    """Writes the annotations of COCO under ``folder``."""
    image_ids = Ids.of(seed, "coco", IMAGE_ID_PRIME)
    release = Release()
    karpathy: list[Record] = []
    sizes = {"train": images, "val": validation_images(images)}
    instance_ids = Ids.of(seed, "coco/instances", _ANNOTATION_ID_PRIME)
    caption_ids = Ids.of(seed, "coco/captions", _ANNOTATION_ID_PRIME)
    for split, size in sizes.items():
        part = _Part(f"{split}2017")
        for number in range(size):
            if split == "val":
                image_id, key = validation_scene(seed, number)
            else:
                image_id = image_ids[2 * number + 1]
                key = SceneKey(seed, "coco/train2017", number, crowds=True)
            scene = make_scene(key)
            rng = key.random("coco")
            image = _image(scene, image_id, part.name, rng)
            part.images.append(image)
            # Room for ten annotations an image and kind; the parts alternate here too.
            first = 20 * number + (10 if split == "train" else 0)
            part.instances += _instances(scene, image_id, instance_ids, first)
            texts = _captions(scene, image_id, caption_ids, first, rng)
            part.captions += texts
            karpathy.append(_karpathy(image, texts, split, number, len(karpathy)))
            release.pictures.append(Picture(folder / part.name / image["file_name"], key))
        # As released: neither the captions nor the objects of an image lie side by side.
        shuffle = random.Random(f"{seed}/coco/{split}/order").shuffle
        shuffle(part.captions)
        shuffle(part.instances)
        head = {"info": INFO, "licenses": LICENSES, "images": part.images}
        write_json(
            folder / f"annotations/instances_{part.name}.json",
            {**head, "annotations": part.instances, "categories": _CATEGORIES},
        )
        write_json(
            folder / f"annotations/captions_{part.name}.json",
            {**head, "annotations": part.captions},
        )
        crowds = sum(instance["iscrowd"] for instance in part.instances)
        release.counts[split] = {
            "images": size,
            "captions": len(part.captions),
            "objects": len(part.instances) - crowds,
            "crowds": crowds,
        }
    write_json(folder / "dataset_coco.json", {"images": karpathy, "dataset": "coco"})
    return [("coco", release)]


def _image(scene: Scene, image_id: int, part: str, rng: random.Random) -> Record:
    name = f"{image_id:012d}.jpg"
    day = f"2013-11-{rng.randint(10, 29)} {rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:00"
    return {
        "license": _NO_RESTRICTIONS,
        "file_name": name,
        "coco_url": f"http://images.{HOST}/{part}/{name}",
        "height": scene.height,
        "width": scene.width,
        "date_captured": day,
        "flickr_url": f"http://farm{rng.randint(1, 9)}.{HOST}/{rng.randint(1000, 9999)}/"
        f"{rng.randint(10**9, 10**10 - 1)}_{rng.getrandbits(40):010x}_z.jpg",
        "id": image_id,
    }


def _instances(scene: Scene, image_id: int, ids: Ids, first: int) -> Iterator[Record]:
    for place, thing in enumerate(scene.things):
        yield _object(thing, image_id, ids[first + place])
    if scene.crowd is not None:
        yield _group(scene.crowd, scene, image_id)


def _object(thing: Thing, image_id: int, annotation_id: int) -> Record:
    polygons = [
        [(round(x, 2), round(y, 2)) for x, y in polygon]
        for polygon in render.outlines(thing.shape, thing.box)
    ]
    xs, ys = zip(*(point for polygon in polygons for point in polygon), strict=True)
    area = sum(
        abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(p, p[1:] + p[:1], strict=True))) / 2
        for p in polygons
    )
    return {
        "segmentation": [[value for point in polygon for value in point] for polygon in polygons],
        "area": area,
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": [min(xs), min(ys), round(max(xs) - min(xs), 2), round(max(ys) - min(ys), 2)],
        "category_id": _CATEGORY_ID[thing.shape],
        "id": annotation_id,
    }


def _group(crowd: Crowd, scene: Scene, image_id: int) -> Record:
    mask = render.binary_mask(crowd.shape, crowd.members, scene.width, scene.height)
    rows, columns = np.nonzero(mask)
    x, y = int(columns.min()), int(rows.min())
    flat = mask.ravel(order="F").tolist()
    runs = [(value, len(list(run))) for value, run in groupby(flat)]
    counts = [length for _, length in runs]
    if runs[0][0]:  # run lengths start with background
        counts.insert(0, 0)
    category = _CATEGORY_ID[crowd.shape]
    return {
        "segmentation": {"counts": counts, "size": [scene.height, scene.width]},
        "area": int(mask.sum()),
        "iscrowd": 1,
        "image_id": image_id,
        "bbox": [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1],
        "category_id": category,
        # Twelve digits made of the category and the image: more than 32 bits, as released.
        "id": 900_000_000_000 + category * 10**8 + image_id,
    }


def _captions(
    scene: Scene, image_id: int, ids: Ids, first: int, rng: random.Random
) -> list[Record]:
    records = []
    for place, text in enumerate(language.captions(scene, rng, CAPTIONS_PER_IMAGE)):
        caption = sentence(text)
        draw = rng.random()
        if draw < 0.22:
            caption = caption[:-1]
        elif draw < 0.34:
            caption += " "
        elif draw < 0.35:
            caption += "\n"
        records.append({"image_id": image_id, "id": ids[first + place], "caption": caption})
    return records


def _karpathy(image: Record, captions: list[Record], split: str, number: int, imgid: int) -> Record:
    """Karpathy's record; train2017 makes his train and restval, val2017 his val and test."""
    if split == "train":
        name = "restval" if number % 4 == 3 else "train"
    else:
        name = ("val", "test")[number % 2]
    filepath = "train2014" if name == "train" else "val2014"
    return {
        "filepath": filepath,
        "sentids": [caption["id"] for caption in captions],
        "filename": f"COCO_{filepath}_{image['file_name']}",
        "imgid": imgid,
        "split": name,
        "sentences": [
            {
                "tokens": re.findall(r"\w+", caption["caption"].lower()),
                "raw": caption["caption"],
                "imgid": imgid,
                "sentid": caption["id"],
            }
            for caption in captions
        ],
        "cocoid": image["id"],
    }
