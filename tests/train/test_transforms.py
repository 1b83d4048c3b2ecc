from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from xvlm_train.data.augment import COLOUR, GEOMETRIC, rand_augment
from xvlm_train.data.transforms import (
    crop_around,
    crop_boxes,
    crop_resize_flip,
    eval_pixels,
    normalise,
    patch_mask,
    random_resized_crop,
    to_model_boxes,
    to_pixels,
)


def drawn(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A black image with a white rectangle; corners as (x0, y0, x1, y1), the last exclusive."""
    image = Image.new("RGB", (width, height))
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    return image


def found(image: Image.Image, threshold: float = 0.5) -> tuple[float, float, float, float]:
    """Corners of what is white in an image."""
    white = np.asarray(image.convert("L"), dtype=np.float64) / 255
    columns, rows = white.max(axis=0), white.max(axis=1)
    x0, x1 = np.flatnonzero(columns >= threshold)[[0, -1]]
    y0, y1 = np.flatnonzero(rows >= threshold)[[0, -1]]
    return float(x0), float(y0), float(x1 + 1), float(y1 + 1)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[int, int, tuple[int, int, int, int]]:
    width, height = draw(st.integers(40, 300)), draw(st.integers(40, 300))
    x0, y0 = draw(st.integers(0, width - 12)), draw(st.integers(0, height - 12))
    x1, y1 = draw(st.integers(x0 + 12, width)), draw(st.integers(y0 + 12, height))
    return width, height, (x0, y0, x1, y1)


@settings(max_examples=150)
@given(scene=scenes(), flip=st.booleans(), seed=st.integers(0, 2**32))
def test_the_box_moves_with_its_pixels(
    scene: tuple[int, int, tuple[int, int, int, int]], flip: bool, seed: int
) -> None:
    width, height, box = scene
    side = 160
    corners = np.array([box], dtype=np.float64)
    crop = crop_around(np.random.default_rng(seed), corners[0], width, height)
    moved, visible = crop_boxes(corners, crop)
    crop_width, crop_height = crop[2] - crop[0], crop[3] - crop[1]
    image = crop_resize_flip(drawn(width, height, box), crop, side, flip)
    ((cx, cy, w, h),) = to_model_boxes(moved, crop_width, crop_height, flip) * side
    assert visible.all()
    assert image.size == (side, side)
    # Pixels are whole: half of one at either end, and as much of the source's when enlarged.
    slack = 0.5 + 0.5 * max(side / crop_width, side / crop_height, 1)
    expected = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    assert found(image) == pytest.approx(expected, abs=slack)


@settings(max_examples=300)
@given(scene=scenes(), seed=st.integers(0, 2**32), shift=st.floats(-0.4, 0.4))
def test_the_crop_holds_the_whole_box_and_lies_in_the_image(
    scene: tuple[int, int, tuple[int, int, int, int]], seed: int, shift: float
) -> None:
    width, height, box = scene
    corners = np.clip(np.array(box) + shift, 0, [width, height, width, height])
    x0, y0, x1, y1 = crop_around(np.random.default_rng(seed), corners, width, height)
    assert 0 <= x0 <= corners[0]
    assert 0 <= y0 <= corners[1]
    assert corners[2] <= x1 <= width
    assert corners[3] <= y1 <= height


def test_crops_around_a_box_reach_every_place_they_may() -> None:
    crops = {
        crop_around(np.random.default_rng(i), np.array([2.0, 1.0, 5.0, 4.0]), 6, 5)
        for i in range(2000)
    }
    assert len(crops) == 3 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("cut", "kept"), [(0, True), (49, True), (50, False), (51, False), (100, False)]
)
def test_a_box_stays_when_more_than_half_of_it_does(cut: int, kept: bool) -> None:
    # A box 100 wide, of which the crop cuts `cut` pixels off at the left.
    boxes = np.array([[20.0, 10.0, 120.0, 60.0]])
    _, visible = crop_boxes(boxes, (20 + cut, 0, 200, 100))
    assert visible.tolist() == [kept]


def test_half_is_measured_by_area_and_what_stays_is_clipped() -> None:
    boxes = np.array([[0.0, 0.0, 100.0, 100.0], [60.0, 60.0, 80.0, 80.0], [0, 0, 10, 10]])
    moved, visible = crop_boxes(boxes, (25, 25, 200, 200))  # 0.75 * 0.75 = 0.56 of the first
    assert visible.tolist() == [True, True, False]
    assert moved[:2].tolist() == [[0, 0, 75, 75], [35, 35, 55, 55]]
    assert crop_boxes(boxes[:1], (30, 30, 200, 200))[1].tolist() == [False]  # 0.49


def test_model_boxes_of_a_known_case() -> None:
    box = np.array([[10.0, 20.0, 30.0, 40.0]])
    assert to_model_boxes(box, 100, 80, False).tolist() == [
        pytest.approx([0.2, 0.375, 0.2, 0.25], abs=1e-6)
    ]
    assert to_model_boxes(box, 100, 80, True).tolist() == [
        pytest.approx([0.8, 0.375, 0.2, 0.25], abs=1e-6)
    ]
    assert box.tolist() == [[10, 20, 30, 40]]


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


def noise(side: int = 64) -> Image.Image:
    """Of little contrast, so that every operation but Identity changes it."""
    pixels = np.random.default_rng(0).integers(40, 140, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_normalised_as_torchvision_does() -> None:
    from torchvision.transforms import functional as tv

    image = noise()
    expected = tv.normalize(
        tv.to_tensor(image),
        [0.48145466, 0.4578275, 0.40821073],
        [0.26862954, 0.26130258, 0.27577711],
    )
    assert np.abs(normalise(to_pixels(image)) - expected.numpy()).max() < 1e-5


def test_eval_pixels_are_the_whole_image() -> None:
    pixels = eval_pixels(drawn(200, 100, (100, 0, 200, 100)), 64)
    assert pixels.shape == (3, 64, 64)
    assert pixels[:, :, 36:].min() > 250
    assert pixels[:, :, :28].max() < 5


def test_the_operations_are_the_papers() -> None:
    assert set(COLOUR) | set(GEOMETRIC) == {
        "Identity",
        "AutoContrast",
        "Equalize",
        "Brightness",
        "Sharpness",
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
        "Rotate",
    }


def test_without_geometry_nothing_moves() -> None:
    image = drawn(64, 64, (20, 10, 50, 40))
    for seed in range(200):
        out = rand_augment(
            image,
            np.random.default_rng(seed),
            count=2,
            magnitude=7,
            prob=1.0,
            geometric=False,
        )
        assert found(out) == (20, 10, 50, 40)


@pytest.mark.parametrize("name", sorted(GEOMETRIC))
def test_geometric_operations_move_pixels_both_ways(name: str) -> None:
    image = drawn(224, 224, (100, 40, 124, 60))
    there = found(GEOMETRIC[name](image, 0.7, 1.0), 0.75)  # the fill is grey
    back = found(GEOMETRIC[name](image, 0.7, -1.0), 0.75)
    assert there != back
    if name.startswith("Translate"):
        axis = 0 if name.endswith("X") else 1
        assert abs(there[axis] - back[axis]) == pytest.approx(14, abs=1.1)


def test_brightness_and_sharpness_follow_the_magnitude() -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    assert COLOUR["Brightness"](grey, 0.7, 1.0).getpixel((0, 0)) == (136, 136, 136)
    assert COLOUR["Brightness"](grey, 0.5, 1.0).getpixel((0, 0)) == (100, 100, 100)


def test_rand_augment_is_a_function_of_its_generator_and_can_be_off() -> None:
    def run(seed: int, count: int = 2) -> bytes:
        return rand_augment(
            noise(),
            np.random.default_rng(seed),
            count=count,
            magnitude=7,
            prob=0.5,
            geometric=True,
        ).tobytes()

    assert run(3) == run(3)
    assert len({run(seed) for seed in range(30)}) > 5
    assert run(3, count=0) == noise().tobytes()
    # Two operations at one half each: a quarter of the images stays, and some drawn are identity.
    same = sum(run(seed) == noise().tobytes() for seed in range(400)) / 400
    assert abs(same - (0.5 + 0.5 / 10) ** 2) < 0.08
