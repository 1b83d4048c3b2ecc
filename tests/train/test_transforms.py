from __future__ import annotations

import io
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from tests.shared import shared_path
from xvlm_data.images.decode import ImageError, Limits, load_row_image
from xvlm_train.data.augment import (
    COLOUR,
    GEOMETRIC,
    OPERATIONS,
    Pixels,
    draw_operations,
    rand_augment,
)
from xvlm_train.data.augment_device import rand_augment_batch
from xvlm_train.data.pixels import Picture, Way
from xvlm_train.data.transforms import (
    crop_around,
    crop_box,
    eval_pixels,
    normalise,
    patch_mask,
    random_resized_crop,
    to_model_boxes,
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


def stored(image: Image.Image, kind: str) -> dict[str, object]:
    """The ``image`` cell of a row; JPEG without colour subsampling, so that edges stay sharp."""
    buffer = io.BytesIO()
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


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
    picture = Picture(stored(drawn(width, height, box), kind), width, height, way)
    assert picture.size == (width, height)
    crop = crop_around(np.random.default_rng(seed), corners, width, height)
    crop = picture.aligned(crop, side)
    moved = crop_box(corners, crop)
    assert moved is not None
    crop_width, crop_height = crop[2] - crop[0], crop[3] - crop[1]
    pixels = picture.square(crop, side)
    assert pixels.shape == (side, side, 3)
    image = Image.fromarray(pixels[:, ::-1].copy() if flip else pixels)
    ((cx, cy, w, h),) = to_model_boxes([moved], crop_width, crop_height, flip) * side
    # Pixels are whole: half of one at either end, and as much of the source's when enlarged.
    slack = 0.5 + 0.5 * max(side / crop_width, side / crop_height, 1)
    if min(w, h) < 2:  # too thin to reach half of the brightness
        return
    expected = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    assert found(image) == pytest.approx(expected, abs=slack)


# Pixels


def photograph(width: int = 320, height: int = 240) -> Image.Image:
    """Smooth, with some texture and an edge."""
    rng = np.random.default_rng(7)
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image).astype(np.int64) + rng.integers(-8, 9, (height, width, 1))
    pixels[:, width // 3] = 255
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("crop", [(0, 0, 320, 240), (31, 17, 290, 201), (100, 50, 180, 90)])
def test_the_exact_way_is_pillows_and_the_fast_one_within_a_step_or_two_of_it(
    crop: tuple[int, int, int, int],
) -> None:
    cell = stored(photograph(), "JPEG")
    cut = load_row_image(cell, 320, 240).crop(crop)
    expected = np.asarray(cut.resize((200, 200), Image.Resampling.BICUBIC)).astype(int)
    assert (Picture(cell, 320, 240, "exact").square(crop, 200) == expected).all()
    fast = np.abs(Picture(cell, 320, 240, "fast").square(crop, 200) - expected)
    assert fast.max() <= 6
    assert fast.mean() < 0.3


def test_large_crops_are_decoded_at_a_fraction_and_look_the_same() -> None:
    image = photograph(801, 605)
    cell = stored(image, "JPEG")
    seen = []
    for side, scale in [(300, 2), (150, 4), (75, 8), (302, 1)]:
        picture = Picture(cell, 801, 605, "fast")
        crop = picture.aligned((3, 1, 640, 603), side)
        assert crop[0] <= 3 and crop[1] <= 1 and crop[2] >= 640 and crop[3] >= 603
        assert all(edge % scale == 0 for edge in crop)
        assert max(3 - crop[0], 1 - crop[1], crop[2] - 640, crop[3] - 603) < scale
        exact = Picture(cell, 801, 605, "exact").square(crop, side).astype(int)
        seen.append(np.abs(picture.square(crop, side)[2:-2, 2:-2] - exact[2:-2, 2:-2]).mean())
    assert max(seen) < 4  # of 255; a shift of one pixel gives several times as much
    shifted = np.abs(np.roll(exact, 1, axis=1) - exact).mean()
    assert shifted > 2 * max(seen)


def test_what_is_no_plain_jpeg_goes_pillows_way() -> None:
    image = photograph(90, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=98, subsampling=0, exif=exif)
    turned = {"bytes": buffer.getvalue(), "path": None}
    for cell, size in [
        (turned, (60, 90)),  # annotated as seen
        (turned, (90, 60)),  # annotated as stored
        (stored(image.convert("CMYK"), "JPEG"), (90, 60)),
        (stored(image.convert("L"), "JPEG"), (90, 60)),
        (stored(image.convert("P"), "PNG"), (90, 60)),
        (stored(image, "WEBP"), (0, 0)),
        (turned, (0, 0)),
    ]:
        fast, exact = (Picture(cell, *size, way) for way in ("fast", "exact"))
        assert fast.size == exact.size == (size if size[0] else exact.size)
        crop = (0, 0, *fast.size)
        assert np.abs(fast.square(crop, 40).astype(int) - exact.square(crop, 40)).max() <= 6
    assert Picture(turned, 0, 0).size == (60, 90)


def test_broken_images_are_judged_as_building_judges_them() -> None:
    whole = stored(photograph(), "JPEG")["bytes"]
    assert isinstance(whole, bytes)

    def reason(data: bytes, size: tuple[int, int] = (320, 240), limit: int = 10**6) -> str:
        with pytest.raises(ImageError) as caught:
            picture = Picture(
                {"bytes": data, "path": None}, *size, "fast", Limits(max_pixels=limit)
            )
            picture.square((0, 0, 320, 240), 100)
        return caught.value.reason

    assert reason(whole[: len(whole) // 2]) == "corrupt_image"
    assert reason(whole[:20]) == "not_an_image"
    assert reason(b"") == "empty_image"
    assert reason(whole, (321, 240)) == "size_mismatch"
    assert reason(whole, limit=1000) == "too_many_pixels"
    # Bytes between segments make libjpeg warn; Pillow shows the picture, and so do we.
    odd = whole[:2] + whole[2:20] + b"\x00\x00" + whole[20:]
    expected = load_row_image({"bytes": odd, "path": None}, 320, 240)
    pixels = Picture({"bytes": odd, "path": None}, 320, 240).square((0, 0, 320, 240), 100)
    small = np.asarray(expected.resize((100, 100), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels - small).max() <= 6


def test_real_photographs_decode_to_the_same_pixels_either_way() -> None:
    for path in sorted(shared_path("fixtures/coco/val2017").glob("*.jpg"))[:8]:
        cell = {"bytes": None, "path": str(path)}
        size = Image.open(path).size
        crop = (5, 7, size[0] - 3, size[1] - 11)
        fast, exact = (Picture(cell, *size, way).square(crop, 380) for way in ("fast", "exact"))
        difference = np.abs(fast.astype(int) - exact)
        assert difference.max() <= 8
        assert difference.mean() < 0.3


@settings(max_examples=300)
@given(scene=scenes(), seed=st.integers(0, 2**32), shift=st.floats(-0.4, 0.4))
def test_the_crop_holds_the_whole_box_and_lies_in_the_image(
    scene: tuple[int, int, tuple[int, int, int, int]], seed: int, shift: float
) -> None:
    width, height, box = scene
    a, b, c, d = np.clip(np.array(box) + shift, 0, [width, height, width, height]).tolist()
    corners = (a, b, c, d)
    x0, y0, x1, y1 = crop_around(np.random.default_rng(seed), corners, width, height)
    assert 0 <= x0 <= corners[0]
    assert 0 <= y0 <= corners[1]
    assert corners[2] <= x1 <= width
    assert corners[3] <= y1 <= height


def test_crops_around_a_box_reach_every_place_they_may() -> None:
    crops = {crop_around(np.random.default_rng(i), (2.0, 1.0, 5.0, 4.0), 6, 5) for i in range(2000)}
    assert len(crops) == 3 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("cut", "kept"), [(0, True), (49, True), (50, False), (51, False), (100, False)]
)
def test_a_box_stays_when_more_than_half_of_it_does(cut: int, kept: bool) -> None:
    # A box 100 wide, of which the crop cuts `cut` pixels off at the left.
    moved = crop_box((20.0, 10.0, 120.0, 60.0), (20 + cut, 0, 200, 100))
    assert moved == ((0, 10, 100 - cut, 60) if kept else None)


def test_half_is_measured_by_area_and_what_stays_is_clipped() -> None:
    crop = (25, 25, 200, 200)
    assert crop_box((0, 0, 100, 100), crop) == (0, 0, 75, 75)  # 0.75 * 0.75 = 0.56
    assert crop_box((60, 60, 80, 80), crop) == (35, 35, 55, 55)
    assert crop_box((0, 0, 10, 10), crop) is None
    assert crop_box((0, 0, 100, 100), (30, 30, 200, 200)) is None  # 0.49
    assert crop_box((50, 50, 50, 60), crop) is None  # no area


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
    found_box = crop_box((float(box[0]), float(box[1]), float(box[2]), float(box[3])), cut)
    assert (found_box is not None) == (inside.sum() > 0.5 * mask.sum())
    if found_box is None:
        return
    height, width = inside.shape
    rows, columns = np.nonzero(inside[:, ::-1] if flip else inside)
    expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    ((cx, cy, w, h),) = to_model_boxes([found_box], width, height, flip).astype(np.float64)
    got = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    assert got * [width, height, width, height] == pytest.approx(expected, abs=1e-3)


def test_model_boxes_of_a_known_case() -> None:
    box = (10.0, 20.0, 30.0, 40.0)
    assert (
        to_model_boxes([box, box], 100, 80, False).tolist()
        == [pytest.approx([0.2, 0.375, 0.2, 0.25], abs=1e-6)] * 2
    )
    assert to_model_boxes([box], 100, 80, True).tolist() == [
        pytest.approx([0.8, 0.375, 0.2, 0.25], abs=1e-6)
    ]
    assert to_model_boxes([], 100, 80, True).shape == (0, 4)


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


def noise(side: int = 64) -> Pixels:
    """Of little contrast, so that every operation but Identity changes it."""
    return np.random.default_rng(0).integers(40, 140, (side, side, 3), dtype=np.uint8)


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
    image = np.asarray(drawn(64, 64, (20, 10, 50, 40)))
    for seed in range(200):
        rng = np.random.default_rng(seed)
        operations = draw_operations(rng, count=2, prob=1.0, geometric=False)
        assert len(operations) == 2
        assert found(Image.fromarray(rand_augment(image, operations, 7))) == (20, 10, 50, 40)


@pytest.mark.parametrize("name", sorted(GEOMETRIC))
def test_geometric_operations_move_pixels_both_ways(name: str) -> None:
    image = np.asarray(drawn(224, 224, (100, 40, 124, 60)))
    there, back = (
        found(Image.fromarray(GEOMETRIC[name](image, 0.7, sign)), 0.75) for sign in (1, -1)
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
