"""Manifests of photographs to feed from: given JPEG files over and over, with texts and boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from xvlm_data.errors import UserError
from xvlm_data.images.encode import reencode
from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.schema import WHOLE_IMAGE_BOX, manifest_schema
from xvlm_data.write import ShardWriter

#: Words of a caption and of a region, mean and deviation (tokens, in the ViLT paper's table).
_CAPTION, _REGION = (10.8, 2.8), (4.5, 1.8)
#: Concepts of an image: COCO's captions and objects, Visual Genome's regions after the rules.
_CAPTIONS, _REGIONS, _OBJECTS = 5, 35, 20
_WORDS = ("man", "woman", "dog", "wave", "surfboard", "grass", "street", "city", "night", "table")
_COLOURS = ("white", "black", "red", "blue", "green", "brown", "large", "small", "wooden")


@dataclass(frozen=True)
class Photos:
    """What was made.

    Attributes:
        encoded: the distinct photographs, as stored.
        manifests: by layout.
        megabytes: of an image, by layout.
    """

    encoded: list[bytes]
    manifests: dict[str, Manifest]
    megabytes: dict[str, float]


def make(photos: Path, out: Path, rows: int, shortest_side: int, quality: int) -> Photos:
    """Write manifests of ``rows`` images: references, embedded, and embedded at a smaller size.

    Raises:
        UserError: no JPEG there.
    """
    files = sorted(photos.rglob("*.jpg"))[:rows]
    if not files:
        raise UserError(f"{photos}: no .jpg in it", "give a folder of photographs")
    encoded = [file.read_bytes() for file in files]
    small = [reencode(data, shortest_side=shortest_side, quality=quality) for data in encoded]
    sizes = [_size(data) for data in encoded]
    rng = np.random.default_rng(0)
    concepts = [_concepts(rng) for _ in range(rows)]
    names = [{"bytes": None, "path": str(file)} for file in files]
    stored = [{"bytes": data, "path": None} for data in encoded]
    layouts: dict[str, list[tuple[dict[str, Any], tuple[int, int]]]] = {
        "references": list(zip(names, sizes, strict=True)),
        "embedded": list(zip(stored, sizes, strict=True)),
        f"embedded {shortest_side}": [({"bytes": data, "path": None}, s) for data, s in small],
    }
    manifests, megabytes = {}, {}
    for name, images in layouts.items():
        path = out / f"{name.replace(' ', '_')}.parquet"
        _write(path, images, concepts)
        manifests[name] = open_manifest(path)
        sources = encoded if name == "references" else [cell["bytes"] for cell, _ in images]
        megabytes[name] = sum(len(data or b"") for data in sources) / len(sources) / 1e6
    return Photos(encoded, manifests, megabytes)


def _size(data: bytes) -> tuple[int, int]:
    import io

    return Image.open(io.BytesIO(data)).size


def _write(
    path: Path,
    images: list[tuple[dict[str, Any], tuple[int, int]]],
    concepts: list[list[dict[str, Any]]],
) -> None:
    schema = manifest_schema({"name": path.stem})
    with ShardWriter(path, schema) as writer:
        for start in range(0, len(concepts), 256):
            rows = []
            for n, own in enumerate(concepts[start : start + 256], start):
                cell, (width, height) = images[n % len(images)]
                rows.append(
                    {
                        "id": f"photo/{n}",
                        "source": "photo",
                        "split": "train",
                        "image": cell,
                        "width": width,
                        "height": height,
                        "caption": own[0]["text"],
                        "concepts": own,
                    }
                )
            writer.write(pa.Table.from_pylist(rows, schema=schema))


def _concepts(rng: np.random.Generator) -> list[dict[str, Any]]:
    def text(length: tuple[float, float]) -> str:
        return " ".join(rng.choice(_WORDS, max(1, round(rng.normal(*length)))))

    def box() -> list[float]:
        w, h = rng.uniform(0.1, 0.6, 2)
        x, y = rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2)
        return [float(v) for v in (x, y, w, h)]

    def concept(words: str, place: Any, kind: str, attributes: list[str]) -> dict[str, Any]:
        return {"box": place, "text": words, "attributes": attributes, "granularity": kind}

    found = [concept(text(_CAPTION), list(WHOLE_IMAGE_BOX), "image", []) for _ in range(_CAPTIONS)]
    found += [concept(text(_REGION), box(), "region", []) for _ in range(_REGIONS)]
    for _ in range(_OBJECTS):
        attributes = [str(rng.choice(_COLOURS))] if rng.random() < 0.5 else []
        found.append(concept(str(rng.choice(_WORDS)), box(), "object", attributes))
    return found
