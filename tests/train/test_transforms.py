from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.train.small_images import box_in, noise, stored, with_box
from xvlm_train.data.pixels import Picture, Way
from xvlm_train.data.transforms import (
    Corners,
    Crop,
    crop_around,
    eval_pixels,
    normalise,
    patch_mask,
    random_resized_crop,
    shows,
    to_model_boxes,
)


def model_boxes(boxes: list[Corners], crop: Crop, flip: bool) -> np.ndarray:
    """Of boxes in the same crop."""
    crops = np.array([crop] * len(boxes))
    return to_model_boxes(np.array(boxes), crops, np.array([flip] * len(boxes)))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[int, int, tuple[int, int, int, int]]:
    width, height = draw(st.integers(40, 300)), draw(st.integers(40, 300))
    x0, y0 = draw(st.integers(0, width - 12)), draw(st.integers(0, height - 12))
    x1, y1 = draw(st.integers(x0 + 12, width)), draw(st.integers(y0 + 12, height))
    return width, height, (x0, y0, x1, y1)


@settings(max_examples=200, deadline=None)
@given(
    scene=scenes(),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
    side=st.sampled_from([16, 40, 160]),
    way=st.sampled_from(["fast", "exact"]),
    kind=st.sampled_from(["JPEG", "PNG"]),
)
def test_the_box_moves_with_its_pixels(
    scene: tuple[int, int, tuple[int, int, int, int]],
    flip: bool,
    seed: int,
    side: int,
    way: Way,
    kind: str,
) -> None:
    width, height, box = scene
    corners = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    picture = Picture(stored(with_box(width, height, box), kind), width, height, way)
    assert picture.size == (width, height)
    crop = crop_around(np.random.default_rng(seed).random(4).tolist(), corners, width, height)
    crop = picture.aligned(crop, side)
    assert shows(crop, corners)
    crop_width, crop_height = crop[2] - crop[0], crop[3] - crop[1]
    pixels = picture.square(crop, side)
    assert pixels.shape == (side, side, 3)
    image = Image.fromarray(pixels[:, ::-1].copy() if flip else pixels)
    ((cx, cy, w, h),) = model_boxes([corners], crop, flip) * side
    # Pixels are whole: half of one at either end, and as much of the source's when enlarged.
    slack = 0.5 + 0.5 * max(side / crop_width, side / crop_height, 1)
    if min(w, h) < 2:  # too thin to reach half of the brightness
        return
    expected = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    assert box_in(image) == pytest.approx(expected, abs=slack)


@settings(max_examples=300)
@given(scene=scenes(), seed=st.integers(0, 2**32), shift=st.floats(-0.4, 0.4))
def test_the_crop_holds_the_whole_box_and_lies_in_the_image(
    scene: tuple[int, int, tuple[int, int, int, int]], seed: int, shift: float
) -> None:
    width, height, box = scene
    a, b, c, d = np.clip(np.array(box) + shift, 0, [width, height, width, height]).tolist()
    corners = (a, b, c, d)
    x0, y0, x1, y1 = crop_around(
        np.random.default_rng(seed).random(4).tolist(), corners, width, height
    )
    assert 0 <= x0 <= corners[0]
    assert 0 <= y0 <= corners[1]
    assert corners[2] <= x1 <= width
    assert corners[3] <= y1 <= height


def test_crops_around_a_box_reach_every_place_they_may() -> None:
    crops = {
        crop_around(np.random.default_rng(i).random(4).tolist(), (2.0, 1.0, 5.0, 4.0), 6, 5)
        for i in range(2000)
    }
    assert len(crops) == 3 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("cut", "kept"), [(0, True), (49, True), (50, False), (51, False), (100, False)]
)
def test_a_box_stays_when_more_than_half_of_it_does(cut: int, kept: bool) -> None:
    # A box 100 wide, of which the crop cuts `cut` pixels off at the left.
    assert shows((20 + cut, 0, 200, 100), (20.0, 10.0, 120.0, 60.0)) == kept


def test_half_is_measured_by_area() -> None:
    crop = (25, 25, 200, 200)
    assert shows(crop, (0, 0, 100, 100))  # 0.75 * 0.75 = 0.56
    assert shows(crop, (60, 60, 80, 80))
    assert not shows(crop, (0, 0, 10, 10))
    assert not shows((30, 30, 200, 200), (0, 0, 100, 100))  # 0.49
    assert not shows(crop, (50, 50, 50, 60))  # no area


@settings(max_examples=200)
@given(scene=scenes(), crop=scenes(), flip=st.booleans())
def test_boxes_equal_masks_of_pixels(
    scene: tuple[int, int, tuple[int, int, int, int]],
    crop: tuple[int, int, tuple[int, int, int, int]],
    flip: bool,
) -> None:
    """Against masks that are cut and mirrored as the image is, pixel by pixel."""
    box, (_, _, cut) = scene[2], crop
    mask = np.zeros((310, 310), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    inside = mask[cut[1] : cut[3], cut[0] : cut[2]]
    corners = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    shown = shows(cut, corners)
    assert shown == (inside.sum() > 0.5 * mask.sum())
    if not shown:
        return
    height, width = inside.shape
    rows, columns = np.nonzero(inside[:, ::-1] if flip else inside)
    expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    ((cx, cy, w, h),) = model_boxes([corners], cut, flip).astype(np.float64)
    got = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    assert got * [width, height, width, height] == pytest.approx(expected, abs=1e-3)


def test_model_boxes_of_a_known_case() -> None:
    # The last two in a crop that begins at (20, 10), from which one of them sticks out.
    boxes = np.array([(10, 20, 30, 40), (10, 20, 30, 40), (30, 30, 50, 50), (0, 0, 70, 50.0)])
    crops = np.array([(0, 0, 100, 80)] * 2 + [(20, 10, 120, 90)] * 2)
    found = to_model_boxes(boxes, crops, np.array([False, True, True, False]))
    assert found.dtype == np.float32
    expected = [[0.2, 0.375, 0.2, 0.25], [0.8, 0.375, 0.2, 0.25], [0.8, 0.375, 0.2, 0.25]]
    assert found == pytest.approx(np.array([*expected, [0.25, 0.25, 0.5, 0.5]]), abs=1e-6)


@settings(max_examples=300)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    scale=st.sampled_from([0.08, 0.2, 0.5, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_random_resized_crop_lies_in_the_image(
    width: int, height: int, scale: float, seed: int
) -> None:
    x0, y0, x1, y1 = random_resized_crop(np.random.default_rng(seed), width, height, scale)
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height


def test_random_resized_crop_keeps_area_and_shape_in_their_ranges() -> None:
    areas, ratios = [], []
    for seed in range(2000):
        x0, y0, x1, y1 = random_resized_crop(np.random.default_rng(seed), 400, 400, 0.2)
        areas.append((x1 - x0) * (y1 - y0) / 400**2)
        ratios.append((x1 - x0) / (y1 - y0))
    assert 0.195 < min(areas) < 0.22
    assert 0.95 < max(areas) <= 1
    assert 0.74 < min(ratios) < 0.77
    assert 1.3 < max(ratios) < 1.35
    # Large areas of extreme shape do not fit a square and are drawn again.
    assert 0.5 < np.mean(areas) < 0.6


def rows_and_columns(low: Fraction, high: Fraction, count: int) -> range:
    """The spec's rule on exact numbers: low, high in patches."""
    first = min(math.floor(low), count - 1)
    return range(first, min(max(math.ceil(high), first + 1), count))


@settings(max_examples=500)
@given(
    grid=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    patch=st.sampled_from([8, 16, 32]),
    data=st.data(),
)
def test_patch_mask_equals_the_rule_on_exact_numbers(
    grid: tuple[int, int], patch: int, data: st.DataObject
) -> None:
    rows, columns = grid
    # Whole pixels, and so boxes that often end exactly on a grid line.
    x0, x1 = sorted(data.draw(st.tuples(*[st.integers(0, columns * patch)] * 2)))
    y0, y1 = sorted(data.draw(st.tuples(*[st.integers(0, rows * patch)] * 2)))
    assume(x0 < x1 and y0 < y1)
    width, height = columns * patch, rows * patch
    box = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
    (mask,) = patch_mask(np.array([box], dtype=np.float32), grid)

    expected = np.zeros((rows, columns), dtype=bool)
    for r in rows_and_columns(Fraction(y0, patch), Fraction(y1, patch), rows):
        for c in rows_and_columns(Fraction(x0, patch), Fraction(x1, patch), columns):
            expected[r, c] = True
    assert mask[0]
    assert (mask[1:].reshape(rows, columns) == expected).all()


def test_patch_mask_is_vectorised_and_row_major() -> None:
    boxes = np.array([[0.5, 0.5, 1, 1], [0.25, 0.25, 0.5, 0.5], [0.9, 0.1, 0.01, 0.01]])
    mask = patch_mask(boxes, (2, 3))
    assert mask.astype(int).tolist() == [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 0],
    ]


def test_a_box_on_the_far_edge_has_a_patch_all_the_same() -> None:
    (mask,) = patch_mask(np.array([[1.0, 1.0, 0.0, 0.0]]), (4, 4))
    assert mask[1:].reshape(4, 4)[3, 3]
    assert mask.sum() == 2


def test_normalised_as_torchvision_does() -> None:
    from torchvision.transforms import functional as tv

    image = noise()
    planes = torch.from_numpy(image).permute(2, 0, 1)
    expected = tv.normalize(
        tv.to_tensor(image),
        [0.48145466, 0.4578275, 0.40821073],
        [0.26862954, 0.26130258, 0.27577711],
    )
    assert (normalise(planes) - expected).abs().max() < 1e-5


def test_eval_pixels_are_the_whole_image() -> None:
    pixels = eval_pixels(with_box(200, 100, (100, 0, 200, 100)), 64)
    assert pixels.shape == (3, 64, 64)
    assert pixels[:, :, 36:].min() > 250
    assert pixels[:, :, :28].max() < 5
