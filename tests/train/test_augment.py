from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from tests.train.small_images import box_in, noise, photograph, with_box
from xvlm_train.data.augment import (
    COLOUR,
    GEOMETRIC,
    OPERATIONS,
    draw_operations,
    rand_augment,
)
from xvlm_train.data.augment_device import rand_augment_batch


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
    image = np.asarray(with_box(64, 64, (20, 10, 50, 40)))
    for seed in range(200):
        rng = np.random.default_rng(seed)
        operations = draw_operations(rng, count=2, prob=1.0, geometric=False)
        assert len(operations) == 2
        assert box_in(Image.fromarray(rand_augment(image, operations, 7))) == (20, 10, 50, 40)


@pytest.mark.parametrize("name", sorted(GEOMETRIC))
def test_geometric_operations_move_pixels_both_ways(name: str) -> None:
    image = np.asarray(with_box(224, 224, (100, 40, 124, 60)))
    there, back = (
        box_in(Image.fromarray(GEOMETRIC[name](image, 0.7, sign)), 0.75) for sign in (1, -1)
    )  # the fill is grey
    assert there != back
    if name.startswith("Translate"):
        axis = 0 if name.endswith("X") else 1
        assert abs(there[axis] - back[axis]) == pytest.approx(14, abs=1.1)


#: Of a strength and a sign, the coefficients by which Pillow finds the source of each pixel.
AFFINE = {
    "ShearX": lambda m, sign: (1, -sign * 0.3 * m, 0, 0, 1, 0),
    "ShearY": lambda m, sign: (1, 0, 0, -sign * 0.3 * m, 1, 0),
    "TranslateX": lambda m, sign: (1, 0, -sign * 10 * m, 0, 1, 0),
    "TranslateY": lambda m, sign: (1, 0, 0, 0, 1, -sign * 10 * m),
}


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"Identity"}))
@pytest.mark.parametrize("sign", [-1, 1])
def test_operations_do_what_pillows_do(name: str, sign: int) -> None:
    image = np.asarray(photograph(224, 224)) // 2 + 40
    out = OPERATIONS[name](image, 0.7, sign)
    assert out.shape == image.shape
    pillow = Image.fromarray(image)
    if name in AFFINE:
        coefficients = AFFINE[name](0.7, sign)
        expected = pillow.transform(
            (224, 224),
            Image.Transform.AFFINE,
            coefficients,
            Image.Resampling.BILINEAR,
            fillcolor=(128, 128, 128),
        )
    elif name == "Rotate":
        expected = pillow.rotate(sign * 21, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    elif name in ("Brightness", "Sharpness"):
        expected = getattr(ImageEnhance, name)(pillow).enhance(1.8 * 0.7 + 0.1)
    else:
        expected = getattr(ImageOps, name.lower())(pillow)
    difference = np.abs(out.astype(int) - np.asarray(expected))
    exact = name in ("AutoContrast", "Equalize", "Brightness")
    # Pixels at the edge of what was moved, and rounding of what was interpolated, may differ.
    assert difference.mean() <= (0 if exact else 2.5)
    assert not (image == out).all()
    if name == "Sharpness":
        assert difference.max() <= 1


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_flat_images_survive_every_operation(name: str) -> None:
    grey = np.full((16, 16, 3), 128, dtype=np.uint8)
    out = OPERATIONS[name](grey, 0.5, 1)  # a strength of one half neither brightens nor sharpens
    assert np.abs(out.astype(int) - 128).max() <= 1


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("sign", [-1, 1])
def test_operations_on_the_device_do_what_those_on_the_host_do(name: str, sign: int) -> None:
    image = np.asarray(photograph(120, 120)) // 2 + 40
    other = np.full_like(image, 90)
    batch = torch.from_numpy(np.stack([image, other, image])).permute(0, 3, 1, 2)
    drawn = [[("Brightness", 1), (name, sign)], [], [(name, sign)]]
    out = rand_augment_batch(batch, drawn, 7).permute(0, 2, 3, 1).numpy()
    assert (out[1] == 90).all()
    for found, operations in zip(out, drawn, strict=True):
        source = other if not operations else image
        difference = np.abs(found - rand_augment(source, operations, 7).astype(float))
        if name in ("Identity", "AutoContrast", "Equalize", "Brightness"):
            assert not difference.any()
        else:
            # OpenCV interpolates in steps of a 32nd of a pixel.
            assert difference.mean() < 0.5
            assert (difference > 3).mean() < 0.02


def test_brightness_follows_the_magnitude() -> None:
    grey = np.full((8, 8, 3), 100, dtype=np.uint8)
    assert (COLOUR["Brightness"](grey, 0.7, 1) == 136).all()
    assert (COLOUR["Brightness"](grey, 0.5, 1) == 100).all()


def test_rand_augment_is_a_function_of_its_generator_and_can_be_off() -> None:
    def run(seed: int, count: int = 2) -> bytes:
        rng = np.random.default_rng(seed)
        operations = draw_operations(rng, count=count, prob=0.5, geometric=True)
        return rand_augment(noise(), operations, 7).tobytes()

    assert run(3) == run(3)
    assert len({run(seed) for seed in range(30)}) > 5
    assert run(3, count=0) == noise().tobytes()
    # Two operations at one half each: a quarter of the images stays, and some drawn are identity.
    same = sum(run(seed) == noise().tobytes() for seed in range(400)) / 400
    assert abs(same - (0.5 + 0.5 / 10) ** 2) < 0.08
