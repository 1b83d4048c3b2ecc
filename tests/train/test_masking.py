from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_train.data.masking import Masked, MaskVocabulary, draw_chances, mask_tokens

# Ids 0-4 are special, 5-54 start a word, 55-99 continue one.
CLS, MASK = 2, 4
CONTINUES = np.arange(100) >= 55
VOCABULARY = MaskVocabulary(MASK, CONTINUES, np.arange(5, 100))


def text(lengths: list[int], rng: np.random.Generator) -> np.ndarray:
    """[CLS] and words of the given numbers of pieces."""
    ids = [CLS]
    for length in lengths:
        ids += [int(rng.integers(5, 55)), *rng.integers(55, 100, length - 1).tolist()]
    return np.array(ids, dtype=np.int64)


def mask(ids: np.ndarray, rng: np.random.Generator, **options: Any) -> Masked:
    """One text alone, without the dimension of texts."""
    chances = draw_chances(rng, len(ids))
    found = mask_tokens(ids, np.array([len(ids)]), chances, VOCABULARY, **options)
    return Masked(found.ids, found.positions[0], found.labels[0])


def words_of(ids: np.ndarray) -> list[set[int]]:
    words: list[set[int]] = []
    for place in range(1, len(ids)):
        if CONTINUES[ids[place]]:
            words[-1].add(place)
        else:
            words.append({place})
    return words


@settings(max_examples=300)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=0, max_size=30),
    max_masks=st.integers(1, 10),
    prob=st.sampled_from([0.15, 0.25, 0.5]),
    seed=st.integers(0, 2**32),
)
def test_every_text_is_masked_by_the_rules(
    lengths: list[int], max_masks: int, prob: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = text(lengths, rng)
    before = ids.copy()
    masked = mask(ids, rng, mask_prob=prob, max_masks=max_masks)
    assert (ids == before).all()
    assert masked.positions.shape == masked.labels.shape == (max_masks,)

    used = masked.labels != -100
    count = min(max_masks, max(1, round(prob * len(ids))), len(ids) - 1)
    assert used.sum() == count
    assert not used[count:].any()
    assert (masked.positions[~used] == 0).all()

    positions = masked.positions[used]
    assert len(set(positions.tolist())) == count
    assert (positions >= 1).all()
    assert (positions < len(ids)).all()
    assert (masked.labels[used] == ids[positions]).all()
    elsewhere = np.setdiff1d(np.arange(len(ids)), positions)
    assert (masked.ids[elsewhere] == ids[elsewhere]).all()
    # Whole words, but for the last start, which may span three words and which the count may cut.
    partly = [w for w in words_of(ids) if 0 < len(w & set(positions.tolist())) < len(w)]
    assert len(partly) <= 3


def test_the_same_generator_gives_the_same_mask() -> None:
    ids = text([1, 2, 3, 1, 1, 2], np.random.default_rng(0))
    a, b = (mask(ids, np.random.default_rng(7)) for _ in range(2))
    assert (a.ids == b.ids).all()
    assert (a.positions == b.positions).all()


def test_texts_together_are_masked_as_they_are_alone() -> None:
    rng = np.random.default_rng(3)
    texts = [text(words, rng) for words in ([1, 2, 3], [], [4, 1, 1, 1, 2, 2, 1, 5, 3], [1])]
    lengths = np.array([len(ids) for ids in texts])
    chances = draw_chances(rng, int(lengths.sum()))
    ends = np.cumsum(lengths)
    together = mask_tokens(np.concatenate(texts), lengths, chances, VOCABULARY, max_masks=5)
    assert together.positions.shape == together.labels.shape == (4, 5)
    for n, (ids, end) in enumerate(zip(texts, ends, strict=True)):
        own = chances[:, end - len(ids) : end]
        alone = mask_tokens(ids, lengths[n : n + 1], own, VOCABULARY, max_masks=5)
        assert (together.ids[end - len(ids) : end] == alone.ids).all()
        assert (together.positions[n] == alone.positions[0]).all()
        assert (together.labels[n] == alone.labels[0]).all()


def draws(lengths: list[int], number: int, **options: Any) -> list[tuple[np.ndarray, set[int]]]:
    rng = np.random.default_rng(1)
    result = []
    for _ in range(number):
        ids = text(lengths, rng)
        masked = mask(ids, rng, **options)
        result.append((ids, set(masked.positions[masked.labels != -100].tolist())))
    return result


def test_of_the_chosen_80_percent_are_masked_10_random_10_kept() -> None:
    rng = np.random.default_rng(0)
    hidden = kept = other = 0
    for _ in range(2000):
        ids = text([1] * 19, rng)
        masked = mask(ids, rng)
        places = masked.positions[masked.labels != -100]
        hidden += int((masked.ids[places] == MASK).sum())
        kept += int((masked.ids[places] == ids[places]).sum())
        changed = (masked.ids[places] != ids[places]) & (masked.ids[places] != MASK)
        other += int(changed.sum())
        assert (masked.ids[places][changed] >= 5).all()
    total = hidden + kept + other
    assert total == 2000 * 5
    # 10,000 draws: one standard deviation is 0.004 and 0.003. One in 95 random tokens is the same.
    assert abs(hidden / total - 0.8) < 0.016
    assert abs(kept / total - 0.1 - 0.1 / 95) < 0.012
    assert abs(other / total - 0.1 + 0.1 / 95) < 0.012


def test_every_place_has_about_the_same_chance() -> None:
    counts = np.zeros(20)
    for _, chosen in draws([1] * 19, 4000):
        counts[list(chosen)] += 1
    assert counts[0] == 0
    assert (np.abs(counts[1:] / 4000 - 5 / 19) < 0.06).all()


def test_words_are_taken_whole_where_they_fit() -> None:
    # 4 of 9 tokens: the first word taken leaves room for the second.
    for ids, chosen in draws([2, 2, 2, 2], 500, mask_prob=0.5):
        assert len(chosen) == 4
        assert sum(len(word & chosen) == 2 for word in words_of(ids)) >= 1
    whole = 0
    for ids, chosen in draws([3, 1, 1, 1, 1, 1, 1, 1, 1], 2000):  # 3 of 12 tokens
        whole += words_of(ids)[0] <= chosen
    # 3 of 11 places begin with the long word and take all of it (0.27), unless the start grew and
    # the run was cut; three places at random would hit it in 1 of 165.
    assert 0.2 < whole / 2000 < 0.32


def test_one_in_five_starts_grows_to_two_or_three_tokens() -> None:
    # 2 tokens of 8 single-token words: neighbours by growing, or by chance.
    number = 6000
    pairs = [sorted(chosen) for _, chosen in draws([1] * 7, number, mask_prob=0.25)]
    together = sum(b - a == 1 for a, b in pairs) / number
    by_chance = 6 / 21
    # A start in the last of 7 places has nowhere to grow; in the one before, not to 3. Of a run of
    # 3, two are kept: neighbours in 2 of 3 cases.
    grown = 0.2 * (0.5 * 6 / 7 + 0.5 * (5 / 7 * 2 / 3 + 1 / 7))
    expected = grown + (1 - 0.2 * 6 / 7) * by_chance
    assert by_chance + 0.05 < together
    assert abs(together - expected) < 0.03


def test_a_text_of_cls_alone_has_nothing_to_predict() -> None:
    masked = mask(np.array([CLS]), np.random.default_rng(0))
    assert masked.ids.tolist() == [CLS]
    assert set(masked.labels.tolist()) == {-100}
