"""Evaluation sets and manifests with planted leaks, for tests of the search."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.raw_releases import (
    build_all,
    caption,
    coco_image,
    region,
    vg_image,
    write_coco,
    write_image,
    write_json,
    write_vg,
)


def scene(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A picture with the spectrum of photographs: amplitude falls as 1 / frequency."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    frequency = np.maximum(np.hypot(fy, fx), 1 / max(width, height))
    noise = rng.standard_normal((3, height, width)) + 1j * rng.standard_normal((3, height, width))
    channels = np.fft.ifft2(noise / frequency).real
    channels = (channels - channels.mean()) / channels.std() * 50 + 128
    return Image.fromarray(channels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def encoded(image: Image.Image, quality: int = 90, kind: str = "JPEG", **save: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **({"quality": quality} if kind == "JPEG" else {}), **save)
    return data.getvalue()


def with_comment(jpeg: bytes) -> bytes:
    """The same compressed picture with another comment segment."""
    comment = b"\xff\xfe\x00\x08hello!"
    return jpeg[:2] + comment + jpeg[2:]


def coco_with_pictures(root: Path, pictures: dict[int, bytes], split: str) -> Path:
    """A COCO release whose images are the given ones, each with a caption."""
    images = []
    for number, data in pictures.items():
        width, height = Image.open(io.BytesIO(data)).size
        images.append(coco_image(number, width, height))
    captions = [caption(number, number, f"text {number}") for number in pictures]
    write_coco(root, images=images, captions=captions, split=split, write_images=False)
    for image in images:
        write_image(root / split / image["file_name"], pictures[image["id"]])
    return root


def vg_with_pictures(root: Path, pictures: dict[int, bytes], **ids: dict[int, int]) -> Path:
    """A VG release; ``coco`` and ``flickr`` give ids by VG id."""
    images = []
    for number, data in pictures.items():
        width, height = Image.open(io.BytesIO(data)).size
        known = {f"{kind}_id": of[number] for kind, of in ids.items() if number in of}
        images.append(vg_image(number) | {"width": width, "height": height} | known)
    write_vg(root, {number: [region(number, "a thing")] for number in pictures}, images=images)
    for number, data in pictures.items():
        write_image(root / f"VG_100K/{number}.jpg", data)
    return root


def sbu_with_pictures(root: Path, pictures: dict[str, bytes]) -> Path:
    """An SBU release with the given last parts of URLs."""
    write_json(
        root / "sbu-captions-all.json",
        {
            "image_urls": [f"http://static.flickr.com/1/{name}" for name in pictures],
            "captions": ["a photo" for _ in pictures],
            "user_ids": ["x" for _ in pictures],
        },
    )
    for name, data in pictures.items():
        write_image(root / "images" / name, data)
    return root


def build(source: str, root: Path, out: Path, **options: Any) -> str:
    build_all(source, root, out, **options)
    return str(out)
