"""Manifests of a few rendered rows, written with pyarrow alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.schema import WHOLE_IMAGE_BOX, manifest_schema
from xvlm_train.data.tokenizer import Tokenizer

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def concept(
    text: str | None,
    box: Sequence[float] = WHOLE_IMAGE_BOX,
    granularity: str = "image",
    attributes: Sequence[str] = (),
) -> dict[str, Any]:
    return {
        "box": list(box),
        "text": text,
        "attributes": list(attributes),
        "granularity": granularity,
    }


def row(number: int, concepts: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    width, height = 64, 48
    captions = [c["text"] for c in concepts if c["granularity"] == "image"]
    return {
        "id": f"toy/{number:05d}",
        "source": "toy",
        "split": "train",
        "image": {"bytes": jpeg((number * 37 % 256, number * 91 % 256, 128)), "path": None},
        "width": width,
        "height": height,
        "caption": captions[0] if captions else None,
        "concepts": list(concepts),
        **changes,
    }


def spelled(number: int) -> str:
    """A text of its own for each number: 12 -> "one two"."""
    return " ".join(WORDS[int(digit)] for digit in str(number))


def captioned(count: int) -> list[dict[str, Any]]:
    return [row(n, [concept(f"picture {spelled(n)}")]) for n in range(count)]


def boxed(count: int, concepts: int = 7, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with a caption and several regions and objects, every text unique in the manifest."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        items = [concept(f"picture {spelled(n)}")]
        for i in range(concepts):
            w, h = rng.uniform(0.1, 0.4, 2)
            cx, cy = rng.uniform(w / 2, 1 - w / 2), rng.uniform(h / 2, 1 - h / 2)
            kind, attributes = ("object", ["red", "big"]) if i % 2 else ("region", [])
            text = f"thing {WORDS[i]} of {spelled(n)}"
            items.append(concept(text, (cx, cy, w, h), kind, attributes))
        rows.append(row(n, items))
    return rows


def write(
    path: Path, rows: Sequence[dict[str, Any]], *, row_group_size: int = 4, name: str = "toy"
) -> Manifest:
    table = pa.Table.from_pylist(list(rows), schema=manifest_schema({"name": name}))
    pq.write_table(table, path, row_group_size=row_group_size)
    return open_manifest(path)


def tokenizer(vocab_size: int = 400) -> Tokenizer:
    texts = ["picture", "thing of red big left right", "<unk> abcdefghijklmnopqrstuvwxyz", *WORDS]
    return Tokenizer.train(texts * 20, vocab_size)
