"""Writing a manifest in the layout of COCO, which most tools of detection read.

``annotations/instances.json`` has the objects (the texts are the categories), ``captions.json`` the
whole-image texts, and ``regions.json`` the regions: boxes of the one category "region", each with a
``caption`` of its own. All three list all images. Keys beyond COCO's (``manifest_id``, ``source``,
``split`` of an image, ``attribute_names`` of an annotation) are what an import needs to bring
everything back; other tools pass over them. (``attributes`` is a mapping to CVAT and FiftyOne.)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data import __version__
from xvlm_data.formats.concepts import checked_concepts
from xvlm_data.formats.pictures import picture
from xvlm_data.formats.staging import Exported, OnBroken, new_folder
from xvlm_data.formats.xvlm_jsonl import pixel_boxes
from xvlm_data.images.decode import ImageError
from xvlm_data.manifest import Manifest
from xvlm_data.schema import GRANULARITIES, IMAGE, OBJECT, REGION
from xvlm_data.verbs.choose import Advance

IMAGES_FOLDER = "images"
FILES = {OBJECT: "instances", IMAGE: "captions", REGION: "regions"}
_REGION_CATEGORY = {"id": 1, "name": "region", "supercategory": ""}
_NO_BOX = (0.0, 0.0, 0.0, 0.0)
_JSON = msgspec.json.Encoder()


def export_coco(
    manifest: Manifest,
    out: Path,
    *,
    images: Literal["auto", "copy"] = "auto",
    on_broken: OnBroken = "refuse",
    advance: Advance = lambda rows: None,
) -> Exported:
    """Write a manifest in COCO's layout.

    Args:
        manifest: written.
        out: a new folder: ``annotations/``, and ``images/`` where pictures are written.
        images: ``auto`` writes embedded pictures, and names the files of referenced ones relative
            to their image root; ``copy`` writes both.
        on_broken: what to do about pictures that have to be read and cannot.
        advance: told of each row.

    Raises:
        UserError: something lies at ``out``; a picture is missing or broken; or a concept lacks
            what it is made of.
        ManifestError: a file of the manifest is damaged.
    """
    done = Exported()
    own_numbers, repeated = _have_numbers(manifest)
    if repeated:
        done.notes.append(
            f"{repeated:,} images have the id of another one: all are numbered anew, "
            "and `manifest_id` tells their ids"
        )
    with new_folder(out) as folder, ExitStack() as stack:
        (folder / "annotations").mkdir()
        writers = {
            name: stack.enter_context(_File(folder / "annotations" / f"{file}.json"))
            for name, file in FILES.items()
        }
        referenced = False
        categories: dict[str, int] = {}
        for number, row in enumerate(manifest, 1):
            advance(1)
            image_id = int(row["id"].rpartition("/")[2]) if own_numbers else number
            try:
                placed = _place(row, image_id, manifest, folder, images)
            except ImageError as error:
                done.broken(row, error, on_broken)
                continue
            referenced |= not placed.written
            image = {
                "id": image_id,
                "file_name": placed.name,
                "width": placed.size[0],
                "height": placed.size[1],
                "manifest_id": row["id"],
                "source": row["source"],
                "split": row["split"],
            }
            for writer in writers.values():
                writer.image(image)
            for granularity, annotation in _annotations(row, image_id, placed.size, categories):
                writers[granularity].annotation(annotation)
            done.images += 1
            done.turned += placed.turned
            done.concepts.update(c["granularity"] for c in row["concepts"] or ())
        about = {
            "description": str(manifest.info.get("name") or ""),
            "version": f"xvlm {__version__}",
            "licence": manifest.info.get("licence"),
            "citation": manifest.info.get("citation"),
        }
        known = [{"id": i, "name": name, "supercategory": ""} for name, i in categories.items()]
        writers[OBJECT].finish(about, known)
        writers[REGION].finish(about, [_REGION_CATEGORY])
        writers[IMAGE].finish(about, None)
    root = manifest.image_root or manifest.info.get("image_root")
    if referenced:
        done.notes.append(
            f"no referenced picture was copied: file names are relative to {root or 'nothing'}"
        )
        if (out / IMAGES_FOLDER).is_dir():
            done.notes.append("other pictures are in images/; --images copy puts all of them there")
    names = dict.fromkeys(further.name for shard in manifest.shards for further in shard.further)
    if names:
        done.notes.append(f"not in the format, so left out: {', '.join(names)}")
    return done


def _have_numbers(manifest: Manifest) -> tuple[bool, int]:
    """Whether images can keep their numbers, COCO's own, and how many are left without for repeats.

    They can where ids are of one source and end in numbers, none of which comes twice.
    """
    sources: set[str] = set()
    numbers = [np.zeros(0, np.int64)]
    for batch in manifest.batches(["id"], 65536):
        parts = pc.extract_regex(
            batch.column(0).cast(pa.string()), r"^(?P<source>.*)/(?P<number>[1-9][0-9]{0,14})$"
        )
        if parts.null_count:
            return False, 0
        sources.update(pc.unique(pc.struct_field(parts, "source")).to_pylist())
        if len(sources) > 1:
            return False, 0
        numbers.append(pc.struct_field(parts, "number").cast(pa.int64()).to_numpy())
    every = np.concatenate(numbers)
    repeated = len(every) - len(np.unique(every))
    return not repeated, repeated


@dataclass(frozen=True)
class _Placed:
    """Where a row's picture is.

    Attributes:
        name: relative to ``images/`` if it was written there, otherwise to the image root.
        size: (width, height) of the pixels.
        written: whether it was.
        turned: whether it had to be turned.
    """

    name: str
    size: tuple[int, int]
    written: bool
    turned: bool = False


def _place(
    row: dict[str, Any], image_id: int, manifest: Manifest, folder: Path, images: str
) -> _Placed:
    # Other writers say null where a size is not known; ours say 0.
    cell, size = row["image"] or {}, (row["width"] or 0, row["height"] or 0)
    written = images == "copy" or cell.get("bytes") is not None
    if not written and min(size) > 0:
        return _Placed(_relative(cell.get("path"), manifest), size, written)
    found = picture(cell, *size)
    size = (found.width, found.height)
    if not written:
        return _Placed(_relative(cell.get("path"), manifest), size, written)
    name = f"{image_id:012d}.{found.extension}"
    (folder / IMAGES_FOLDER).mkdir(exist_ok=True)
    (folder / IMAGES_FOLDER / name).write_bytes(found.data)
    return _Placed(name, size, written, found.turned)


def _relative(path: str | None, manifest: Manifest) -> str:
    if not path:
        raise ImageError("missing_image", "the row has neither image bytes nor a path")
    root = manifest.image_root or manifest.info.get("image_root")
    if root and path.startswith(f"{root.rstrip('/')}/"):
        return os.path.relpath(path, root)
    return path


def _annotations(
    row: dict[str, Any], image_id: int, size: tuple[int, int], categories: dict[str, int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    concepts = checked_concepts(row)
    pixels = pixel_boxes(np.array([c["box"] or _NO_BOX for c in concepts]).reshape(-1, 4), size)
    for concept, box in zip(concepts, pixels.tolist(), strict=True):
        granularity, text = concept["granularity"], concept["text"]
        if granularity == IMAGE:
            yield IMAGE, {"image_id": image_id, "caption": text}
            continue
        found = {
            "image_id": image_id,
            "category_id": 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "segmentation": [],
        }
        if granularity == OBJECT:
            found["category_id"] = categories.setdefault(text, len(categories) + 1)
        else:
            found["caption"] = text
        if attributes := [text for text in concept["attributes"] or () if text is not None]:
            found["attribute_names"] = attributes
        yield granularity if granularity in GRANULARITIES else REGION, found


@dataclass
class _File:
    """A COCO document that is written as it comes: images into it, annotations beside it."""

    path: Path
    _images: BinaryIO = field(init=False)
    _annotations: BinaryIO = field(init=False)
    _count: int = 0
    _first: bool = True

    def __enter__(self) -> _File:
        self._images = self.path.open("wb")
        self._annotations = self.path.with_suffix(".part").open("w+b")
        self._images.write(b'{"images": [')
        return self

    def __exit__(self, *_: object) -> None:
        self._images.close()
        self._annotations.close()
        self.path.with_suffix(".part").unlink()

    def image(self, image: dict[str, Any]) -> None:
        self._images.write((b"" if self._first else b",") + b"\n" + _JSON.encode(image))
        self._first = False

    def annotation(self, annotation: dict[str, Any]) -> None:
        self._count += 1
        line = _JSON.encode({"id": self._count, **annotation})
        self._annotations.write((b"," if self._count > 1 else b"") + b"\n" + line)

    def finish(self, about: dict[str, Any], categories: list[dict[str, Any]] | None) -> None:
        self._images.write(b'\n], "annotations": [')
        self._annotations.seek(0)
        shutil.copyfileobj(self._annotations, self._images, 1 << 20)
        self._images.write(b'\n], "licenses": [], "info": ' + _JSON.encode(about))
        if categories is not None:
            self._images.write(b', "categories": ' + _JSON.encode(categories))
        self._images.write(b"}\n")
