"""From encoded bytes to the square that the model sees, doing no more than the crop needs.

Two ways (``data.pixels``):

``fast``: libjpeg-turbo decodes JPEG straight into an array, at a half, a quarter or an eighth of
its size where the crop stays at least as large as the square; then an antialiased bicubic resize
in integer SIMD. At full scale the decoded pixels equal Pillow's, and the resized ones differ from
Pillow's by 1 of 255 in a few of a thousand.

``exact``: decoded whole and resized by Pillow, as the original does.

Either way what is broken is Pillow's to judge, so that training and building agree on it.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import simplejpeg
import torch
from PIL import Image

from xvlm_data.images.decode import DEFAULT_LIMITS, Limits, decode, row_bytes
from xvlm_train.data.augment import Pixels
from xvlm_train.data.transforms import Crop

Way: TypeAlias = Literal["fast", "exact"]

#: Scales at which libjpeg-turbo's inverse transform is vectorised; 1 is the whole size.
_SCALES = (8, 4, 2)
_JPEG = b"\xff\xd8\xff"


class Picture:
    """An image of a manifest row whose size is known, and whose pixels are not yet decoded.

    Attributes:
        size: (width, height), in the orientation that the row's boxes refer to.
    """

    def __init__(
        self,
        cell: dict[str, Any],
        width: int,
        height: int,
        way: Way = "fast",
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Look at the image's header; where that is not enough, decode it.

        Args:
            cell: the ``image`` cell of the row.
            width: that the boxes refer to, 0 where not known; see
                :func:`xvlm_data.images.decode.load_row_image`.
            height: likewise.
            way: see the module.
            limits: what the file and its pixels may cost.

        Raises:
            ImageError: as ``load_row_image``.
        """
        self._data = row_bytes(cell, limits)
        self._known = width > 0 and height > 0
        self._name, self._limits, self._way = cell.get("path"), limits, way
        self._image: Image.Image | None = None
        self.size = (width, height)
        if not (way == "fast" and self._known and self._is_plain_jpeg()):
            self._image = self._decode()
            self.size = self._image.size

    def aligned(self, crop: Crop, side: int) -> Crop:
        """The crop to ask for where ``crop`` was meant: on whole pixels of a reduced scale too.

        It holds all of ``crop`` and is at most 7 pixels larger on each side; at the right and lower
        edge it may end that far outside the image, where JPEG repeats the last pixels.
        """
        scale = self._scale(crop, side)
        x0, y0, x1, y1 = crop
        low, high = (x0 // scale, y0 // scale), (-(-x1 // scale), -(-y1 // scale))
        return low[0] * scale, low[1] * scale, high[0] * scale, high[1] * scale

    def square(self, crop: Crop, side: int) -> Pixels:
        """An aligned crop, resized to ``[side, side, 3]`` (bicubic).

        Raises:
            ImageError: the pixels cannot be decoded.
        """
        x0, y0, x1, y1 = crop
        if self._image is None:
            scale = self._scale(crop, side, aligned=True)
            try:
                pixels = self._decode_jpeg(scale)
            except ValueError:  # even what Pillow shrugs at; let it judge
                self._image = self._decode()
            else:
                return resize(pixels[y0 // scale : y1 // scale, x0 // scale : x1 // scale], side)
        cut = self._image.crop(crop)
        if self._way == "fast":
            return resize(np.array(cut), side)
        # Not `resize(box=...)`: its kernel would see the pixels around the crop.
        return np.asarray(cut.resize((side, side), Image.Resampling.BICUBIC))

    def _scale(self, crop: Crop, side: int, aligned: bool = False) -> int:
        """The image may be decoded at one n-th of its size: the crop is then still ``side`` pixels.

        With ``aligned``, only if the crop lies on whole pixels of that.
        """
        if self._image is not None:
            return 1
        shortest = min(crop[2] - crop[0], crop[3] - crop[1])
        for scale in _SCALES:
            if shortest >= scale * side and not (aligned and any(edge % scale for edge in crop)):
                return scale
        return 1

    def _is_plain_jpeg(self) -> bool:
        """Whether libjpeg-turbo can do it alone: the stored size is the annotated one, no CMYK."""
        if bytes(self._data[:3]) != _JPEG:
            return False
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(self._data)
        except ValueError:
            return False
        fits = width * height <= self._limits.max_pixels
        return (width, height) == self.size and fits and colours in ("YCbCr", "RGB", "Gray")

    def _decode_jpeg(self, scale: int) -> Pixels:
        width, height = (side // scale for side in self.size)
        pixels: Pixels = simplejpeg.decode_jpeg(self._data, min_width=width, min_height=height)
        return pixels

    def _decode(self) -> Image.Image:
        return decode(
            self._data,
            size=self.size if self._known else None,
            apply_exif=not self._known,
            limits=self._limits,
            name=self._name,
        )


def resize(pixels: Pixels, side: int) -> Pixels:
    """``[H, W, 3]`` to ``[side, side, 3]`` uint8: bicubic, antialiased."""
    # As a batch first: only then torch sees that channels are last in memory, and keeps them there.
    planes = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(planes, (side, side), mode="bicubic", antialias=True)
    out: Pixels = small[0].permute(1, 2, 0).numpy()
    return out
