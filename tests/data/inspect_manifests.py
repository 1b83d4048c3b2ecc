"""Small manifests for the tests of `xvlm_data.inspect`."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from xvlm_data.manifest import Manifest, open_manifest
from xvlm_data.schema import manifest_schema

INFO = {"name": "made", "source": "made", "split": "train", "generator": "tests", "options": {}}
SIZE = (40, 30)


def png(size: tuple[int, int] = SIZE, colour: str = "white", form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


def concept(
    text: str | None = "a red square",
    granularity: str | None = "region",
    box: Any = (0.5, 0.5, 0.25, 0.5),
    attributes: tuple[str, ...] = (),
) -> dict[str, Any]:
    if granularity == "image" and box == (0.5, 0.5, 0.25, 0.5):
        box = (0.5, 0.5, 1.0, 1.0)
    return {"box": box, "text": text, "attributes": list(attributes), "granularity": granularity}


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A row that keeps every promise, but for ``changes``."""
    good = {
        "id": f"made/{number}",
        "source": "made",
        "split": "train",
        "image": {"bytes": png(), "path": None},
        "width": SIZE[0],
        "height": SIZE[1],
        "caption": "two shapes",
        "concepts": [
            concept("two shapes", "image"),
            concept(),
            concept("circle", "object", (0.1, 0.1, 0.2, 0.2), ("blue",)),
        ],
    }
    return good | changes


def write(path: Path, rows: list[dict[str, Any]], info: dict[str, Any] = INFO) -> Path:
    """One shard. Columns are nullable here, so that broken rows can be written."""
    schema = manifest_schema(info)
    loose = pa.schema([field.with_nullable(True) for field in schema], schema.metadata)
    pq.write_table(pa.Table.from_pylist(rows, loose), path, row_group_size=3)
    return path


def manifest_of(folder: Path, *rows: dict[str, Any]) -> Manifest:
    return open_manifest(write(folder / "made.parquet", list(rows)))


def write_folder(
    folder: Path, *shards: list[dict[str, Any]], info: dict[str, Any] = INFO, **extra: Any
) -> Path:
    """A folder with ``manifest.json``, as a build leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, rows in enumerate(shards):
        path = write(folder / f"manifest-{number:05d}.parquet", rows, info)
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        listed.append({"file": path.name, "rows": len(rows), "sha256": checksum})
    summary = {"name": "made", "schema_version": 1, "shards": listed} | extra
    (folder / "manifest.json").write_text(json.dumps(summary))
    return folder
