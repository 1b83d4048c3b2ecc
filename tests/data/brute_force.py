"""A second opinion on what a build must find: plain Python over whole files, no code of ours.

Written from the rules of the design document, not from the builder and not from the generator;
slow, and in memory, so only for small files.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILTERED = {"other_split", "leak", "crowd", "small", "text_overlap"}
Size = tuple[float, float]


@dataclass
class Found:
    """Outcomes by kind; ``kept`` counts beside the reasons."""

    outcomes: dict[str, Counter[str]] = field(
        default_factory=lambda: {k: Counter() for k in ("images", "captions", "objects", "regions")}
    )
    clipped: int = 0
    unattached: int = 0

    def add(self, kind: str, outcome: str | None, clipped: bool = False) -> None:
        self.outcomes[kind][outcome or "kept"] += 1
        self.clipped += clipped and outcome is None

    def table(self) -> dict[str, Any]:
        return {
            kind: {
                "raw": sum(found.values()),
                "kept": found["kept"],
                "filtered": {r: n for r, n in found.items() if r in FILTERED},
                "rejected": {r: n for r, n in found.items() if r not in {*FILTERED, "kept"}},
            }
            for kind, found in self.outcomes.items()
        }


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, float) or _integer(value)


def _clean(text: str) -> str:
    return " ".join(text.split())


def _box(box: Sequence[float], size: Size, crowd: bool, empty: bool) -> tuple[str | None, bool]:
    """The first rule that holds, and whether the box was cut; ``empty``: its text says nothing."""
    x, y, w, h = box
    if not all(math.isfinite(side) for side in box):
        return "box_not_finite", False
    if w <= 0 or h <= 0:
        return "box_empty", False
    if empty:
        return "empty_text", False
    if crowd:
        return "crowd", False
    width, height = size
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if x1 <= x0 or y1 <= y0:
        return "box_outside", False
    moved = max(x0 - x, y0 - y, x + w - x1, y + h - y1)
    share = (x1 - x0) * (y1 - y0) / (width * height)
    assert abs(share - 0.01) > 0.0004, "nothing may be near the threshold"
    assert moved < 1e-6 or moved > 0.9 * min(width, height) / 1000, "nor near the tolerance"
    return ("small" if share < 0.01 else None), moved > 1e-6


# COCO and Objects365 ------------------------------------------------------------------------------


def _images(records: Iterable[Any], found: Found, sizes: dict[int, Size], new: set[int]) -> None:
    """Count the image records of one file; ``new`` collects ids that no file had before."""
    here: set[int] = set()
    for record in records:
        if not (isinstance(record, dict) and _integer(record.get("id"))):
            found.add("images", "malformed")
        elif record["id"] in here:
            found.add("images", "duplicate_image")
        else:
            here.add(record["id"])
            if record["id"] not in sizes:
                new.add(record["id"])
            sizes.setdefault(record["id"], (record["width"], record["height"]))


def _malformed_annotation(record: Any) -> bool:
    if not isinstance(record, dict):
        return True
    box = record.get("bbox")
    return not (
        _integer(record.get("image_id"))
        and _integer(record.get("category_id"))
        and isinstance(box, list)
        and len(box) == 4
        and all(map(_number, box))
    )


def instances(files: Sequence[Path], captions: Sequence[Path], wanted: set[int] | None) -> Found:
    """COCO's and Objects365's files; ``wanted`` image ids belong to the split, None: all do."""
    found = Found()
    sizes: dict[int, Size] = {}
    new: set[int] = set()
    loaded = [json.loads(path.read_text(encoding="utf-8")) for path in (*files, *captions)]
    for document in loaded:
        _images(document["images"], found, sizes, new)
    for id_ in new:
        found.add("images", None if wanted is None or id_ in wanted else "other_split")
    for _ in (wanted or set()) - sizes.keys():
        found.add("images", "missing_record")
    for document in loaded[: len(files)]:
        names = {category["id"] for category in document["categories"]}
        for record in document["annotations"]:
            clipped = False
            reason: str | None
            if _malformed_annotation(record):
                reason = "malformed"
            elif record["category_id"] not in names:
                reason = "unknown_category"
            elif record["image_id"] not in sizes:
                reason = "unknown_image"
            elif wanted is not None and record["image_id"] not in wanted:
                reason = "other_split"
            else:
                size = sizes[record["image_id"]]
                reason, clipped = _box(record["bbox"], size, record["iscrowd"] == 1, False)
            found.add("objects", reason, clipped)
    for document in loaded[len(files) :]:
        for record in document["annotations"]:
            reason = None
            if not (
                isinstance(record, dict)
                and _integer(record.get("image_id"))
                and isinstance(record.get("caption"), str)
            ):
                reason = "malformed"
            elif record["image_id"] not in sizes:
                reason = "unknown_image"
            elif wanted is not None and record["image_id"] not in wanted:
                reason = "other_split"
            elif not _clean(record["caption"]):
                reason = "empty_text"
            found.add("captions", reason)
    return found


def karpathy_ids(path: Path, splits: set[str]) -> set[int]:
    """COCO ids of some of Karpathy's parts."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return {image["cocoid"] for image in document["images"] if image["split"] in splits}


# Visual Genome ------------------------------------------------------------------------------------


def visual_genome(root: Path, held_out: set[int]) -> Found:
    """All four files."""
    found = Found()

    def load(name: str) -> Any:
        return json.loads((root / f"{name}.json").read_text(encoding="utf-8"))

    sizes: dict[int, Size] = {}
    leaked: set[int] = set()
    for record in load("image_data"):
        id_ = record.get("image_id") if isinstance(record, dict) else None
        if id_ is None:
            found.add("images", "malformed")
        elif id_ in sizes:
            found.add("images", "duplicate_image")
        else:
            sizes[id_] = (record["width"], record["height"])
            if record["coco_id"] in held_out:
                leaked.add(id_)
            found.add("images", "leak" if id_ in leaked else None)
    ids: set[tuple[int, int]] = set()
    for name, array, kind, id_key in (
        ("region_descriptions", "regions", "regions", "id"),
        ("objects", "objects", "objects", "image_id"),
    ):
        for element in load(name):
            if not isinstance(element, dict):
                found.add(kind, "malformed")
                continue
            kept: list[set[str]] = []
            for item in element[array]:
                owner = element[id_key]
                reason, clipped = _item(kind, item, sizes.get(owner), owner in leaked)
                if kind == "regions" and reason is None:
                    words = _words(item["phrase"])
                    if any(_overlap(words, other) > 0.75 for other in kept):
                        reason = "text_overlap"
                    else:
                        kept.append(words)
                if kind == "objects" and reason != "malformed":
                    ids.add((owner, item["object_id"]))
                found.add(kind, reason, clipped)
    found.unattached = sum(
        bool(item.get("attributes"))
        and (
            (element["image_id"], item["object_id"]) not in ids or element["image_id"] not in sizes
        )
        for element in load("attributes")
        for item in element["attributes"]
    )
    return found


def _item(kind: str, item: Any, size: Size | None, leaked: bool) -> tuple[str | None, bool]:
    sides = ("x", "y", "width", "height") if kind == "regions" else ("x", "y", "w", "h")
    if not isinstance(item, dict) or not all(_number(item.get(side)) for side in sides):
        return "malformed", False
    if kind == "regions":
        if not isinstance(item.get("phrase"), str):
            return "malformed", False
        text = item["phrase"]
    else:
        if not isinstance(item.get("names"), list):
            return "malformed", False
        text = item["names"][0] if item["names"] else ""
    if size is None:
        return "unknown_image", False
    if leaked:
        return "leak", False
    return _box([item[side] for side in sides], size, False, not _clean(text))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower()))


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


# Lists --------------------------------------------------------------------------------------------


def _is_url(text: Any) -> bool:
    return isinstance(text, str) and re.match(r"https?://[\w.-]+/", text) is not None


def sbu(path: Path) -> Found:
    """Three parallel arrays; one image an address."""
    document = json.loads(path.read_text(encoding="utf-8"))
    found, seen = Found(), set()
    assert len({len(column) for column in document.values()}) == 1
    for url, caption in zip(document["image_urls"], document["captions"], strict=True):
        good = _is_url(url)
        if not good:
            found.add("images", "malformed")
        elif url not in seen:
            found.add("images", None)
            seen.add(url)
        text = _clean(caption) if isinstance(caption, str) and good else None
        found.add("captions", "malformed" if text is None else None if text else "empty_text")
    return found


def tsv(path: Path, url_first: bool) -> Found:
    """Lines of two columns; one image an address."""
    found, seen = Found(), set()
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b""
    for line in lines:
        try:
            columns = line.decode("utf-8").split("\t")
        except UnicodeDecodeError:
            columns = []
        url, caption = (columns if url_first else columns[::-1]) if len(columns) == 2 else ("", "")
        if not _is_url(url):
            found.add("images", "malformed")
            continue
        if url not in seen:
            found.add("images", None)
            seen.add(url)
        found.add("captions", None if _clean(caption) else "empty_text")
    return found


def openimages(root: Path) -> Found:
    """Boxes are fractions of images that no list names."""
    found, seen = Found(), set()
    classes = (root / "class-descriptions-boxable.csv").read_text().splitlines()
    names = {line.split(",", 1)[0] for line in classes}
    rows = (root / "train-annotations-bbox.csv").read_bytes().splitlines()
    header = rows[0].decode().split(",")
    for line in rows[1:]:
        fields = line.decode("utf-8", "replace").split(",")
        row = dict(zip(header, fields, strict=False))
        clipped, reason = False, None
        named = len(fields) == len(header) and re.fullmatch("[0-9a-f]{16}", row["ImageID"])
        if named and row["ImageID"] not in seen:
            seen.add(row["ImageID"])
            found.add("images", None)
        try:
            x0, x1, y0, y1 = (float(row[side]) for side in ("XMin", "XMax", "YMin", "YMax"))
        except ValueError:
            named = None
        if not named:
            reason = "malformed"
        elif row["LabelName"] not in names:
            reason = "unknown_category"
        else:
            box = (x0, y0, x1 - x0, y1 - y0)
            reason, clipped = _box(box, (1.0, 1.0), row["IsGroupOf"] == "1", False)
        found.add("objects", reason, clipped)
    return found
