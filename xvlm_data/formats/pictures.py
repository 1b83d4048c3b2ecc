"""The picture of a row for readers who know nothing of manifests, and of EXIF orientations."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

from PIL import Image

from xvlm_data.images.decode import FORMATS, ImageError, decode, row_bytes

_ORIENTATION = 0x0112
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}
_QUALITY = 95


@dataclass(frozen=True)
class Picture:
    """An encoded picture whose stored pixels are those that boxes refer to.

    Attributes:
        data: the bytes.
        extension: of a file of them, without a dot.
        width, height: pixels.
        turned: whether it had to be written anew, because its EXIF orientation turned it.
    """

    data: bytes
    extension: str
    width: int
    height: int
    turned: bool = False


def picture(image: dict[str, Any], width: int | None, height: int | None) -> Picture:
    """The picture of a row's ``image`` cell, byte for byte as it is wherever that is right.

    Where a picture is right only once it is turned by its EXIF orientation, which many readers do
    not look at, it is turned and written as JPEG.

    Args:
        image: ``{"bytes", "path"}``.
        width: that boxes refer to; 0 or none where not known.
        height: the same.

    Raises:
        ImageError: there is none, it is broken, or of another size.
    """
    width, height = width or 0, height or 0
    data = row_bytes(image)
    name = image.get("path") or "image"
    header = _header(data, name)
    known = width > 0 and height > 0
    if header.size == (width, height) or (not known and not _turns(header)):
        form = header.format or "JPEG"
        return Picture(data, _EXTENSIONS.get(form, form.lower()), *header.size)
    upright = decode(data, size=(width, height) if known else None, apply_exif=not known, name=name)
    upright.info = {}
    buffer = io.BytesIO()
    upright.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return Picture(buffer.getvalue(), "jpg", *upright.size, turned=True)


def stored_size(data: bytes, name: str = "image") -> tuple[int, int]:
    """(width, height) of the stored pixels, by the header alone.

    Raises:
        ImageError: not_an_image.
    """
    width, height = _header(data, name).size
    return width, height


def _header(data: bytes, name: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except Exception as error:
            raise ImageError("not_an_image", f"{name}: not an image") from error


def _turns(header: Image.Image) -> bool:
    try:
        return header.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # damaged EXIF says nothing
        return False
