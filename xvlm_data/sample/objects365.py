"""Objects365 v2 in miniature: fine-grained categories, long float boxes, pictures in patches."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from typing import Any

from xvlm_data.sample.release import Ids, Picture, Release, held_out, write_json
from xvlm_data.sample.scene import COLOURS, SHAPES, Box, Scene, SceneKey, make_scene

Record = dict[str, Any]

# Slashes between alternatives, trailing spaces and odd capitals are the real list's own.
_NAMES = {
    "circle": "Circle/Disc",
    "square": "Square",
    "triangle": "Triangle",
    "star": "Star",
    "diamond": "Diamond/Rhombus ",
    "ring": "Ring",
    "cross": "cross",
    "heart": "Heart ",
}
_CATEGORY_ID = {look: number for number, look in enumerate(product(SHAPES, COLOURS), 1)}
_CATEGORIES = [
    {"id": number, "name": f"{colour.capitalize()} {_NAMES[shape]}"}
    for (shape, colour), number in _CATEGORY_ID.items()
]

_IMAGE_ID_PRIME = 899_981  # v1 numbers stay below 900,000, v2 numbers start above
_V2_START = 900_000
_ANNOTATION_ID_PRIME = 25_999_949
_ROOM = 10  # annotation ids an image may use


def write(folder: Path, images: int, seed: int) -> list[tuple[str, Release]]:
    """Writes zhiyuan_objv2_train.json and zhiyuan_objv2_val.json."""
    image_ids = Ids.of(seed, "objects365", _IMAGE_ID_PRIME)
    ids = Ids.of(seed, "objects365/annotations", _ANNOTATION_ID_PRIME)
    release = Release()
    for split, size in {"train": images, "val": held_out(images)}.items():
        pictures: list[Record] = []
        annotations: list[Record] = []
        for number in range(size):
            key = SceneKey(seed, f"objects365/{split}", number, crowds=True)
            rng = key.random("objects365")
            scene = make_scene(key)
            running = 2 * number + (split == "train")
            image_id = image_ids[running]
            if rng.random() < 0.65:
                version, patch = "v1", rng.randint(0, 15)
            else:
                version, patch, image_id = "v2", rng.randint(16, 50), _V2_START + image_id
            name = f"patch{patch}/objects365_{version}_{image_id:08d}.jpg"
            pictures.append(
                {
                    "height": scene.height,
                    "id": image_id,
                    "license": 5,
                    "width": scene.width,
                    "file_name": f"images/{version}/{name}",
                    "url": "",
                }
            )
            annotations += _annotations(scene, image_id, ids, running * _ROOM, rng)
            release.pictures.append(Picture(folder / split / name, key))
        random.Random(f"{seed}/objects365/{split}/order").shuffle(annotations)
        write_json(
            folder / f"zhiyuan_objv2_{split}.json",
            {
                "images": pictures,
                "annotations": annotations,
                "categories": _CATEGORIES,
                "licenses": [],
            },
        )
        crowds = sum(annotation["iscrowd"] for annotation in annotations)
        release.counts[split] = {
            "images": size,
            "objects": len(annotations) - crowds,
            "crowds": crowds,
        }
    return [("objects365", release)]


def _annotations(
    scene: Scene, image_id: int, ids: Ids, first: int, rng: random.Random
) -> list[Record]:
    groups = [(thing.shape, thing.colour, thing.box, 0) for thing in scene.things]
    if scene.crowd is not None:
        groups.append((scene.crowd.shape, scene.crowd.colour, scene.crowd.box, 1))
    records = []
    for place, (shape, colour, true, crowd) in enumerate(groups):
        box = _jittered(true, scene, rng)
        records.append(
            {
                "id": ids[first + place],
                "iscrowd": crowd,
                "isfake": int(rng.random() < 0.02),
                "area": box.area,
                "isreflected": int(rng.random() < 0.01),
                "bbox": [box.x, box.y, box.w, box.h],
                "image_id": image_id,
                "category_id": _CATEGORY_ID[shape, colour],
            }
        )
    return records


def _jittered(box: Box, scene: Scene, rng: random.Random) -> Box:
    x = max(box.x + rng.uniform(-1, 1), 0.0)
    y = max(box.y + rng.uniform(-1, 1), 0.0)
    return Box(
        x,
        y,
        min(box.w + rng.uniform(-1, 1), scene.width - x),
        min(box.h + rng.uniform(-1, 1), scene.height - y),
    )
