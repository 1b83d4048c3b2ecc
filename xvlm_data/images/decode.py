"""Decoding images that nobody vouches for: limits first, pixels after.

Errors carry a reason code, because the same failure is a reject at build time and a counted,
replaced sample at training time.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from xvlm_data.errors import UserError
from xvlm_data.storage import is_local

#: Formats that web-scale image sets really hold (JPEG includes MPO). EPS, PDF and the like start
#: interpreters.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_ORIENTATION = 0x0112

# Pillow keeps a limit of its own in a global; ours is checked on the header, before any pixel.
Image.MAX_IMAGE_PIXELS = None


class ImageError(UserError):
    """An image that is not one, or not an acceptable one.

    Attributes:
        reason: a code of the rejects file: missing_image, empty_image, image_too_big,
            not_an_image, too_many_pixels, corrupt_image, size_mismatch, not_downloaded, leak.
    """

    def __init__(self, reason: str, what: str, fix: str | None = None) -> None:
        super().__init__(what, fix)
        self.reason = reason


@dataclass(frozen=True)
class Limits:
    """What an image may cost: bytes of the file, and pixels once decoded."""

    max_bytes: int = 64 << 20
    max_pixels: int = 100_000_000


DEFAULT_LIMITS = Limits()


def read_bytes(path: Path | str, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The content of an image file; a string names one of this machine.

    Raises:
        ImageError: missing_image, empty_image or image_too_big.
    """
    try:
        if isinstance(path, str) or is_local(path):
            data = _read_local(str(path), limits)
        else:
            with path.open("rb") as file:
                data = file.read(limits.max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("missing_image", f"{path}: no such file") from None
    except OSError as error:
        raise ImageError("missing_image", f"{path}: {error.strerror or error}") from error
    return checked_bytes(data, str(path), limits)


def _read_local(path: str, limits: Limits) -> bytes:
    # Without the layers above a file descriptor, which take longer than it takes to read.
    with io.FileIO(path) as file:
        # Asked for more than there is, Python would set aside all that memory first.
        wanted = min(os.fstat(file.fileno()).st_size, limits.max_bytes) + 1
        data: bytes = file.read(wanted)
        while len(data) < wanted and (more := file.read(wanted - len(data))):
            data += more
        return data


def checked_bytes(data: bytes, name: str, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """``data`` if it is neither empty nor too big; raises ImageError otherwise."""
    if not data:
        raise ImageError("empty_image", f"{name}: empty file")
    if len(data) > limits.max_bytes:
        raise ImageError("image_too_big", f"{name}: more than {limits.max_bytes >> 20} MiB")
    return data


def decode(
    data: bytes | Path,
    *,
    size: tuple[int, int] | None = None,
    apply_exif: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    name: str | None = None,
    at_least: int | None = None,
) -> Image.Image:
    """Decode to RGB, every pixel of it.

    Args:
        data: the encoded bytes, or a file.
        size: the (width, height) that annotations refer to. The picture is turned by its EXIF
            orientation only when that, and not the stored size, gives this size.
        apply_exif: without ``size``: turn by EXIF orientation (captions have no boxes to keep).
        limits: what the file and its pixels may cost.
        name: what to call the image in errors.
        at_least: for a caller that makes it smaller: the picture may come at a half, a quarter or
            an eighth of its size, as long as no side gets shorter than this. JPEG does so while
            it decodes, in a fraction of the time; all of the data is read nevertheless.

    Raises:
        ImageError: with its reason; never anything else, whatever the bytes.
    """
    if isinstance(data, Path):
        name = name or str(data)
        data = read_bytes(data, limits)
    name = name or "image"
    checked_bytes(data, name, limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged EXIF, which we survive
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Exception as error:
            raise ImageError("not_an_image", f"{name}: not an image ({_brief(error)})") from error
        width, height = image.size
        if width * height > limits.max_pixels:
            raise ImageError("too_many_pixels", f"{name}: {width}x{height} pixels")
        try:
            turn = _must_turn(image, size, apply_exif, name)
            if at_least is not None and image.format == "JPEG":
                _shrink_on_load(image, at_least)
            image.load()
            return to_rgb(ImageOps.exif_transpose(image) if turn else image)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError("corrupt_image", f"{name}: {_brief(error)}") from error


def header_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) by the header alone, turned by EXIF as captions-only sources are.

    Raises:
        ImageError: not_an_image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Exception as error:
            raise ImageError("not_an_image", f"{name}: not an image ({_brief(error)})") from error
        width, height = image.size
        return (height, width) if _swaps_sides(image) else (width, height)


def _must_turn(
    image: Image.Image, size: tuple[int, int] | None, apply_exif: bool, name: str
) -> bool:
    """Whether the picture is to be turned by its EXIF orientation; see :func:`decode`."""
    if size is None:
        return apply_exif
    if image.size == size:
        return False
    if _swaps_sides(image) and image.size == size[::-1]:
        return True
    found = f"{image.size[0]}x{image.size[1]}"
    raise ImageError(
        "size_mismatch", f"{name}: {found} pixels, but annotated as {size[0]}x{size[1]}"
    )


def _shrink_on_load(image: Image.Image, at_least: int) -> None:
    """Have libjpeg decode at the smallest scale whose shortest side is ``at_least`` or more."""
    width, height = image.size
    shortest = min(width, height)
    if shortest >= 2 * at_least:
        image.draft(None, (width * at_least // shortest, height * at_least // shortest))


def _swaps_sides(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # damaged EXIF says nothing
        return False


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame as RGB: transparency over white, 16 bits scaled to 8, CMYK converted."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips 16-bit values to 255, which shows a white picture.
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        grey = np.clip(values / top * 255.0, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def load_row_image(
    image: dict[str, Any], width: int, height: int, *, limits: Limits = DEFAULT_LIMITS
) -> Image.Image:
    """Decode the ``image`` cell of a manifest row, in the orientation its boxes refer to.

    A width and height of 0 are not known: then the picture is turned by its EXIF orientation, as
    viewers do it and as captions want it. Boxes in units of an unknown size (OpenImages, built
    without a look at the images) refer to the stored pixels of the few pictures that have one.

    Raises:
        ImageError: see :func:`decode`; missing_image when the row has neither bytes nor a file,
            not_downloaded when it has but a web address.
    """
    data = row_bytes(image, limits)
    known = width > 0 and height > 0
    return decode(
        data,
        size=(width, height) if known else None,
        apply_exif=not known,
        limits=limits,
        name=image.get("path"),
    )


def row_bytes(image: dict[str, Any], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The encoded bytes of the ``image`` cell of a manifest row: its own, or its file's.

    Files may lie in object stores; the web is for `xvlm-data download`, which has manners.

    Raises:
        ImageError: missing_image, not_downloaded, empty_image or image_too_big.
    """
    data, path = image.get("bytes"), image.get("path")
    if data is not None:
        return checked_bytes(data, str(path or "image"), limits)
    if not path:
        raise ImageError("missing_image", "the row has neither image bytes nor a path")
    if is_web_address(path):
        raise ImageError(
            "not_downloaded",
            f"{path}: a web address, and no image yet",
            "fetch the manifest's images with `xvlm-data download`",
        )
    if "://" not in path:
        return read_bytes(path, limits)
    if not in_a_store(path):
        raise ImageError(
            "missing_image",
            f"{path}: images are read from files and object stores",
            "copy them to this machine or into a bucket, and build the manifest again",
        )
    return checked_bytes(_fetch(path, limits), path, limits)


#: Of fsspec's own file systems those in whose paths nobody can write which host is asked.
_STORES = {"file", "local", "memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl"}
_STORES |= {"oci", "ocilake", "oss", "tos", "tosfs", "lakefs", "hf"}


def in_a_store(url: str) -> bool:
    """Whether a URL names a file in an object store, of fsspec's or of a package that was added.

    A manifest is data, and not to send requests through this machine's network: a chain such as
    ``simplecache::http://…`` reads another place than it begins with.
    """
    from fsspec.registry import known_implementations

    protocol = url.partition("://")[0].lower()
    return "::" not in url and (protocol in _STORES or protocol not in known_implementations)


def is_web_address(path: str) -> bool:
    """Whether the path of an image is an address that has to be downloaded first."""
    return path[:8].lower().startswith(("http://", "https://"))


def _fetch(url: str, limits: Limits) -> bytes:
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read(limits.max_bytes + 1)
    except Exception as error:  # every remote file system raises its own
        raise ImageError("missing_image", f"{url}: {_brief(error)}") from error
    return data


def _brief(error: Exception) -> str:
    """The first line of an error, the same each time: Pillow's tell where in memory a file is."""
    text = str(error).splitlines()[0] if str(error) else ""
    text = re.sub(r" ?<\S+ object at 0x[0-9a-f]+>", "", text)
    return text[:200] or type(error).__name__
