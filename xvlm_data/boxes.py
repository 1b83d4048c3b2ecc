"""Box arithmetic, vectorised over ``[N, 4]`` arrays.

Pixel boxes are (x, y, w, h) with the origin at the top left; the manifest holds
(cx, cy, w, h) divided by the image's width and height, so a whole image is (0.5, 0.5, 1, 1).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float64]


def clip_xywh(boxes: Boxes, sizes: npt.NDArray[np.integer]) -> Boxes:
    """Cut pixel boxes to their images.

    Args:
        boxes: ``[N, 4]`` (x, y, w, h) in pixels.
        sizes: ``[N, 2]`` (width, height) of each box's image.

    Returns:
        ``[N, 4]`` (x, y, w, h); a box wholly outside its image comes back with w or h <= 0.
    """
    low = np.maximum(boxes[:, :2], 0.0)
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes)
    return np.concatenate([low, high - low], axis=1)


def normalise_xywh(boxes: Boxes, sizes: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """Pixel (x, y, w, h) to (cx, cy, w, h) in [0, 1]; shapes as in :func:`clip_xywh`."""
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    return np.concatenate([centres / sizes, boxes[:, 2:] / sizes], axis=1).astype(np.float32)


def cxcywh_to_xyxy(boxes: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """(cx, cy, w, h) to corners (x0, y0, x1, y1), ``[N, 4]`` both."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
