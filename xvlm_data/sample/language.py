"""What is said about a scene: whole-image captions, and phrases that name one region.

Everything said is true, with the margins of ``scene``; a phrase never fits a second region.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product

from xvlm_data.sample.scene import RELATIONS, Box, Scene, Thing

COUNT_WORDS = ("no", "one", "two", "three", "four", "five")

# Phrases of one image whose words overlap more would be dropped by the builder's default rule.
_MAX_OVERLAP = 0.75
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True, slots=True)
class Description:
    """A noun phrase without its article; None or False: not said."""

    size: str | None
    striped: bool
    colour: str | None
    shape: str

    def matches(self, thing: Thing) -> bool:
        """Whether the words are true of ``thing``."""
        return (
            self.size in (None, thing.size)
            and (not self.striped or thing.striped)
            and self.colour in (None, thing.colour)
            and self.shape == thing.shape
        )

    def __str__(self) -> str:
        words = (self.size, "striped" if self.striped else None, self.colour, self.shape)
        return " ".join(word for word in words if word)


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words for one region; ``box`` in pixels."""

    text: str
    box: Box


def with_article(description: Description) -> str:
    """``a red circle``, ``an orange star``."""
    text = str(description)
    return f"an {text}" if text.startswith("o") else f"a {text}"


# Captions ---------------------------------------------------------------------------------------


def captions(scene: Scene, rng: random.Random, count: int) -> list[str]:
    """``count`` different true sentences, without capital letter or full stop.

    Each names at least two things with their colours.
    """
    texts: list[str] = []
    templates: list[Callable[[Scene, random.Random], str | None]] = []
    while len(texts) < count:
        if not templates:
            templates = rng.sample(_TEMPLATES, len(_TEMPLATES))
        text = templates.pop()(scene, rng)
        if text is not None and text not in texts:
            texts.append(text)
    return texts


def _say(thing: Thing, rng: random.Random) -> str:
    return with_article(
        Description(
            thing.size if rng.random() < 0.6 else None,
            thing.striped and rng.random() < 0.7,
            thing.colour,
            thing.shape,
        )
    )


def _related(scene: Scene, rng: random.Random) -> tuple[Thing, str, Thing] | None:
    true = [
        (a, relation, b)
        for a, b in permutations(scene.things, 2)
        for relation in RELATIONS
        if scene.holds(relation, a, b)
    ]
    return rng.choice(true) if true else None


def _relation(scene: Scene, rng: random.Random) -> str | None:
    found = _related(scene, rng)
    if found is None:
        return None
    a, relation, b = found
    text = f"{_say(a, rng)} {relation} {_say(b, rng)}"
    return f"{text} on a {scene.background} background" if rng.random() < 0.7 else text


def _relation_inverted(scene: Scene, rng: random.Random) -> str | None:
    found = _related(scene, rng)
    if found is None:
        return None
    a, relation, b = found
    return f"on a {scene.background} background, {_say(a, rng)} is {relation} {_say(b, rng)}"


def _listing(scene: Scene, rng: random.Random) -> str:
    count = min(len(scene.things), rng.choice((2, 3, 3, 4)))
    *head, last = (_say(thing, rng) for thing in rng.sample(scene.things, count))
    text = f"{', '.join(head)} and {last}"
    return f"{text} on a {scene.background} background" if rng.random() < 0.5 else text


def _counting(scene: Scene, rng: random.Random) -> str | None:
    if scene.crowd is not None:  # nobody would agree on the number
        return None
    a, b = rng.sample(scene.things, 2)
    shapes = f"{COUNT_WORDS[len(scene.things)]} shapes"
    return f"{shapes} with {_say(a, rng)} and {_say(b, rng)} among them"


def _two_relations(scene: Scene, rng: random.Random) -> str | None:
    true = [
        (a, r, b, s, c)
        for a, b, c in permutations(scene.things, 3)
        for r, s in permutations(RELATIONS, 2)
        if scene.holds(r, a, b) and scene.holds(s, a, c)
    ]
    if not true:
        return None
    a, r, b, s, c = rng.choice(true)
    return f"{_say(a, rng)} {r} {_say(b, rng)} and {s} {_say(c, rng)}"


_TEMPLATES = (_relation, _relation_inverted, _listing, _counting, _two_relations)


# Phrases ----------------------------------------------------------------------------------------


def descriptions(thing: Thing) -> list[Description]:
    """Every way to describe ``thing`` by its own attributes."""
    return [
        Description(size, striped, colour, thing.shape)
        for size, striped, colour in product(
            (None, thing.size), (False, True) if thing.striped else (False,), (None, thing.colour)
        )
    ]


def phrases(scene: Scene, rng: random.Random, count: int) -> list[Phrase]:
    """Up to ``count`` phrases, each true of one region of the scene only.

    By their own attributes, by their relation to another thing (preferably where the attributes
    alone would not do), or for two things side by side. Their texts overlap little.
    """
    found: list[Phrase] = []
    seen: list[frozenset[str]] = []
    kinds = (_by_attributes, _by_relation, _pair)
    turn = rng.sample(scene.things, len(scene.things))
    for attempt in range(8 * count):
        thing = turn[attempt % len(turn)]
        phrase = rng.choices(kinds, (0.55, 0.33, 0.12))[0](scene, thing, rng)
        if phrase is None:
            continue
        words = frozenset(re.findall(r"[a-z]+", phrase.text)) - _ARTICLES
        if any(len(words & other) > _MAX_OVERLAP * len(words | other) for other in seen):
            continue
        seen.append(words)
        found.append(phrase)
        if len(found) == count:
            break
    return found


def _unique(scene: Scene, thing: Thing, rng: random.Random) -> Description | None:
    """A description that fits only ``thing``, mostly with its colour; None if there is none."""
    options = [
        option for option in descriptions(thing) if sum(map(option.matches, scene.things)) == 1
    ]
    if not options:
        return None
    return rng.choices(options, [4.0 if option.colour else 1.0 for option in options])[0]


def _by_attributes(scene: Scene, thing: Thing, rng: random.Random) -> Phrase | None:
    option = _unique(scene, thing, rng)
    if option is None:
        return None
    text = rng.choice((str(option), f"the {option}", with_article(option)))
    return Phrase(text, thing.box)


def _by_relation(scene: Scene, thing: Thing, rng: random.Random) -> Phrase | None:
    other = rng.choice([other for other in scene.things if other is not thing])
    reference = _unique(scene, other, rng)
    if reference is None:
        return None
    options: list[tuple[Description, str, bool]] = []
    for option in descriptions(thing):
        rivals = [rival for rival in scene.things if rival is not other and option.matches(rival)]
        for relation in RELATIONS:
            if scene.holds(relation, thing, other) and all(
                rival is thing or not scene.may_hold(relation, rival, other) for rival in rivals
            ):
                options.append((option, relation, len(rivals) > 1))  # noqa: PERF401
    if any(needed for *_, needed in options) and rng.random() < 0.8:
        options = [option for option in options if option[-1]]
    if not options:
        return None
    option, relation, _ = rng.choice(options)
    form = rng.choice(("{} {} the {}", "the {} {} the {}", "{} that is {} the {}"))
    return Phrase(form.format(option, relation, reference), thing.box)


def _pair(scene: Scene, a: Thing, rng: random.Random) -> Phrase | None:
    b = rng.choice([other for other in scene.things if other is not a])
    first, second = _unique(scene, a, rng), _unique(scene, b, rng)
    if first is None or second is None or not scene.near(a, b):
        return None
    form = rng.choice(("{} next to {}", "{} and {}"))
    return Phrase(form.format(with_article(first), with_article(second)), a.box.union(b.box))
