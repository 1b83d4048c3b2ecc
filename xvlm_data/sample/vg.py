"""Visual Genome 1.2 in miniature: regions, objects, attributes, relationships, questions.

VG publishes no split. ``vg`` is the training part; ``vg_val`` is a second complete release of
other scenes.
"""

from __future__ import annotations

import random
from itertools import permutations
from pathlib import Path
from typing import Any

from xvlm_data.sample import coco, language
from xvlm_data.sample.release import HOST, Ids, Picture, Release, held_out, sentence, write_json
from xvlm_data.sample.scene import RELATIONS, Box, Scene, SceneKey, Thing, make_scene

Record = dict[str, Any]

_IMAGE_ID_PRIME = 2_417_983  # the largest image id of VG is 2,417,997
_ANNOTATION_ID_PRIME = 899_999_963
_ROOM = 20  # ids an image may use of each kind
_SYNONYMS = {"circle": "disc", "square": "box", "ring": "hoop", "diamond": "rhombus"}


def write(folder: Path, images: int, seed: int) -> list[tuple[str, Release]]:
    """Writes the annotations of ``folder`` and of ``folder``_val beside it."""
    beside = folder.with_name(f"{folder.name}_val")
    return [
        (folder.name, _write(folder, images, seed, "train", images)),
        (beside.name, _write(beside, held_out(images), seed, "val", images)),
    ]


def _write(folder: Path, size: int, seed: int, split: str, images: int) -> Release:
    image_ids = Ids.of(seed, "vg", _IMAGE_ID_PRIME)
    ids = Ids.of(seed, "vg/annotations", _ANNOTATION_ID_PRIME)
    hidden = _hidden_coco_scenes(seed, images) if split == "train" else {}
    files: dict[str, list[Record]] = {
        name: []
        for name in (
            "image_data",
            "region_descriptions",
            "objects",
            "attributes",
            "relationships",
            "question_answers",
        )
    }
    release = Release()
    for number in range(size):
        key = SceneKey(seed, f"vg/{split}", number)
        rng = key.random("vg")
        running = 2 * number + (split == "train")
        image_id, first = image_ids[running], running * _ROOM
        coco_id = flickr_id = None
        if rng.random() < 0.5 or number in hidden:
            # Images of COCO that lie outside the miniature: ids that it does not use.
            coco_id = coco.IMAGE_ID_PRIME + image_id
            flickr_id = rng.randint(10**8, 10**10 - 1)
        if number in hidden:
            coco_id, key = hidden[number]
        scene = make_scene(key)
        directory = rng.choice(("VG_100K", "VG_100K_2"))
        files["image_data"].append(
            {
                "width": scene.width,
                "url": f"https://images.{HOST}/{directory}/{image_id}.jpg",
                "height": scene.height,
                "image_id": image_id,
                "coco_id": coco_id,
                "flickr_id": flickr_id,
            }
        )
        regions = _regions(scene, image_id, ids, first, rng)
        objects = [
            _object(thing, ids[first + i], scene, rng) for i, thing in enumerate(scene.things)
        ]
        files["region_descriptions"].append({"regions": regions, "id": image_id})
        files["objects"].append({"image_id": image_id, "objects": objects})
        files["attributes"].append(
            {
                "image_id": image_id,
                "attributes": [
                    _with_attributes(record, thing, rng)
                    for record, thing in zip(objects, scene.things, strict=True)
                ],
            }
        )
        files["relationships"].append(
            {
                "relationships": _relationships(scene, objects, ids, first, rng),
                "image_id": image_id,
            }
        )
        files["question_answers"].append(
            {"id": image_id, "qas": _questions(scene, image_id, ids, first, rng)}
        )
        release.pictures.append(Picture(folder / directory / f"{image_id}.jpg", key))
    for name, records in files.items():
        write_json(folder / f"{name}.json", records)
    release.counts[split] = {
        "images": size,
        "regions": sum(len(record["regions"]) for record in files["region_descriptions"]),
        "objects": sum(len(record["objects"]) for record in files["objects"]),
        "coco_val_images": len(hidden),
    }
    return release


def _hidden_coco_scenes(seed: int, images: int) -> dict[int, tuple[int, SceneKey]]:
    """VG images that are COCO validation images too: number here -> COCO id and scene.

    About one in forty, as in the real releases; leak-free building must find and leave them out.
    """
    wanted = min(max(images // 40, 1), images // 4)
    found: dict[int, tuple[int, SceneKey]] = {}
    for number in range(coco.validation_images(images)):
        if len(found) == wanted:
            break
        coco_id, key = coco.validation_scene(seed, number)
        # A crowd that VG does not annotate could make a phrase ambiguous.
        if make_scene(key).crowd is None:
            found[len(found) * (images // wanted)] = coco_id, key
    return found


def _pixels(box: Box, scene: Scene, rng: random.Random) -> tuple[int, int, int, int]:
    """(x, y, w, h) in whole pixels, a little off as hand-drawn boxes are, inside the image."""
    x0 = max(round(box.x + rng.uniform(-1.5, 1.5)), 0)
    y0 = max(round(box.y + rng.uniform(-1.5, 1.5)), 0)
    x1 = min(round(box.x + box.w + rng.uniform(-1.5, 1.5)), scene.width)
    y1 = min(round(box.y + box.h + rng.uniform(-1.5, 1.5)), scene.height)
    return x0, y0, x1 - x0, y1 - y0


def _regions(scene: Scene, image_id: int, ids: Ids, first: int, rng: random.Random) -> list[Record]:
    wanted = rng.randint(5, min(10, 4 + 2 * len(scene.things)))
    records = []
    for place, phrase in enumerate(language.phrases(scene, rng, wanted)):
        x, y, w, h = _pixels(phrase.box, scene, rng)
        text = phrase.text
        if rng.random() < 0.26:
            text = sentence(text) if rng.random() < 0.4 else text[0].upper() + text[1:]
        draw = rng.random()
        if draw < 0.07:
            text += " "
        elif draw < 0.08:
            text += "\n"
        records.append(
            {
                "region_id": ids[first + place],
                "width": w,
                "height": h,
                "image_id": image_id,
                "phrase": text,
                "y": y,
                "x": x,
            }
        )
    return records


def _object(thing: Thing, object_id: int, scene: Scene, rng: random.Random) -> Record:
    x, y, w, h = _pixels(thing.box, scene, rng)
    names = [thing.shape]
    if thing.shape in _SYNONYMS and rng.random() < 0.1:
        names.append(_SYNONYMS[thing.shape])
    return {
        "synsets": [f"{thing.shape}.n.01"] if rng.random() < 0.93 else [],
        "h": h,
        "object_id": object_id,
        "names": names,
        "w": w,
        "y": y,
        "x": x,
    }


def _with_attributes(record: Record, thing: Thing, rng: random.Random) -> Record:
    """The record of attributes.json; an object nobody described has no ``attributes`` at all."""
    attributes = [thing.colour, thing.size, *(["striped"] if thing.striped else [])]
    described = rng.random() < 0.85
    result: Record = {}
    for name, value in record.items():
        if name == "y" and described:
            result["attributes"] = attributes
        result[name] = value
    return result


def _relationships(
    scene: Scene, objects: list[Record], ids: Ids, first: int, rng: random.Random
) -> list[Record]:
    def party(record: Record) -> Record:
        order = ("h", "object_id", "synsets", "w", "y", "x")
        return {"name": record["names"][0], **{name: record[name] for name in order}}

    true = [
        (i, relation, j)
        for i, j in permutations(range(len(objects)), 2)
        for relation in RELATIONS
        if scene.holds(relation, scene.things[i], scene.things[j])
    ]
    return [
        {
            "predicate": relation.upper() if rng.random() < 0.2 else relation,
            "object": party(objects[j]),
            "relationship_id": ids[first + place],
            "synsets": [],
            "subject": party(objects[i]),
        }
        for place, (i, relation, j) in enumerate(rng.sample(true, min(len(true), 4)))
    ]


def _questions(
    scene: Scene, image_id: int, ids: Ids, first: int, rng: random.Random
) -> list[Record]:
    shapes = [thing.shape for thing in scene.things]
    pairs = [
        ("How many shapes are there?", f"{language.COUNT_WORDS[len(shapes)].capitalize()}."),
        ("What is the background like?", f"{scene.background.capitalize()}."),
    ]
    thing = rng.choice(scene.things)
    if shapes.count(thing.shape) == 1:
        pairs.append((f"What color is the {thing.shape}?", f"{thing.colour.capitalize()}."))
    return [
        {
            "a_objects": [],
            "question": question,
            "image_id": image_id,
            "qa_id": ids[first + place],
            "answer": answer,
            "q_objects": [],
        }
        for place, (question, answer) in enumerate(pairs)
    ]
