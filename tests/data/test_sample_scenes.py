"""The scenes of ``xvlm-data sample``: what is said of them is true, and cannot be guessed."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from xvlm_data.sample import write_samples
from xvlm_data.sample.language import captions, phrases
from xvlm_data.sample.render import binary_mask, render
from xvlm_data.sample.scene import COLOURS, SHAPES, Box, Scene, SceneKey, Thing, make_scene

SCENES = 250


@cache
def scenes() -> tuple[Scene, ...]:
    return tuple(make_scene(SceneKey(11, "test", number)) for number in range(SCENES))


# What is said is true ---------------------------------------------------------------------------

NOUN = (
    r"(?:(?:a|an|the) )?(?P<size{0}>small|large)? ?(?P<striped{0}>striped)? ?"
    rf"(?P<colour{{0}}>{'|'.join(COLOURS)})? ?(?P<shape{{0}}>{'|'.join(SHAPES)})"
)
RELATION = r"(left of|right of|above|below|larger than|smaller than)"
Words = tuple[str | None, str | None, str | None, str]


def nouns(text: str) -> list[Words]:
    return [match.groups() for match in re.finditer(NOUN.format(""), text)]  # type: ignore[misc]


def fits(words: Words, thing: Thing, scene: Scene) -> bool:
    """By geometry where geometry can tell: size words are checked against the box."""
    size, striped, colour, shape = words
    share = thing.box.w * thing.box.h / (scene.width * scene.height)
    return (
        (size is None or (share > 0.1) == (size == "large"))
        and (striped is None or thing.striped)
        and colour in (None, thing.colour)
        and shape == thing.shape
    )


def stated(relation: str, a: Box, b: Box, scene: Scene) -> bool:
    dx = ((b.x + b.w / 2) - (a.x + a.w / 2)) / scene.width
    dy = ((b.y + b.h / 2) - (a.y + a.h / 2)) / scene.height
    ratio = (a.w * a.h) / (b.w * b.h)
    return {
        "left of": dx > 0.14,
        "right of": dx < -0.14,
        "above": dy > 0.14,
        "below": dy < -0.14,
        "larger than": ratio > 1.49,
        "smaller than": ratio < 1 / 1.49,
    }[relation]


def assert_caption_true(text: str, scene: Scene) -> None:
    if match := re.search(r"on a (\w+) background", text):
        assert match[1] == scene.background
        text = text.replace(match[0], "")
    if match := re.match(r"(\w+) shapes", text):
        assert ["two", "three", "four", "five"].index(match[1]) + 2 == len(scene.things)
    said = nouns(text)
    assert len(said) >= 2 and all(colour for _, _, colour, _ in said)
    relations = re.findall(RELATION, text)
    # Some choice of different things makes every noun and every relation true.
    assert any(
        len({id(thing) for thing in choice}) == len(choice)
        and all(fits(words, thing, scene) for words, thing in zip(said, choice, strict=True))
        and all(
            stated(relation, choice[0].box, other.box, scene)
            for relation, other in zip(relations, choice[1:], strict=False)
        )
        for choice in product(scene.things, repeat=len(said))
    ), (text, scene)


def test_captions_are_true_and_different() -> None:
    seen: dict[str, int] = {}
    for scene in scenes():
        texts = captions(scene, scene.key.random("captions"), 5)
        assert len(set(texts)) == 5
        for text in texts:
            assert_caption_true(text, scene)
            for word in re.findall(f"{RELATION}|(background)|(shapes)", text):
                key = next(filter(None, word))
                seen[key] = seen.get(key, 0) + 1
    # Every kind of statement occurs often enough to be learnt.
    assert len(seen) == 8 and min(seen.values()) > SCENES / 5


def iou(a: Box, b: Box) -> float:
    w = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    h = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    shared = max(w, 0.0) * max(h, 0.0)
    return shared / (a.w * a.h + b.w * b.h - shared)


def named_boxes(text: str, scene: Scene) -> list[Box]:
    """Every region the words could mean, with relations read generously."""
    first, *rest = nouns(text)
    heads = [thing for thing in scene.things if fits(first, thing, scene)]
    if not rest:
        return [thing.box for thing in heads]
    others = [thing for thing in scene.things if fits(rest[0], thing, scene)]
    pairs = [(a, b) for a in heads for b in others if a is not b]
    relation = re.search(RELATION, text)
    if relation is None:
        return [
            Box(
                x := min(a.box.x, b.box.x),
                y := min(a.box.y, b.box.y),
                max(a.box.x + a.box.w, b.box.x + b.box.w) - x,
                max(a.box.y + a.box.h, b.box.y + b.box.h) - y,
            )
            for a, b in pairs
        ]

    def generous(a: Thing, b: Thing) -> bool:
        (ax, ay), (bx, by) = a.box.centre, b.box.centre
        return {
            "left of": ax < bx,
            "right of": ax > bx,
            "above": ay < by,
            "below": ay > by,
            "larger than": a.box.area > b.box.area,
            "smaller than": a.box.area < b.box.area,
        }[relation[1]]

    return [a.box for a, b in pairs if generous(a, b)]


@cache
def all_phrases() -> list[tuple[Scene, str, Box]]:
    return [
        (scene, phrase.text, phrase.box)
        for scene in scenes()
        for phrase in phrases(scene, scene.key.random("phrases"), 7)
    ]


def test_a_phrase_names_exactly_its_region() -> None:
    relations = 0
    for scene, text, box in all_phrases():
        candidates = named_boxes(text, scene)
        assert len(candidates) == 1, (text, scene)
        assert iou(candidates[0], box) > 0.999
        if match := re.search(RELATION, text):
            relations += 1
            target, reference = nouns(text)
            [a] = [thing for thing in scene.things if thing.box == box]
            [b] = [thing for thing in scene.things if fits(reference, thing, scene)]
            assert fits(target, a, scene) and stated(match[1], a.box, b.box, scene)
        elif " next to " in text:
            # Close: the union is hardly longer than the two together.
            one, two = (
                next(thing.box for thing in scene.things if fits(words, thing, scene))
                for words in nouns(text)
            )
            slack = 0.25 * math.sqrt(scene.width * scene.height)
            assert box.w + box.h < one.w + one.h + two.w + two.h + slack
    assert relations > len(all_phrases()) / 5


def test_phrases_of_an_image_do_not_repeat_each_other() -> None:
    per_scene: dict[int, list[set[str]]] = {}
    for scene, text, _ in all_phrases():
        per_scene.setdefault(scene.key.index, []).append(set(text.split()) - {"a", "an", "the"})
    for bags in per_scene.values():
        for i, bag in enumerate(bags):
            assert all(len(bag & other) <= 0.75 * len(bag | other) for other in bags[:i])
    assert np.mean([len(bags) for bags in per_scene.values()]) >= 5


def test_vg_regions_on_disk_lie_on_objects(tmp_path: Path) -> None:
    """The region files carry the phrases of the pictures beside them, boxes a pixel or two off."""
    write_samples(tmp_path, 60, seed=3, workers=1)
    images, records = (
        json.loads((tmp_path / "vg" / name).read_text(encoding="utf-8"))
        for name in ("objects.json", "region_descriptions.json")
    )
    objects = {image["image_id"]: image["objects"] for image in images}
    for record in records:
        assert len(record["regions"]) <= 10
        for region in record["regions"]:
            if re.search(r" and | next to ", region["phrase"]):
                continue
            box = Box(region["x"], region["y"], region["width"], region["height"])
            shape = nouns(region["phrase"].lower())[0][3]
            same = [o for o in objects[record["id"]] if o["names"][0] == shape]
            best = max(iou(box, Box(o["x"], o["y"], o["w"], o["h"])) for o in same)
            assert best > (0.7 if box.area > 600 else 0.4)


# Scenes cannot be guessed -----------------------------------------------------------------------


def test_a_constant_box_does_not_ground() -> None:
    boxes = np.array(
        [
            (b.x / s.width, b.y / s.height, (b.x + b.w) / s.width, (b.y + b.h) / s.height)
            for s, _, b in all_phrases()
        ]
    )
    best = 0.0
    steps = np.arange(0.1, 1.01, 0.1)
    for w, h, cx, cy in product(steps, steps, steps, steps):
        low = np.maximum(boxes[:, :2], (cx - w / 2, cy - h / 2))
        high = np.minimum(boxes[:, 2:], (cx + w / 2, cy + h / 2))
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        best = max(best, float((shared / (areas + w * h - shared) >= 0.5).mean()))
    assert best < 0.25


@pytest.mark.parametrize(
    ("what", "low", "high"),
    [("colour", 0.3, 0.75), ("shape", 0.3, 0.8), ("both", 0.6, 0.9)],
)
def test_neither_colour_nor_shape_alone_grounds(what: str, low: float, high: float) -> None:
    """A guesser that reads only these words of the first noun, and picks among what fits them.

    The lower ends keep the task learnable.
    """
    hits = []
    for scene, text, box in all_phrases():
        _, _, colour, shape = nouns(text)[0]
        fitting = [
            thing
            for thing in scene.things
            if (what == "shape" or colour in (None, thing.colour))
            and (what == "colour" or shape == thing.shape)
        ]
        hits.append(np.mean([iou(thing.box, box) >= 0.5 for thing in fitting]))
    assert low < np.mean(hits) < high


def test_sizes_and_places_spread() -> None:
    shares, centres, counts = [], [], set()
    for scene in scenes():
        counts.add(len(scene.things))
        for i, thing in enumerate(scene.things):
            share = thing.box.area / (scene.width * scene.height)
            shares.append(share)
            assert (thing.size == "large") == (share > 0.1)
            centres.append(np.divide(thing.box.centre, (scene.width, scene.height)))
            assert all(iou(thing.box, other.box) == 0 for other in scene.things[:i])
        assert 160 <= max(scene.width, scene.height) <= 224
    assert counts == {2, 3, 4, 5}
    # Filters have something to do, but little.
    assert 0 < np.mean(np.array(shares) < 0.01) < 0.05
    assert 0.2 < np.mean(np.array(shares) > 0.1) < 0.5
    assert (np.std(centres, axis=0) > 0.2).all()
    assert np.abs(np.mean(centres, axis=0) - 0.5).max() < 0.05


def test_the_picture_shows_the_scene() -> None:
    """Inside each plain shape the pixels are nearest to the colour that its name says."""
    palette = {
        "red": (255, 0, 0),
        "orange": (255, 128, 0),
        "yellow": (255, 255, 0),
        "green": (0, 128, 0),
        "blue": (0, 0, 255),
        "purple": (128, 0, 128),
        "white": (255, 255, 255),
        "black": (0, 0, 0),
    }
    for scene in scenes()[:60]:
        pixels = np.asarray(render(scene), np.float64)
        covered = np.zeros(pixels.shape[:2], bool)
        for thing in scene.things:
            mask = binary_mask(thing.shape, (thing.box,), scene.width, scene.height)
            covered |= mask
            if not thing.striped and mask.sum() > 50:
                seen = np.median(pixels[mask], axis=0)
                nearest = min(palette, key=lambda name: float(((seen - palette[name]) ** 2).sum()))
                assert nearest == thing.colour
        # A ring has a hole, a star has none: what is not covered is background, and muted.
        spread = np.ptp(pixels[~covered], axis=1)
        assert np.median(spread) < 70
