from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.shared import shared_path
from tests.train.small_images import photograph, stored
from xvlm_data.images.decode import ImageError, Limits, load_row_image
from xvlm_train.data.pixels import Picture


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
