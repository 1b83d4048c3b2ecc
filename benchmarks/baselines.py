"""What a build is measured against; each is run as a program of its own, by ``build.py``.

::

    python benchmarks/baselines.py parse FILE…
    python benchmarks/baselines.py json SOURCE FILE…

Either prints one line of JSON: seconds of wall time and of processor time, without imports.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Stopwatch:
    """Adds up wall and processor time of what runs within it; a context manager."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu


def parse(files: list[str]) -> Stopwatch:
    """``orjson.loads`` of each file, the cyclic collector off; each tree is let go before the next.

    orjson refuses NaN and Infinity, which the releases hold: numbers of the same length replace
    them, outside the timer. Reading the file is inside, freeing the tree is not.
    """
    import orjson

    gc.disable()
    watch = Stopwatch()
    for file in files:
        with watch:
            data = Path(file).read_bytes()
        data = data.replace(b"NaN", b"0.0").replace(b"Infinity", b"0.000001")
        with watch:
            tree = orjson.loads(data)
        del tree, data
    return watch


def naive(source: str, files: list[str]) -> tuple[Stopwatch, int]:
    """``json.load``, a dictionary of lists by image, ``pa.Table.from_pylist``.

    The script that people write: columns image, boxes, text. It skips records that raise, keeps
    the rest unchecked, applies no rule and writes nothing to disk. Returns the number of texts too.
    """
    import pyarrow as pa

    schema = pa.schema(
        {
            "image": pa.string(),
            "boxes": pa.list_(pa.list_(pa.float32())),
            "text": pa.list_(pa.string()),
        }
    )
    rows: dict[int, dict[str, Any]] = {}
    read = _naive_vg if source == "vg" else _naive_coco
    watch = Stopwatch()
    with watch:
        read(files, rows)
        table = pa.Table.from_pylist(list(rows.values()), schema=schema)
    return watch, len(table["text"].combine_chunks().flatten())


def _load(file: str) -> Any:
    with Path(file).open(encoding="utf-8") as text:
        return json.load(text)


def _each(records: Any, use: Callable[[Any], None]) -> None:
    for record in records:
        try:
            use(record)
        except (LookupError, TypeError, ValueError, AttributeError):
            continue


def _image(rows: dict[int, dict[str, Any]], key: int, name: str) -> None:
    rows[key] = {"image": str(name), "boxes": [], "text": []}


def _box(rows: dict[int, dict[str, Any]], key: int, box: list[Any], text: Any) -> None:
    x, y, w, h = map(float, box)
    row = rows[key]
    row["boxes"].append([x, y, w, h])
    row["text"].append(str(text))


def _naive_coco(files: list[str], rows: dict[int, dict[str, Any]]) -> None:
    for file in files:
        content = _load(file)
        names = {c["id"]: c["name"] for c in content.get("categories", ())}
        if not rows:
            _each(content["images"], lambda r: _image(rows, r["id"], r["file_name"]))
        if names:
            _each(
                content["annotations"],
                lambda r: _box(rows, r["image_id"], r["bbox"], names[r["category_id"]]),  # noqa: B023
            )
        else:
            _each(
                content["annotations"],
                lambda r: _box(rows, r["image_id"], [0, 0, 1, 1], r["caption"]),
            )


def _naive_vg(files: list[str], rows: dict[int, dict[str, Any]]) -> None:
    images, regions, objects, attributes = files[:4]  # the rest are of evaluation sets

    def region(image: Any) -> None:
        _each(
            image["regions"],
            lambda r: _box(
                rows, image["id"], [r["x"], r["y"], r["width"], r["height"]], r["phrase"]
            ),
        )

    described: dict[int, list[str]] = {}

    def attribute(record: Any) -> None:
        described[record["object_id"]] = [str(word) for word in record["attributes"]]

    def thing(image: Any) -> None:
        _each(
            image["objects"],
            lambda r: _box(
                rows,
                image["image_id"],
                [r["x"], r["y"], r["w"], r["h"]],
                " ".join([*described.get(r["object_id"], ()), r["names"][0]]),
            ),
        )

    _each(_load(images), lambda r: _image(rows, r["image_id"], f"{r['image_id']}.jpg"))
    _each(_load(regions), region)
    _each(_load(attributes), lambda image: _each(image["attributes"], attribute))
    _each(_load(objects), thing)


def main(words: list[str]) -> dict[str, float]:
    """See the module."""
    if words[0] == "parse":
        watch, found = parse(words[1:]), {}
    else:
        watch, texts = naive(words[1], words[2:])
        found = {"texts": texts}
    return {"wall": watch.wall, "cpu": watch.cpu, **found}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
