"""How many images, captions, objects and regions a manifest holds, and what its build left out.

``manifest.json`` tells it at once; :func:`recount` counts the Parquet files themselves, reading one
column in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.errors import ManifestError
from xvlm_data.manifest import SUMMARY_NAME, Manifest
from xvlm_data.recipe import QUANTITIES, Count
from xvlm_data.schema import GRANULARITIES, IMAGE, OBJECT, REGION

#: The quantity that the concepts of a granularity are.
QUANTITY = {IMAGE: "captions", OBJECT: "objects", REGION: "regions"}
_GRANULARITY_COLUMN = "concepts.list.element.granularity"


class _Kind(msgspec.Struct):
    raw: Count | None = None
    filtered: dict[str, Count] = {}
    rejected: dict[str, Count] = {}


class _Options(msgspec.Struct):
    rules: dict[str, float | bool] = {}
    keep_leaks: bool = False


class _Summary(msgspec.Struct):
    """What `verify` reads of ``manifest.json``; the rest of it is left alone."""

    rows: Count
    concepts: dict[str, Count]
    counts: dict[str, _Kind] = {}
    options: _Options = msgspec.field(default_factory=_Options)


@dataclass(frozen=True)
class Content:
    """What the Parquet files hold.

    Attributes:
        kept: images, captions, objects, regions.
        per_image: by granularity, ``[M]`` how many images have 0, 1, 2, … concepts of it.
    """

    kept: dict[str, int]
    per_image: dict[str, npt.NDArray[np.int64]]

    def texts(self, granularity: str, largest: int | None) -> int:
        """Concepts of a granularity, at most ``largest`` an image."""
        images = self.per_image[granularity]
        numbers = np.arange(len(images))
        return int((images * (numbers if largest is None else numbers.clip(max=largest))).sum())


@dataclass(frozen=True)
class Told:
    """What ``manifest.json`` says.

    Attributes:
        kept: images, captions, objects, regions.
        raw: the same of the raw release, as far as they are told.
        left_out: by quantity and then by reason: how many records are not in the manifest.
        rules: thresholds of the build.
        keep_leaks: whether images of evaluation sets were kept.
    """

    kept: dict[str, int]
    raw: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    rules: Mapping[str, float | bool] = field(default_factory=dict)
    keep_leaks: bool = False


def told(manifest: Manifest) -> Told | None:
    """The counts of ``manifest.json``; None for a manifest that was not opened as a folder.

    Raises:
        ManifestError: it has no usable counts.
    """
    if manifest.summary is None:
        return None
    try:
        summary = msgspec.convert(manifest.summary, _Summary)
    except msgspec.ValidationError as error:
        raise ManifestError(
            f"{manifest.shards[0].url.rpartition('/')[0]}/{SUMMARY_NAME}: damaged ({error})",
            "build the manifest again",
        ) from None
    kept = {QUANTITY[name]: summary.concepts.get(name, 0) for name in GRANULARITIES}
    return Told(
        {"images": summary.rows, **kept},
        {
            name: kind.raw
            for name, kind in summary.counts.items()
            if name in QUANTITIES and kind.raw is not None
        },
        {
            name: {**kind.filtered, **kind.rejected}
            for name, kind in summary.counts.items()
            if name in QUANTITIES
        },
        summary.options.rules,
        summary.options.keep_leaks,
    )


def recount(manifest: Manifest, advance: Callable[[int], None] = lambda rows: None) -> Content:
    """Count the rows themselves, in batches of some thousand.

    Raises:
        ManifestError: a shard is damaged.
    """
    rows = 0
    per_image = {name: np.zeros(1, np.int64) for name in GRANULARITIES}
    for batch in manifest.batches([_GRANULARITY_COLUMN], batch_size=8192):
        rows += len(batch)
        lists = batch.column(0)
        names = pc.struct_field(lists.flatten(), "granularity")
        if pa.types.is_dictionary(names.type):
            names = names.cast(names.type.value_type)
        owners = pc.list_parent_indices(lists)
        for name, images in per_image.items():
            of_kind = owners.filter(pc.fill_null(pc.equal(names, name), False)).to_numpy()
            found = np.bincount(np.bincount(of_kind, minlength=len(batch)))
            longer, shorter = (found, images) if len(found) > len(images) else (images, found)
            total = longer.copy()
            total[: len(shorter)] += shorter
            per_image[name] = total
        advance(len(batch))
    content = Content({"images": rows}, per_image)
    content.kept.update({QUANTITY[name]: content.texts(name, None) for name in GRANULARITIES})
    return content
