"""Choosing and hiding tokens for masked language modelling (spec: Objectives, 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

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
    """A masked text. ``positions`` and ``labels`` are ``[max_masks]``; unused slots 0 and -100."""

    ids: Ids
    positions: Ids
    labels: Ids


def mask_tokens(
    ids: Ids,
    vocabulary: MaskVocabulary,
    rng: np.random.Generator,
    *,
    mask_prob: float = 0.25,
    max_masks: int = 8,
) -> Masked:
    """Hide about a quarter of a text's tokens.

    Exactly ``min(max_masks, max(1, round(mask_prob * len(ids))))`` tokens are chosen, or all words
    where there are fewer. Places are visited in random order; a place takes its whole word, and
    with 20 % chance the next one or two tokens (and the rest of their words) too. The last word
    taken is cut at random where the whole of it would be more than that number. Of the chosen
    tokens 80 % become [MASK], 10 % a random token, 10 % stay.

    Args:
        ids: ``[L]`` token ids, [CLS] first, without padding. [CLS] is never chosen.
        vocabulary: see :class:`MaskVocabulary`.
        rng: the only source of chance.
        mask_prob: share of the tokens, [CLS] counted.
        max_masks: most tokens chosen, and the number of slots returned.
    """
    length = len(ids)
    wanted = min(max_masks, max(1, round(mask_prob * length)), length - 1)
    # All numbers at once, as Python's: a text is short, and each call of NumPy has its price.
    order, growth, fates, replacements = rng.random((4, length)).tolist()
    continues = vocabulary.continues[ids].tolist()
    chosen = _choose(continues, wanted, order, growth, rng)
    masked = ids.copy()
    positions = np.zeros(max_masks, dtype=np.int64)
    labels = np.full(max_masks, IGNORE, dtype=np.int64)
    positions[: len(chosen)] = chosen
    labels[: len(chosen)] = ids[chosen]
    for place in chosen:
        if fates[place] < 0.8:
            masked[place] = vocabulary.mask_id
        elif fates[place] < 0.9:
            number = int(replacements[place] * len(vocabulary.random_ids))
            masked[place] = vocabulary.random_ids[number]
    return Masked(masked, positions, labels)


def _choose(
    continues: list[bool],
    wanted: int,
    order: list[float],
    growth: list[float],
    rng: np.random.Generator,
) -> list[int]:
    """``wanted`` places of a text, ascending; place 0 is [CLS]."""
    length = len(continues)
    chosen: set[int] = set()
    for place in sorted(range(1, length), key=order.__getitem__):
        if len(chosen) >= wanted:
            break
        if place in chosen:
            continue
        start, stop = place, place + 1
        if growth[place] < NGRAM_PROB:
            stop = min(start + (2 if growth[place] < NGRAM_PROB / 2 else 3), length)
        while start > 1 and continues[start]:
            start -= 1
        while stop < length and continues[stop]:
            stop += 1
        new = [p for p in range(start, stop) if p not in chosen]
        room = wanted - len(chosen)
        if len(new) > room:
            new = rng.choice(new, size=room, replace=False).tolist()
        chosen.update(new)
    return sorted(chosen)
