"""Images as the web serves them: what is accepted, how it is turned, what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tests.data.raw_releases import (
    build_all,
    caption,
    coco_image,
    jpeg,
    write_coco,
    write_image,
    write_json,
)
from xvlm_data.images.decode import ImageError, Limits, decode, load_row_image, row_bytes


def encoded(image: Image.Image, kind: str, **save: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **save)
    return data.getvalue()


NOISE = encoded(
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)), "JPEG"
)


def with_orientation(value: int, size: tuple[int, int] = (60, 40)) -> bytes:
    """A picture whose stored left half is red and right half blue."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(image, "JPEG", exif=exif, quality=95)


def build_one(
    tmp_path: Path, data: bytes | None, size: tuple[int, int] = (100, 80), **options: Any
):
    root = write_coco(
        tmp_path / "raw",
        images=[coco_image(1, *size)],
        captions=[caption(1, 1, "it")],
        write_images=False,
    )
    if data is not None:
        write_image(root / "train2017/000000000001.jpg", data)
    return build_all("coco", root, tmp_path / "out", **options)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims any size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "missing_image"),
        (b"", "empty_image"),
        (b"<html>not found</html>", "not_an_image"),
        (NOISE[: len(NOISE) * 3 // 4], "corrupt_image"),
        (jpeg(90, 80), "size_mismatch"),
        (png_header(60_000, 60_000), "too_many_pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
    ],
)
def test_broken_images_are_rejected_with_their_annotations(
    tmp_path: Path, data: bytes | None, reason: str
) -> None:
    summary, rows, rejects = build_one(tmp_path, data)
    assert rows == []
    assert {(r["kind"], r["reason"]) for r in rejects} == {("image", reason), ("caption", reason)}
    image = next(r for r in rejects if r["kind"] == "image")
    assert "000000000001.jpg" in image["message"]
    assert summary["counts"]["captions"]["rejected"] == {reason: 1}


def test_size_limits_are_flags(tmp_path: Path) -> None:
    for limits, reason in (
        (Limits(max_pixels=7999), "too_many_pixels"),
        (Limits(max_bytes=100), "image_too_big"),
    ):
        _, rows, rejects = build_one(tmp_path, jpeg(), limits=limits)
        assert rows == []
        assert rejects[0]["reason"] == reason


def test_without_checking_images_only_their_presence_counts(tmp_path: Path) -> None:
    _, rows, _ = build_one(tmp_path, jpeg()[:200], check="find")
    assert len(rows) == 1
    _, rows, rejects = build_one(tmp_path / "b", None, check="find")
    assert rows == []
    assert rejects[0]["reason"] == "missing_image"


def test_the_annotated_size_decides_the_orientation(tmp_path: Path) -> None:
    sideways = with_orientation(6)  # stored 60x40, shown 40x60
    # Annotated as stored: the picture stays as it is stored.
    _, rows, _ = build_one(tmp_path / "a", sideways, (60, 40))
    image = load_row_image(rows[0]["image"], rows[0]["width"], rows[0]["height"])
    assert image.size == (60, 40)
    assert image.getpixel((5, 20))[0] > 200
    # Annotated as shown: it is turned; the stored left is now on top.
    _, rows, _ = build_one(tmp_path / "b", sideways, (40, 60))
    image = load_row_image(rows[0]["image"], rows[0]["width"], rows[0]["height"])
    assert image.size == (40, 60)
    assert image.getpixel((20, 5))[0] > 200
    assert image.getpixel((20, 55))[2] > 200
    # Neither: rejected.
    _, rows, rejects = build_one(tmp_path / "c", sideways, (50, 50))
    assert rejects[0]["reason"] == "size_mismatch"


def test_swapped_sides_without_exif_are_a_mismatch(tmp_path: Path) -> None:
    _, _, rejects = build_one(tmp_path, jpeg(80, 100), (100, 80))
    assert rejects[0]["reason"] == "size_mismatch"


def test_caption_only_sources_apply_the_orientation(tmp_path: Path) -> None:
    url = "http://static.flickr.com/1/2_a.jpg"
    columns = {"image_urls": [url], "user_ids": ["x"], "captions": ["a picture"]}
    write_json(tmp_path / "raw/sbu-captions-all.json", columns)
    write_image(tmp_path / "raw/images/2_a.jpg", with_orientation(6))
    for check in ("decode", "find"):
        _, rows, _ = build_all(
            "sbu", tmp_path / "raw", tmp_path / "out", check=check, images="embed"
        )
        assert (rows[0]["width"], rows[0]["height"]) == (40, 60)
        image = load_row_image(rows[0]["image"], 40, 60)
        assert image.getpixel((20, 5))[0] > 200


def test_embedded_bytes_are_the_files_own(tmp_path: Path) -> None:
    data = with_orientation(1, (100, 80))
    _, rows, _ = build_one(tmp_path, data, images="embed")
    assert rows[0]["image"] == {"bytes": data, "path": "train2017/000000000001.jpg"}


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("L", (8, 8), 90), "JPEG", (90, 90, 90)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("RGB", (8, 8), (0, 128, 255)).quantize(4), "PNG", (0, 128, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("LA", (8, 8), (0, 255)), "PNG", (0, 0, 0)),
        (Image.new("1", (8, 8), 1), "PNG", (255, 255, 255)),
        (Image.fromarray(np.full((8, 8), 32896, np.uint16)), "PNG", (128, 128, 128)),
        (Image.new("RGB", (8, 8), (10, 20, 30)), "WEBP", (10, 20, 30)),
        (Image.new("RGB", (8, 8), (10, 20, 30)), "TIFF", (10, 20, 30)),
    ],
)
def test_exotic_modes_become_rgb(
    image: Image.Image, kind: str, expected: tuple[int, int, int]
) -> None:
    decoded = decode(encoded(image, kind))
    assert decoded.mode == "RGB"
    # JPEG and WebP are lossy, CMYK goes through a colour transform.
    assert np.abs(np.subtract(decoded.getpixel((4, 4)), expected)).max() <= 6


def test_animations_give_their_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((4, 4)) == (255, 0, 0)


def test_paths_never_leave_the_image_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "secret.jpg")
    for name in ("../../secret.jpg", str(tmp_path / "secret.jpg"), "a/../../../secret.jpg"):
        images = [coco_image(1) | {"file_name": name}]
        root = write_coco(tmp_path / "raw", images=images, write_images=False)
        (root / "train2017").mkdir(exist_ok=True)
        _, rows, rejects = build_all("coco", root, tmp_path / "out")
        assert rows == []
        assert rejects[0]["reason"] in ("unsafe_path", "missing_image")
        assert not any("secret" in str(r["image"]) for r in rows)


@pytest.mark.parametrize(
    "path",
    [
        "simplecache::http://127.0.0.1:1/x.jpg",
        "memory://a::https://127.0.0.1:1/x.jpg",
        "ftp://127.0.0.1:1/x.jpg",
        "sftp://127.0.0.1:1/x.jpg",
        "hdfs://127.0.0.1:1/x.jpg",
        "github://a:b@/x.jpg",
    ],
)
def test_a_manifest_cannot_have_other_hosts_asked(path: str) -> None:
    with pytest.raises(ImageError, match="images are read from files and object stores"):
        row_bytes({"bytes": None, "path": path})


def test_images_may_lie_in_stores_that_fsspec_is_taught() -> None:
    class Own(MemoryFileSystem):
        protocol = "own-store"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(super()._strip_protocol(path.replace("own-store://", "memory://", 1)))

    fsspec.register_implementation("own-store", Own, clobber=True)
    with fsspec.open("memory://own/x.jpg", "wb") as file:
        file.write(jpeg())
    for path in ("memory://own/x.jpg", "own-store://own/x.jpg"):
        assert row_bytes({"bytes": None, "path": path}) == jpeg()


def test_any_bytes_give_an_image_or_an_image_error() -> None:
    good = bytearray(with_orientation(6))
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = good.copy()
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(256)
        try:
            assert decode(bytes(data)).mode == "RGB"
        except ImageError as error:
            assert error.reason in ("not_an_image", "corrupt_image", "too_many_pixels")
