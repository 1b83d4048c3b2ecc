"""Choosing and hiding tokens for masked language modelling (spec: Objectives, 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = npt.NDArray[np.int64]

#: Label of an unused slot: what torch's cross entropy ignores.
IGNORE = -100
#: Chance that a chosen place grows to 2 or 3 tokens, before whole words are completed.
NGRAM_PROB = 0.2


@dataclass(frozen=True, slots=True)
class MaskVocabulary:
    """What masking needs to know of a vocabulary.

    Attributes:
        mask_id: id of [MASK].
        continues: ``[V]`` bool, True for pieces that go on with a word (``##ing``).
        random_ids: ids a token may be replaced by: the vocabulary without its special tokens.
    """

    mask_id: int
    continues: npt.NDArray[np.bool_]
    random_ids: Ids


@dataclass(frozen=True, slots=True)
class Masked:
    """B masked texts.

    Attributes:
        ids: ``[T]`` the tokens of all of them, one text after the other.
        positions: ``[B, max_masks]`` places of the chosen tokens in their text, ascending; unused
            slots are 0.
        labels: ``[B, max_masks]`` what stood there; -100 in unused slots.
    """

    ids: Ids
    positions: Ids
    labels: Ids


def draw_chances(rng: np.random.Generator, tokens: int) -> npt.NDArray[np.float64]:
    """``[5, tokens]`` in [0, 1): all that chance has to say about the masks of some texts."""
    return rng.random((5, tokens))


def mask_tokens(
    ids: Ids,
    lengths: Ids,
    chances: npt.NDArray[np.float64],
    vocabulary: MaskVocabulary,
    *,
    mask_prob: float = 0.25,
    max_masks: int = 8,
) -> Masked:
    """Hide about a quarter of the tokens of each text.

    Of L tokens ``min(max_masks, max(1, round(mask_prob * L)))`` are chosen, or all words where
    there are fewer. Places are visited in random order; a place takes its whole word, and with
    20 % chance the next one or two tokens (and the rest of their words) too. The last run taken is
    thinned out at random where the whole of it would be more than that number. Of the chosen tokens
    80 % become [MASK], 10 % a random token, 10 % stay.

    Args:
        ids: ``[T]`` token ids of B texts one after the other, each with [CLS] first, which is never
            chosen; without padding.
        lengths: ``[B]`` tokens of each text, at least 1.
        chances: ``[5, T]`` from :func:`draw_chances`.
        vocabulary: see :class:`MaskVocabulary`.
        mask_prob: share of a text's tokens, [CLS] counted.
        max_masks: most tokens chosen of a text, and the number of slots returned.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    text = np.repeat(np.arange(len(lengths)), lengths)
    order, growth, thinning, fates, replacements = chances
    keys = 2 * text + order
    keys[starts] += 1  # [CLS] comes after all places of its text, and is not visited
    reach = np.where(growth < NGRAM_PROB, np.where(growth < NGRAM_PROB / 2, 2, 3), 1)
    # Texts are short and each call of NumPy has its price, so the choice is made with Python's
    # numbers, and all before and after it for all texts at once.
    visits, ahead, thin = np.argsort(keys).tolist(), reach.tolist(), thinning.tolist()
    continues = vocabulary.continues[ids].tolist()
    chosen: list[int] = []
    counts: list[int] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        length = end - start
        wanted = min(max_masks, max(1, round(mask_prob * length)), length - 1)
        own = _choose(visits[start : end - 1], start, end, wanted, ahead, continues, thin)
        chosen += own
        counts.append(len(own))
    places = np.array(chosen, np.int64)
    was, fate, of = ids[places], fates[places], text[places]
    slots = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (len(lengths), max_masks)
    positions, labels = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
    positions[of, slots], labels[of, slots] = places - starts[of], was
    among = (replacements[places] * len(vocabulary.random_ids)).astype(np.int64)
    random = vocabulary.random_ids[among]
    masked = ids.copy()
    masked[places] = np.select([fate < 0.8, fate < 0.9], [vocabulary.mask_id, random], was)
    return Masked(masked, positions, labels)


def _choose(
    visits: Sequence[int],
    start: int,
    end: int,
    wanted: int,
    reach: Sequence[int],
    continues: Sequence[bool],
    thinning: Sequence[float],
) -> list[int]:
    """``wanted`` places of the text from ``start`` to ``end``, ascending; the first is [CLS]."""
    chosen: set[int] = set()
    for place in visits:
        room = wanted - len(chosen)
        if room <= 0:
            break
        if place in chosen:
            continue
        first, stop = place, min(place + reach[place], end)
        while first > start + 1 and continues[first]:
            first -= 1
        while stop < end and continues[stop]:
            stop += 1
        new = [p for p in range(first, stop) if p not in chosen]
        if len(new) > room:
            new = sorted(new, key=thinning.__getitem__)[:room]
        chosen.update(new)
    return sorted(chosen)
