"""What a scene holds and which relations are true in it; pure geometry, no pixels, no text.

A scene is a pure function of its :class:`SceneKey`, so that any process may make it again.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "diamond", "ring", "cross", "heart")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
BACKGROUNDS = ("striped", "checkered", "speckled", "shaded")

SMALL, LARGE = "small", "large"
RELATIONS = ("left of", "right of", "above", "below", "larger than", "smaller than")

# Sides relative to sqrt(width * height). The gap between small and large makes the size word of
# every object certain: the smallest large one has twice the area of the largest small one.
_SIDES = {SMALL: (0.22, 0.29), LARGE: (0.42, 0.56)}
_TINY = (0.06, 0.09)  # less than 1 % of the image: what the paper's filter drops

MARGIN = 0.15  # of the image's width or height, between the centres of "left of", "above", ...
AREA_RATIO = 1.5  # of the boxes, for "larger than"
NEAR = 0.12  # of sqrt(width * height), the widest gap that still is "next to"


@dataclass(frozen=True, slots=True)
class SceneKey:
    """Names one scene: the run's seed, the part of a release it belongs to, its number there."""

    seed: int
    part: str
    index: int
    crowds: bool = False  # whether scenes of this part may hold a crowd

    def random(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that one draw more here moves nothing there.

        Strings are hashed by SHA-512 in :class:`random.Random`: the same on every machine.
        """
        return random.Random(f"{self.seed}/{self.part}/{self.index}/{purpose}")


@dataclass(frozen=True, slots=True)
class Box:
    """Pixels, top-left corner and size."""

    x: float
    y: float
    w: float
    h: float

    @property
    def area(self) -> float:
        """Square pixels."""
        return self.w * self.h

    @property
    def centre(self) -> tuple[float, float]:
        """Of the box, in pixels."""
        return self.x + self.w / 2, self.y + self.h / 2

    def gap(self, other: Box) -> float:
        """The distance between two boxes in pixels; 0 where they touch or overlap."""
        dx = max(self.x, other.x) - min(self.x + self.w, other.x + other.w)
        dy = max(self.y, other.y) - min(self.y + self.h, other.y + other.h)
        return math.hypot(max(dx, 0.0), max(dy, 0.0))

    def union(self, other: Box) -> Box:
        """The smallest box around both."""
        x, y = min(self.x, other.x), min(self.y, other.y)
        right = max(self.x + self.w, other.x + other.w)
        bottom = max(self.y + self.h, other.y + other.h)
        return Box(x, y, right - x, bottom - y)


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape of the scene."""

    shape: str
    colour: str
    size: str
    striped: bool
    box: Box


@dataclass(frozen=True, slots=True)
class Crowd:
    """A cluster of tiny equal shapes: what COCO and Objects365 annotate as one group."""

    shape: str
    colour: str
    box: Box
    members: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything there is to see; boxes in pixels of ``width`` x ``height``."""

    key: SceneKey
    width: int
    height: int
    background: str
    things: tuple[Thing, ...]
    crowd: Crowd | None

    @property
    def unit(self) -> float:
        """The side of a square of the image's area, in pixels."""
        return math.sqrt(self.width * self.height)

    def _lead(self, relation: str, a: Thing, b: Thing) -> float:
        """By how much ``a`` is more ``relation`` than ``b``; 1 is the margin that makes it true."""
        (ax, ay), (bx, by) = a.box.centre, b.box.centre
        return {
            "left of": (bx - ax) / self.width / MARGIN,
            "right of": (ax - bx) / self.width / MARGIN,
            "above": (by - ay) / self.height / MARGIN,
            "below": (ay - by) / self.height / MARGIN,
            "larger than": math.log(a.box.area / b.box.area, AREA_RATIO),
            "smaller than": math.log(b.box.area / a.box.area, AREA_RATIO),
        }[relation]

    def holds(self, relation: str, a: Thing, b: Thing) -> bool:
        """Whether ``a`` is ``relation`` ``b`` beyond doubt; only this may be said."""
        return self._lead(relation, a, b) >= 1.0

    def may_hold(self, relation: str, a: Thing, b: Thing) -> bool:
        """Whether somebody might say so; a phrase that must name one thing excludes all these."""
        return self._lead(relation, a, b) > -0.2

    def near(self, a: Thing, b: Thing) -> bool:
        """Whether the two are next to each other."""
        return a.box.gap(b.box) <= NEAR * self.unit


def make_scene(key: SceneKey) -> Scene:
    """The scene of this key: 2-5 things that do not touch, placed uniformly.

    A later thing often repeats the colour, the shape, or both of an earlier one: without these
    distractors a phrase could be grounded by its colour alone.
    """
    rng = key.random("scene")
    long_side = rng.randint(160, 224)
    aspect = rng.choice((1.0, 5 / 4, 4 / 3, 4 / 3, 3 / 2))
    width, height = long_side, round(long_side / aspect)
    if rng.random() < 0.4:
        width, height = height, width
    unit = math.sqrt(width * height)

    taken: list[Box] = []
    things: list[Thing] = []
    wanted = rng.choices((2, 3, 4, 5), (0.22, 0.38, 0.27, 0.13))[0]
    # Two things always fit, so the loop ends.
    while len(things) < wanted:
        shape, colour = _looks(rng, things)
        large = sum(thing.size == LARGE for thing in things)
        size = LARGE if large < 2 and rng.random() < 0.45 else SMALL
        if len(things) == 1 and (shape, colour, size) == _name(things[0]):
            continue  # of two equal things neither could be named
        tiny = size == SMALL and len(things) >= 2 and rng.random() < 0.04
        box = _place(
            rng, unit * rng.uniform(*(_TINY if tiny else _SIDES[size])), width, height, taken
        )
        if box is None:
            if len(things) >= 2:
                break
            continue
        taken.append(box)
        things.append(Thing(shape, colour, size, rng.random() < 0.25, box))

    crowd = None
    if key.crowds and rng.random() < 0.15:
        box = _place(rng, unit * 0.32, width, height, taken)
        if box is not None:
            crowd = _crowd(rng, unit * 0.06, box)
    return Scene(key, width, height, rng.choice(BACKGROUNDS), tuple(things), crowd)


def _name(thing: Thing) -> tuple[str, str, str]:
    return thing.shape, thing.colour, thing.size


def _looks(rng: random.Random, things: list[Thing]) -> tuple[str, str]:
    """Shape and colour of the next thing, mostly a distractor of an earlier one."""
    shape, colour = rng.choice(SHAPES), rng.choice(COLOURS)
    if things:
        earlier = rng.choice(things)
        draw = rng.random()
        if draw < 0.40:
            colour = earlier.colour
        if 0.30 <= draw < 0.60:  # from 0.30 to 0.40 both are the same
            shape = earlier.shape
    return shape, colour


def _place(
    rng: random.Random, side: float, width: int, height: int, taken: list[Box]
) -> Box | None:
    """A box of about this side at a uniform free place, or None when the image is too full."""
    stretch = math.sqrt(rng.uniform(0.82, 1.22))
    w, h = side * stretch, side / stretch
    for _ in range(40):
        box = Box(rng.uniform(1, width - 1 - w), rng.uniform(1, height - 1 - h), w, h)
        if all(box.gap(other) >= 2.0 for other in taken):
            return box
    return None


def _crowd(rng: random.Random, side: float, box: Box) -> Crowd:
    """Tiny shapes on a jittered 3 x 3 grid."""
    step_x, step_y = (box.w - side) / 2.3, (box.h - side) / 2.3
    members = tuple(
        Box(
            box.x + (column + rng.uniform(0, 0.3)) * step_x,
            box.y + (row + rng.uniform(0, 0.3)) * step_y,
            side,
            side,
        )
        for row in range(3)
        for column in range(3)
    )
    return Crowd(rng.choice(SHAPES), rng.choice(COLOURS), box, members)
