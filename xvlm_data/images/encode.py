"""Encoding images once, small enough to train from: JPEG of a given shortest side.

Training at 224² from originals spends most of its time on decoding pixels that are then thrown
away. What is written here depends on the input and the options alone (and on Pillow's libjpeg),
so builds stay reproducible.
"""

from __future__ import annotations

import io
import warnings
from contextlib import suppress

from PIL import Image, ImageCms

from xvlm_data.images.decode import DEFAULT_LIMITS, FORMATS, Limits, decode, header_size

_ORIENTATION = 0x0112
_SRGB = ImageCms.createProfile("sRGB")
#: Decoding by JPEG's own scaling leaves this much for the good filter to do.
_REDUCING_GAP = 2
#: What one side of a JPEG can be.
_LONGEST_SIDE = 65_500


def reencode(
    data: bytes,
    *,
    size: tuple[int, int] | None = None,
    apply_exif: bool = False,
    shortest_side: int,
    quality: int,
    limits: Limits = DEFAULT_LIMITS,
    name: str | None = None,
) -> tuple[bytes, tuple[int, int]]:
    """An image as JPEG whose shortest side is at most ``shortest_side``; never larger than it was.

    A plain JPEG that is small enough already, and need not be turned, is handed back as it is, byte
    for byte. Everything else is turned by its EXIF orientation (as :func:`decode` has it), brought
    to sRGB by its colour profile, and written without metadata.

    Args:
        data: the encoded bytes.
        size: the (width, height) that annotations refer to, before it is made smaller.
        apply_exif: without ``size``: turn by EXIF orientation.
        shortest_side: pixels.
        quality: of the JPEG, 1 to 100.
        limits: what the image may cost.
        name: what to call it in errors.

    Returns:
        The bytes, and the (width, height) of the picture in them, as it is to be seen.

    Raises:
        ImageError: as :func:`decode`.
    """
    header = _open(data)
    as_it_is = header is not None and _is_plain(header, size, apply_exif, shortest_side)
    image = decode(
        data,
        size=size,
        apply_exif=apply_exif,
        limits=limits,
        name=name,
        at_least=None if as_it_is else shortest_side * _REDUCING_GAP,
    )
    if header is None or as_it_is:
        return data, image.size
    # What was decoded may be a fraction of the picture; its own size is in the header.
    full = size or (header_size(data, name or "image") if apply_exif else header.size)
    target = _target_size(full, shortest_side)
    image = _to_srgb(image)
    if image.size != target:
        # As good as bicubic for making smaller, by Pillow's own table, in little more than half
        # the time; the filter is as wide as the scale asks for, so there is no aliasing.
        image = image.resize(target, Image.Resampling.HAMMING)
    buffer = io.BytesIO()
    # `image.info` of the original would travel into the file: comments, EXIF, profile.
    image.info = {}
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue(), target


def _open(data: bytes) -> Image.Image | None:
    """The header alone; None where there is none, which :func:`decode` tells properly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(Exception):
            return Image.open(io.BytesIO(data), formats=FORMATS)
    return None


def _is_plain(
    image: Image.Image, size: tuple[int, int] | None, apply_exif: bool, shortest_side: int
) -> bool:
    """Whether every reader will see the right picture in its bytes, and a small one."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return False
    if min(image.size) > shortest_side:
        return False
    try:
        upright = image.getexif().get(_ORIENTATION, 1) in (0, 1)
    except Exception:  # damaged EXIF turns nothing
        upright = True
    return upright or (image.size == size if size is not None else not apply_exif)


def _target_size(size: tuple[int, int], shortest_side: int) -> tuple[int, int]:
    shortest, longest = sorted(size)
    side = min(shortest_side, shortest)
    if longest * side > _LONGEST_SIDE * shortest:
        side = max(1, _LONGEST_SIDE * shortest // longest)
    if side == shortest:
        return size
    width, height = (max(1, round(length * side / shortest)) for length in size)
    return width, height


def _to_srgb(image: Image.Image) -> Image.Image:
    """Colours by the picture's own profile; a profile that is damaged or of CMYK says nothing."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    with suppress(Exception):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB" or _is_srgb(source):
            return image
        converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
        if converted is not None:
            return converted
    return image


def _is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    return "srgb" in (profile.profile.profile_description or "").lower()
