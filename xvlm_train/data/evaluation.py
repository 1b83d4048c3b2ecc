"""Held-out rows as they are: captions for retrieval, unmistakable phrases for grounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from xvlm_data.boxes import cxcywh_to_xyxy
from xvlm_data.errors import UserError
from xvlm_data.images.decode import ImageError, load_row_image
from xvlm_data.manifest import Manifest
from xvlm_data.schema import IMAGE, OBJECT
from xvlm_train.data.config import DataConfig
from xvlm_train.data.rejects import Reject, told
from xvlm_train.data.rows import Row, read_rows
from xvlm_train.data.text import clean_text
from xvlm_train.data.transforms import eval_pixels, normalise

#: Boxes of equal text that overlap this much (IoU) are one thing, annotated twice.
SAME_BOX = 0.9


@dataclass(frozen=True, slots=True)
class Phrase:
    """A text that names one place of its image, and that place: (cx, cy, w, h) in [0, 1]."""

    text: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class EvalItem:
    """One held-out image.

    Attributes:
        record_id: manifest id.
        pixels: ``[3, R, R]`` uint8.
        captions: cleaned; empty where the row has none.
        phrases: what can be grounded in it.
        size: (width, height) of the original, pixels.
    """

    record_id: str
    pixels: npt.NDArray[np.uint8]
    captions: list[str]
    phrases: list[Phrase]
    size: tuple[int, int]

    @property
    def image(self) -> torch.Tensor:
        """``[3, R, R]`` float32, normalised as in training."""
        return normalise(torch.from_numpy(self.pixels))


class EvalSet:
    """An evenly spaced, fixed choice of the rows of some manifests, in manifest order.

    Args:
        manifests: held-out rows.
        config: image size and text length.
        limit: most rows; None takes all.

    Attributes:
        rejects: rows left out of the last pass over the set.

    Raises:
        UserError: no rows; web addresses that are still to be downloaded; on iterating, no readable
            image at all.
    """

    def __init__(
        self, manifests: Sequence[Manifest], config: DataConfig, limit: int | None = None
    ) -> None:
        total = sum(len(manifest) for manifest in manifests)
        if not total:
            names = ", ".join(str(m.info.get("name") or m.shards[0].url) for m in manifests)
            raise UserError(
                f"the validation manifest is empty ({names or 'none given'})",
                "build it again; see its rejects",
            )
        for manifest in manifests:
            manifest.require_images()
        count = total if limit is None else min(limit, total)
        self._rows = np.linspace(0, total - 1, count).round().astype(np.int64)
        self._manifests = list(manifests)
        self._config = config
        self.rejects: list[Reject] = []

    def __len__(self) -> int:
        """Rows chosen; those that cannot be read count too."""
        return len(self._rows)

    def __iter__(self) -> Iterator[EvalItem]:
        self.rejects.clear()
        for row in self._chosen():
            try:
                yield self._item(row)
            except ImageError as error:
                self.rejects.append(Reject(row.id, error.reason, str(error)))
        if len(self.rejects) == len(self):
            raise UserError(
                f"no validation image can be read ({told(self.rejects)})", "check --image-root"
            )

    def _chosen(self) -> Iterator[Row]:
        start = 0
        for manifest in self._manifests:
            for s, shard in enumerate(manifest.shards):
                for g, rows in enumerate(shard.row_groups):
                    inside = self._rows[(self._rows >= start) & (self._rows < start + rows)] - start
                    start += rows
                    if len(inside):
                        group = read_rows(manifest, s, g)
                        yield from (group.row(int(i)) for i in inside)

    def _item(self, row: Row) -> EvalItem:
        image = load_row_image(row.image, row.width, row.height)
        captions = [
            cleaned
            for k in range(len(row))
            if row.granularity(k) == IMAGE
            and (cleaned := clean_text(row.text(k), self._config.max_words))
        ]
        return EvalItem(
            record_id=row.id,
            pixels=eval_pixels(image, self._config.image_size),
            captions=captions,
            phrases=unmistakable_phrases(row, self._config.max_words),
            size=image.size,
        )


def unmistakable_phrases(row: Row, max_words: int) -> list[Phrase]:
    """The regions and objects of a row whose text names one place.

    An object may be called by its name or by "attribute name" with any of its attributes. A text
    by which some other concept could be called, in another place, is ambiguous and left out; of
    an object with attributes the first "attribute name" that is not ambiguous is taken.
    """
    names: dict[str, list[int]] = {}
    own: list[tuple[int, list[str]]] = []
    for i in range(len(row)):
        text, kind = row.text(i), row.granularity(i)
        cleaned = clean_text(text, max_words)
        if kind == IMAGE or not cleaned or not _is_box(row.boxes[i]):
            continue
        attributes = row.attributes(i) if kind == OBJECT else []
        described = [clean_text(f"{item} {text}", max_words) for item in attributes]
        own.append((i, described or [cleaned]))
        for name in {cleaned, *described}:
            names.setdefault(name, []).append(i)
    phrases: dict[str, Phrase] = {}
    for i, candidates in own:
        for name in candidates:
            others = [j for j in names[name] if j != i]
            if all(_iou(row.boxes[i], row.boxes[j]) >= SAME_BOX for j in others):
                cx, cy, w, h = (float(v) for v in row.boxes[i])
                phrases.setdefault(name, Phrase(name, (cx, cy, w, h)))
                break
    return list(phrases.values())


def _is_box(box: npt.NDArray[np.float64]) -> bool:
    return bool(np.isfinite(box).all() and (box[2:] > 0).all())


def _iou(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    corners = cxcywh_to_xyxy(np.stack([a, b]))
    overlap = np.maximum(corners[:, 2:].min(axis=0) - corners[:, :2].max(axis=0), 0).prod()
    return float(overlap / (a[2:].prod() + b[2:].prod() - overlap))
