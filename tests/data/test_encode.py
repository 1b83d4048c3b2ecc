"""Images made smaller once, for training."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.data.hostile_server import picture
from xvlm_data.images.decode import ImageError, Limits, decode
from xvlm_data.images.encode import reencode


def scene(size: tuple[int, int]) -> Image.Image:
    """Smooth, so that JPEG and resampling change little."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    waves = [np.sin(3 * x + 2 * y), np.cos(4 * x), np.sin(5 * y)]
    return Image.fromarray(((np.stack(waves, -1) + 1) * 127).astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", **save: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **({"quality": 95} | save if form == "JPEG" else save))
    return buffer.getvalue()


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif)


def pixels(data: bytes) -> npt.NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64)


def error(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    return float(np.abs(one - other).mean())


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (1000, 300), (3000, 2000), (301, 299)])
def test_the_picture_stays_the_same(size: tuple[int, int]) -> None:
    data, found = reencode(encoded(scene(size)), shortest_side=100, quality=90)
    assert min(found) == 100
    assert max(found) == round(100 * max(size) / min(size))
    assert (found[0] > found[1]) == (size[0] > size[1])
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size, image.mode) == ("JPEG", found, "RGB")
    wanted = np.asarray(scene(size).resize(found, Image.Resampling.BOX), dtype=np.float64)
    assert error(pixels(data), wanted) < 2.5


def test_a_small_jpeg_is_not_touched() -> None:
    for data in (picture(1), encoded(scene((90, 70)).convert("L")), turned(scene((90, 70)), 1)):
        assert reencode(data, shortest_side=100, quality=10, apply_exif=True)[0] is data


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_become_jpeg_and_no_larger(form: str) -> None:
    data, size = reencode(encoded(scene((90, 70)), form), shortest_side=100, quality=90)
    assert size == (90, 70)
    assert Image.open(io.BytesIO(data)).format == "JPEG"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [50, 500])
def test_it_is_turned_as_it_is_to_be_seen(orientation: int, side: int) -> None:
    stored = turned(scene((300, 200)), orientation)
    data, size = reencode(stored, apply_exif=True, shortest_side=side, quality=95)
    seen = decode(stored, apply_exif=True)
    assert size == tuple(round(length * min(side, 200) / 200) for length in seen.size)
    again = Image.open(io.BytesIO(data))
    assert again.size == size
    assert again.getexif().get(0x0112, 1) == 1
    wanted = np.asarray(seen.resize(size, Image.Resampling.BOX), dtype=np.float64)
    assert error(pixels(data), wanted) < 2.5


def test_boxes_decide_whether_it_is_turned() -> None:
    stored = turned(scene((300, 200)), 6)
    assert reencode(stored, size=(300, 200), shortest_side=100, quality=90)[1] == (150, 100)
    assert reencode(stored, size=(200, 300), shortest_side=100, quality=90)[1] == (100, 150)
    # Not turned by its boxes, and small: nothing to do.
    assert reencode(stored, size=(300, 200), shortest_side=300, quality=90)[0] is stored
    with pytest.raises(ImageError) as caught:
        reencode(stored, size=(300, 201), shortest_side=100, quality=90)
    assert caught.value.reason == "size_mismatch"


def test_colours_follow_their_profile() -> None:
    """A profile with red and green exchanged: what is stored red is to be seen green."""
    swapped = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = swapped.index(b"rXYZ"), swapped.index(b"gXYZ")
    swapped[red : red + 4], swapped[green : green + 4] = b"gXYZ", b"rXYZ"
    description = swapped.index("sRGB".encode("utf-16-be"))
    swapped[description : description + 8] = "abcd".encode("utf-16-be")
    stored = encoded(Image.new("RGB", (60, 60), (250, 10, 10)), icc_profile=bytes(swapped))
    data, _ = reencode(stored, shortest_side=30, quality=95)
    red_, green_, blue = pixels(data)[15, 15]
    assert green_ > 230 and red_ < 40 and blue < 40
    assert "icc_profile" not in Image.open(io.BytesIO(data)).info


@pytest.mark.parametrize("profile", [b"", b"junk", bytes(200)])
def test_a_damaged_profile_says_nothing(profile: bytes) -> None:
    stored = encoded(scene((300, 200)), icc_profile=profile)
    plain = reencode(encoded(scene((300, 200))), shortest_side=100, quality=90)
    assert reencode(stored, shortest_side=100, quality=90) == plain


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "LA", "I;16"])
def test_every_mode(mode: str) -> None:
    form = "JPEG" if mode in ("L", "CMYK") else "PNG"
    image = scene((300, 200))
    if mode == "I;16":
        image = Image.fromarray(np.full((200, 300), 40_000, dtype=np.uint16))
    else:
        image = image.convert(mode)
    data, size = reencode(encoded(image, form), shortest_side=100, quality=90)
    assert size == (150, 100)
    full = decode(encoded(image, form)).resize(size, Image.Resampling.HAMMING)
    assert error(pixels(data), np.asarray(full, dtype=np.float64)) < 6


def test_metadata_does_not_travel() -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    stored = encoded(scene((300, 200)), exif=exif, comment=b"a comment")
    data, _ = reencode(stored, shortest_side=100, quality=90)
    assert b"where I live" not in data and b"a comment" not in data


def test_it_is_the_same_every_time() -> None:
    stored = encoded(scene((300, 200)), "PNG")
    assert len({reencode(stored, shortest_side=64, quality=80)[0] for _ in range(3)}) == 1


def test_quality_counts() -> None:
    stored = picture(1, (400, 300))
    low, high = (len(reencode(stored, shortest_side=200, quality=q)[0]) for q in (30, 95))
    assert low * 2 < high


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_image"),
        (b"<html>", "not_an_image"),
        (picture(1, (400, 300))[:-20_000], "corrupt_image"),
        (picture(1, (4000, 300)), "too_many_pixels"),
    ],
)
def test_bad_images(data: bytes, reason: str) -> None:
    limits = Limits(max_pixels=1_000_000)
    with pytest.raises(ImageError) as caught:
        reencode(data, shortest_side=64, quality=80, limits=limits)
    assert caught.value.reason == reason


@given(st.integers(1, 40), st.integers(1, 2000), st.integers(1, 60), st.booleans())
def test_sides(short: int, long: int, side: int, upright: bool) -> None:
    size = (short, long) if upright else (long, short)
    data, found = reencode(encoded(Image.new("RGB", size), "PNG"), shortest_side=side, quality=50)
    assert Image.open(io.BytesIO(data)).size == found
    assert min(found) == min(side, *size)
    assert all(1 <= a <= b for a, b in zip(found, size, strict=True))


def test_longer_than_a_jpeg_can_be() -> None:
    data, size = reencode(
        encoded(Image.new("RGB", (70_000, 20)), "PNG"), shortest_side=20, quality=50
    )
    assert Image.open(io.BytesIO(data)).size == size
    assert max(size) <= 65_535


def test_cut_anywhere_is_noticed() -> None:
    """JPEG decoded at a fraction of its size still reads all of its data."""
    stored = picture(3, (800, 600))
    for share in (0.3, 0.6, 0.9, 0.99):
        with pytest.raises(ImageError) as caught:
            reencode(stored[: int(len(stored) * share)], shortest_side=64, quality=80)
        assert caught.value.reason == "corrupt_image"
