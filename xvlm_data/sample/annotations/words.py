"""What annotations say, at any length of file: chunks of English and nouns used as words are used.

Region phrases of one image differ enough by construction. Each has a noun of its own that no other
phrase of the image holds, two where it is longer than six words. With n words, u of them its own,
the overlap with a phrase of the same length is at most (n - u) / (n + u): 5/7 for six words and
one, 6/10 for eight and two; with a phrase of another length it is less.
"""

from __future__ import annotations

from collections.abc import Sequence
from json import JSONEncoder

import numpy as np
import numpy.typing as npt

from xvlm_data.sample.annotations.chance import Keys, Weighted, mixed, sixteen_bits, zipf

#: Most phrases that one image can have with nouns of their own.
MOST_PHRASES = 128
_NOUNS_IN_ALL = 20 * 2 * MOST_PHRASES


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(chunk.split()) for chunk in text.split(","))


_COMMON_NOUNS = """
man woman person people boy girl child baby dog cat horse cow sheep bird elephant giraffe zebra
bear car truck bus train boat plane bike motorcycle wheel tire window door wall floor roof ceiling
house street road sidewalk sign pole light lamp clock table chair couch bed desk shelf cabinet
drawer counter sink toilet tub mirror towel curtain pillow blanket rug plate bowl cup glass bottle
fork knife spoon napkin tray pan pot oven stove fridge microwave toaster cake pizza sandwich bread
cheese fruit apple banana orange carrot broccoli tomato salad meat rice soup egg donut cookie
shirt jacket coat dress skirt pants jeans shorts shoe boot sock hat cap helmet glove scarf tie belt
watch bracelet ring necklace bag backpack purse umbrella suitcase phone camera laptop computer
keyboard mouse screen monitor remote book magazine paper pen pencil box basket bucket can jar vase
flower plant tree bush leaf branch grass field hill mountain rock stone sand beach water wave river
lake ocean sky cloud sun snow ice rain fence gate bench bridge tower church station platform track
rail engine cab seat mirrors handle button wire rope chain ladder hose hydrant cone barrel flag
banner poster picture frame painting letter number word logo stripe line spot shadow reflection
hand arm leg foot head face eye ear nose mouth hair beard tail mane horn wing beak paw neck back
racket ball bat net court player umpire crowd surfboard skateboard snowboard ski kite frisbee
glasses sunglasses uniform jersey vest apron toy doll teddy candle fan
"""

_HEADS = _listed(
    """a, the, the white, a black, a man's, the green, a white, a large, black, a small, the blue,
    two, a red, brown, the woman's, a wooden, a yellow, a tall, the silver, an orange, an old,
    three, the girl's, a metal, gray, the dark, a pink, a long, a clear, the open, bright,
    a striped, a caf\u00e9"""
)
_TAILS = _listed(
    """on the ground, in the background, is bright white, in the air, is very green, on the left,
    is standing alone, made of brick, in the distance, standing straight up, is very shiny,
    on the right, at the front, looking straight down, is parked outside, seen from behind,
    behind everything else, that is empty, next to another, with many colors, is turned off,
    in full bloom, covered in dust, says "stop" twice, not fully visible"""
)
_LINKS = _listed(
    """on the, of a, in the, with a, on top of the, is next to the, behind the, has a white,
    near the, under a, wearing a, in front of a, holding the, above a, is sitting on the,
    leaning against a, attached to the, over the small"""
)
_OPENERS = _listed(
    """A, The, A man and a, There is a, A large, Two people near a, A young, A white, An old,
    A group of people beside a, This is a, A close up of a, A small, A black, A picture of a,
    Several people around a, A wooden, a, An empty"""
)
_ACTIONS = _listed(
    """sitting, standing, that is parked, sitting on top, next to some trees, flying,
    walking slowly, standing in the middle, being held, covered with snow, on display, waiting,
    with its lights on, lying, in black and white, riding along, hanging, resting on the ground,
    in motion, filled with food, that was left"""
)
_PLACES = _listed(
    """on a, in front of a, next to a, near the, beside a large, on top of a, behind a, under the,
    in the, by a small, with a, at the, across from a red, over the"""
)
_LOOKS = _listed(
    """wooden, busy city, white, large, green, sandy, dirty, crowded, brightly lit, small,
    wide open, colorful, metal, grassy, stone, snow covered, tall, red"""
)
# The official files have outer white space here too.
ATTRIBUTES = (
    *_listed(
        """white, black, green, brown, blue, red, wooden, large, small, gray, tall, yellow, metal,
        standing, silver, sitting, parked, orange, long, dark, pink, round, open, made of brick,
        plastic, striped, old, clear, walking"""
    ),
    "on ",
)
_LONGER_BY = ("today", "together", "again", "somewhere")


def _pseudo_words() -> list[str]:
    """More words than anybody lists: two open syllables and a consonant, all different."""
    consonants, vowels, ends = "bdfghjklmnprstvz", "aeiou", "lmnrstxk"
    words = [
        a + b + c + d + e
        for a in consonants
        for b in vowels
        for c in consonants
        for d in vowels
        for e in ends
    ]
    # Neighbours would all begin alike.
    return [words[i * 7919 % len(words)] for i in range(len(words))]


def _said(chunks: Sequence[str]) -> set[str]:
    return {word for chunk in chunks for word in chunk.replace('"', " ").split()}


def _nouns() -> list[str]:
    taken = _said([*_HEADS, *_TAILS, *_LINKS, *_LONGER_BY])
    words = dict.fromkeys([*_COMMON_NOUNS.split(), *_pseudo_words()])
    return [word for word in words if word not in taken][:_NOUNS_IN_ALL]


#: Nouns, the most frequent first. None occurs in the other chunks of a region phrase.
NOUNS = np.array(_nouns(), dtype=object)

_BANDS = _NOUNS_IN_ALL // (2 * MOST_PHRASES)
_NOUN = Weighted(zipf(len(NOUNS), 8.0))
_BAND = Weighted(zipf(_BANDS, 0.3))
_ATTRIBUTE = Weighted(zipf(len(ATTRIBUTES)))


class _Chunks:
    """Chunks to choose from by 16 random bits, the first the most often."""

    def __init__(self, chunks: Sequence[str]) -> None:
        self._chunks = np.array(chunks, dtype=object)
        self._choose = Weighted(zipf(len(chunks)))

    def __getitem__(self, bits: npt.NDArray[np.intp]) -> list[str]:
        chosen: list[str] = self._chunks[self._choose[bits]].tolist()
        return chosen


_HEAD, _TAIL, _LINK = _Chunks(_HEADS), _Chunks(_TAILS), _Chunks(_LINKS)
_OPENER, _ACTION = _Chunks(_OPENERS), _Chunks(_ACTIONS)
_PLACE, _LOOK = _Chunks(_PLACES), _Chunks(_LOOKS)

quoted = JSONEncoder().encode  # of one string, as the official files escape it


def nouns(keys: Keys) -> list[str]:
    """``[N]`` nouns, the frequent ones often."""
    chosen: list[str] = NOUNS[_NOUN[sixteen_bits(keys, 0)]].tolist()
    return chosen


def attributes(keys: Keys) -> list[str]:
    """``[N]`` attributes."""
    table = np.array(ATTRIBUTES, dtype=object)
    chosen: list[str] = table[_ATTRIBUTE[sixteen_bits(keys, 0)]].tolist()
    return chosen


def phrases(keys: Keys, places: npt.NDArray[np.int64]) -> list[str]:
    """Region phrases of about five words.

    Args:
        keys: ``[N]`` random bits.
        places: ``[N]`` a number below :data:`MOST_PHRASES` that differs within each image.
    """
    more = mixed(keys)
    first = NOUNS[places + 2 * MOST_PHRASES * _BAND[sixteen_bits(keys, 0)]].tolist()
    own = NOUNS[places + MOST_PHRASES * (1 + 2 * _BAND[sixteen_bits(keys, 1)])].tolist()
    form = sixteen_bits(more, 3) >> 13  # 0 ... 7
    return [
        f"{head} {noun} {link} {second}"
        if shape >= 4
        else f"{head} {noun} {tail}"
        if shape
        else f"{head} {noun}"
        for head, noun, tail, link, second, shape in zip(
            _HEAD[sixteen_bits(keys, 2)],
            first,
            _TAIL[sixteen_bits(keys, 3)],
            _LINK[sixteen_bits(more, 0)],
            own,
            form.tolist(),
            strict=True,
        )
    ]


def repeated(phrase: str, how: int) -> str:
    """The same words once more: as they are, in other dress, or with one more (if that is enough).

    A phrase of n words and the same with one more overlap by n / (n + 1).
    """
    if how == 1:
        return f"{phrase.upper()}!"
    if how == 2:
        return f"{phrase.replace(' ', ', ', 1)} ..."
    words = phrase.replace('"', "").split()
    if how == 3 and len(set(words)) >= 4:
        return f"{phrase} {next(word for word in _LONGER_BY if word not in words)}"
    return phrase


def as_typed(keys: Keys, texts: Sequence[str]) -> list[str]:
    """Region phrases as people typed them: capitals, full stops, white space at the ends."""
    draws = sixteen_bits(keys, 0).tolist()
    return [
        text if draw < 43_000 else _typed(text, draw)
        for text, draw in zip(texts, draws, strict=True)
    ]


def _typed(text: str, draw: int) -> str:
    if draw % 4:
        text = text[:1].upper() + text[1:]
        if draw % 4 == 2:
            text += "."
        return text if draw % 4 != 3 else f"{text} "
    return f"{text}\n" if draw % 32 == 0 else f"{text} "


def captions(keys: Keys) -> list[str]:
    """Whole-image captions of about ten words, with the white space of the official files."""
    more = mixed(keys)
    ends = [" " if e < 7200 else "\n" if e < 7360 else "" for e in sixteen_bits(more, 3).tolist()]
    stops = ["" if s < 14_400 else "." for s in sixteen_bits(more, 2).tolist()]
    gaps = ["  " if s % 88 == 7 else " " for s in sixteen_bits(more, 2).tolist()]
    return [
        f"{opener} {noun} {action}{gap}{place} {look} {other}{stop}{end}"
        for opener, noun, action, gap, place, look, other, stop, end in zip(
            _OPENER[sixteen_bits(keys, 0)],
            NOUNS[_NOUN[sixteen_bits(keys, 1)]].tolist(),
            _ACTION[sixteen_bits(keys, 2)],
            gaps,
            _PLACE[sixteen_bits(keys, 3)],
            _LOOK[sixteen_bits(more, 1)],
            NOUNS[_NOUN[sixteen_bits(more, 0)]].tolist(),
            stops,
            ends,
            strict=True,
        )
    ]
