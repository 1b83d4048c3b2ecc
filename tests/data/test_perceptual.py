"""Perceptual hashes, and the search for near ones."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.leaky_releases import scene
from tests.shared import shared_path
from xvlm_data.leaks.perceptual import _DCT, HammingIndex, _Plan, distances, perceptual_hash


def recompressed(image: Image.Image, quality: int, scale: float = 1.0) -> Image.Image:
    if scale != 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(io.BytesIO(data.getvalue())).convert("RGB")


def apart(left: Image.Image, right: Image.Image) -> int:
    one, other = perceptual_hash(left), perceptual_hash(right)
    assert one is not None and other is not None
    return (one ^ other).bit_count()


def test_the_transform_is_the_discrete_cosine_transform() -> None:
    """By the definition of the DCT-II through an FFT of the mirrored signal."""
    signal = np.random.default_rng(0).standard_normal(32)
    mirrored = np.fft.fft(np.concatenate([signal, signal[::-1]]))[:8]
    expected = (mirrored * np.exp(-1j * np.pi * np.arange(8) / 64)).real / 2
    assert _DCT @ signal == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("quality", "scale"), [(75, 1), (30, 1), (90, 0.5), (75, 2), (50, 0.4)])
def test_copies_stay_near(seed: int, quality: int, scale: float) -> None:
    assert apart(scene(seed), recompressed(scene(seed), quality, scale)) <= 4


def test_other_scenes_are_far() -> None:
    hashes = [perceptual_hash(scene(seed)) for seed in range(30)]
    assert None not in hashes
    far = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]  # type: ignore[operator]
    assert min(far) > 12  # the largest distance that can be asked for


def test_plain_pictures_have_no_hash() -> None:
    assert perceptual_hash(Image.new("RGB", (100, 80), "teal")) is None
    noise = np.random.default_rng(0).integers(126, 130, (80, 100, 3), dtype=np.uint8)
    assert perceptual_hash(Image.fromarray(noise)) is None


def test_photographs() -> None:
    """The excerpts' photographs: copies of quality 50 at half the size, and each other."""
    folder = shared_path("fixtures/coco/val2017")
    photos = [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.jpg"))]
    hashes = [perceptual_hash(photo) for photo in photos]
    for photo in photos:
        assert apart(photo, recompressed(photo, 50, 0.5)) <= 4
    far = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]  # type: ignore[operator]
    assert min(far) > 12


bits = st.integers(0, 2**64 - 1)


@given(bits, bits)
def test_distances_are_counted_bits(left: int, right: int) -> None:
    found = distances(np.array([left], np.uint64), np.array([right], np.uint64))
    assert found.tolist() == [(left ^ right).bit_count()]


@st.composite
def clustered(draw: st.DrawFn) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], int]:
    """Hashes of an index and queries near some of them, at distances around the limit."""
    distance = draw(st.integers(0, 12))
    index = draw(st.lists(bits, max_size=40))
    queries = draw(st.lists(bits, max_size=10))
    for value in draw(st.lists(st.sampled_from(index), max_size=20)) if index else []:
        flips = draw(st.lists(st.integers(0, 63), max_size=distance + 3, unique=True))
        queries.append(value ^ sum(1 << flip for flip in flips))
    return np.array(index, np.uint64), np.array(queries, np.uint64), distance


@given(clustered())
def test_the_search_finds_what_comparing_all_finds(
    case: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], int],
) -> None:
    index, queries, distance = case
    found = zip(
        *(part.tolist() for part in HammingIndex(index, distance).search(queries)), strict=True
    )
    expected = [
        (i, j, far)
        for i, query in enumerate(queries.tolist())
        for j, value in enumerate(index.tolist())
        if (far := (query ^ value).bit_count()) <= distance
    ]
    assert list(found) == expected


@pytest.mark.parametrize("size", [1, 5_000, 50_000])
@pytest.mark.parametrize("distance", range(13))
def test_every_plan_covers_the_bits_and_stays_small(size: int, distance: int) -> None:
    plan = _Plan.best(distance, size)
    assert sum(plan.widths) == 64
    # Pigeonhole: were every band more than radius apart, all would be more than distance apart.
    assert plan.bands * (plan.radius + 1) > distance
    assert plan.entries * size <= 50e6
    assert plan.share < 0.25


def test_many_equal_hashes_are_searched_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xvlm_data.leaks.perceptual._BLOCK", 50)
    index = np.full(30, 7, np.uint64)
    left, right, far = HammingIndex(index, 2).search(np.array([7, 6, 2**63], np.uint64))
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == [
        (query, place) for query in (0, 1) for place in range(30)
    ]
    assert far.tolist() == [0] * 30 + [1] * 30
