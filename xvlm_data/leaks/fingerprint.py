"""What an image is, by content: its bytes, its pixels, and how it looks."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Collection
from dataclasses import dataclass

from PIL import Image, ImageOps

from xvlm_data.images.decode import (
    DEFAULT_LIMITS,
    FORMATS,
    ImageError,
    Limits,
    decode,
    header_size,
)
from xvlm_data.leaks.perceptual import perceptual_hash

_ORIENTATION = 0x0112

Sides = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of one image.

    Attributes:
        data: SHA-256 of the encoded bytes.
        sides: (shorter, longer) side in pixels; None where they were not asked for.
        pixels: SHA-256 of the decoded pixels, as stored and, where EXIF turns them, as shown.
        looks: perceptual hashes of the same; empty for plain pictures.
        plain: whether the picture is too plain for a perceptual hash.
    """

    data: bytes
    sides: Sides | None = None
    pixels: tuple[bytes, ...] = ()
    looks: tuple[int, ...] = ()
    plain: bool = False


@dataclass(frozen=True)
class Wanted:
    """What to compute of an image.

    Attributes:
        pixels: hash the decoded pixels.
        looks: compute perceptual hashes.
        sides: decode for ``pixels`` only images of these sides; None for all. Pictures of other
            sides cannot have the same pixels, and most are.
        limits: what an image may cost.
    """

    pixels: bool = True
    looks: bool = False
    sides: Collection[Sides] | None = None
    limits: Limits = DEFAULT_LIMITS


def fingerprint(
    data: bytes, name: str, wanted: Wanted, *, picture: Image.Image | None = None
) -> Fingerprint:
    """Compute what is wanted.

    Args:
        data: the encoded image.
        name: what to call it in errors.
        wanted: what to compute.
        picture: the image as :func:`decode` gave it, where that has been done.

    Raises:
        ImageError: the bytes are no acceptable image. With neither pixels nor looks wanted the
            bytes are not looked at.
    """
    digest = hashlib.sha256(data).digest()
    if not (wanted.pixels or wanted.looks):
        return Fingerprint(digest)
    width, height = header_size(data, name) if picture is None else picture.size
    sides = (min(width, height), max(width, height))
    hash_pixels = wanted.pixels and (wanted.sides is None or sides in wanted.sides)
    if not (hash_pixels or wanted.looks):
        return Fingerprint(digest, sides)
    pictures = _orientations(data, name, wanted.limits, picture)
    looks = [perceptual_hash(picture) for picture in pictures] if wanted.looks else []
    return Fingerprint(
        digest,
        sides,
        tuple(map(_hash_pixels, pictures)) if hash_pixels else (),
        tuple(look for look in looks if look is not None),
        plain=None in looks,
    )


def _orientations(
    data: bytes, name: str, limits: Limits, picture: Image.Image | None
) -> list[Image.Image]:
    """The picture as stored and, where EXIF says so, turned: copies may have lost the tag."""
    orientation = _orientation(data)
    if orientation == 1 and picture is not None:
        return [picture]
    # Whoever decoded it may have turned it or not; such pictures are few.
    stored = decode(data, limits=limits, name=name)
    if orientation == 1:
        return [stored]
    shown = stored.copy()
    shown.getexif()[_ORIENTATION] = orientation
    return [stored, ImageOps.exif_transpose(shown)]


def _orientation(data: bytes) -> int:
    """1 to 8, as EXIF has it; 1 where it has none, or nonsense."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = Image.open(io.BytesIO(data), formats=FORMATS).getexif().get(_ORIENTATION, 1)
        except Exception:  # damaged EXIF says nothing
            return 1
    return value if value in range(1, 9) else 1


def _hash_pixels(picture: Image.Image) -> bytes:
    digest = hashlib.sha256(b"%dx%d " % picture.size)
    digest.update(picture.tobytes())
    return digest.digest()


__all__ = ["Fingerprint", "ImageError", "Sides", "Wanted", "fingerprint"]
