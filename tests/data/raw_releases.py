"""Writes small raw releases with chosen faults, for tests of the builder."""

from __future__ import annotations

import io
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from xvlm_data.build import build
from xvlm_data.build_options import BuildOptions
from xvlm_data.engines import open_engine
from xvlm_data.manifest import open_manifest


class Silent:
    """No progress display."""

    def reading(self, name: str, size: int) -> AbstractContextManager[Any]:
        return nullcontext(lambda count: None)

    def stage(self, name: str, total: int | None, unit: str) -> AbstractContextManager[Any]:
        return nullcontext(lambda count: None)


def jpeg(width: int = 100, height: int = 80, colour: str = "teal", **save: Any) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(data, "JPEG", **save)
    return data.getvalue()


def write_image(path: Path, data: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg() if data is None else data)


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def coco_image(number: int, width: int = 100, height: int = 80) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height}


def box(number: int, image: int, bbox: list[Any], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "bbox": bbox, "category_id": 1, "iscrowd": 0, **more}


def caption(number: int, image: int, text: Any) -> dict[str, Any]:
    return {"image_id": image, "id": number, "caption": text}


def write_coco(
    root: Path,
    *,
    images: list[Any] | None = None,
    boxes: list[Any] | None = None,
    captions: list[Any] | None = None,
    categories: list[Any] | None = None,
    split: str = "train2017",
    write_images: bool = True,
) -> Path:
    """A COCO release of one split in which only what the caller gives is unusual."""
    images = [coco_image(1)] if images is None else images
    instances = {
        "images": images,
        "annotations": boxes or [],
        "categories": categories or [{"id": 1, "name": "traffic light"}],
    }
    write_json(root / f"annotations/instances_{split}.json", instances)
    write_json(
        root / f"annotations/captions_{split}.json",
        {"images": images, "annotations": captions or []},
    )
    if write_images:
        for image in images:
            write_image(root / split / image["file_name"], jpeg(image["width"], image["height"]))
    return root


def write_vg(
    root: Path,
    regions: dict[int, list[dict[str, Any]]],
    objects: dict[int, list[dict[str, Any]]] | None = None,
    attributes: dict[int, list[dict[str, Any]]] | None = None,
    images: list[dict[str, Any]] | None = None,
) -> Path:
    """A Visual Genome release (1.2 keys)."""
    numbers = sorted({*regions, *(objects or {})})
    images = images or [vg_image(number) for number in numbers]
    write_json(root / "image_data.json", images)
    write_json(
        root / "region_descriptions.json",
        [{"regions": items, "id": number} for number, items in regions.items()],
    )
    if objects is not None:
        write_json(
            root / "objects.json",
            [{"image_id": number, "objects": items} for number, items in objects.items()],
        )
    if attributes is not None:
        write_json(
            root / "attributes.json",
            [{"image_id": number, "attributes": items} for number, items in attributes.items()],
        )
    for image in images:
        write_image(root / "/".join(image["url"].split("/")[-2:]), jpeg())
    return root


def vg_image(number: int, **more: Any) -> dict[str, Any]:
    url = f"https://example.org/VG_100K/{number}.jpg"
    size = {"width": 100, "height": 80}
    return {"image_id": number, "url": url, "coco_id": None, "flickr_id": None, **size, **more}


def region(
    number: int, phrase: Any, x: Any = 10, y: Any = 10, w: Any = 50, h: Any = 40
) -> dict[str, Any]:
    box = {"x": x, "y": y, "width": w, "height": h}
    return {"region_id": number, "phrase": phrase, "image_id": 1, **box}


def build_all(
    source: str, root: Path, out: Path, **options: Any
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """(summary, manifest rows, rejects) of a build."""
    names = ("split", "force", "restart")
    arguments = {key: options.pop(key) for key in names if key in options}
    with open_engine(options.pop("engine", "local"), options.pop("workers", 1)) as engine:
        summary = build(
            source,
            root,
            out,
            progress=Silent(),
            options=BuildOptions(**options),
            engine=engine,
            **arguments,
        )
    rows = [row for batch in open_manifest(out).batches() for row in batch.to_pylist()]
    return summary, rows, pq.read_table(out / "rejects.parquet").to_pylist()
