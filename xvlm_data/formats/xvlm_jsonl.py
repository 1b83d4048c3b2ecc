"""The JSON lines that the original X-VLM code pre-trains from: written and read.

A line is an image::

    {"binary": "<base64>", "caption": ["…", "…"],
     "elems": [{"caption": "dog", "attributes": ["brown"], "bb": [x, y, w, h]}, …]}

``caption`` is a whole-image text or a list of which one is drawn each time; so is an element's.
``bb`` is in pixels of the *stored* picture (the original opens it without looking at EXIF), from
its top left corner; the original cuts the numbers to integers, and refuses a box that is then empty
or leaves the picture. ``attributes`` are there only where there are any. With
``is_image_rpath: True`` the line has a path where the base64 is.

The original wants a caption in every line of ``train_file`` and an element in every line of
``train_file_regions``, and a line may serve both; so what a line has decides its folder.
The keys ``id``, ``source``, ``split`` and an element's ``granularity`` are ours, which it ignores.
"""

from __future__ import annotations

import json
from base64 import b64encode
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from xvlm_data.errors import UserError
from xvlm_data.formats.concepts import checked_concepts
from xvlm_data.formats.pictures import Picture, picture
from xvlm_data.formats.staging import Exported, OnBroken, new_folder
from xvlm_data.images.decode import ImageError
from xvlm_data.manifest import Manifest
from xvlm_data.schema import IMAGE
from xvlm_data.verbs.choose import Advance

#: Where a line goes, by whether it has (captions, elements).
FOLDERS = {
    (True, True): "captions_regions",
    (True, False): "captions",
    (False, True): "regions",
    (False, False): "images",
}
CONFIG_NAME = "data.yaml"


def export_jsonl(
    manifest: Manifest,
    out: Path,
    *,
    images: Literal["base64", "path"] = "base64",
    files: int = 64,
    integer_boxes: bool = False,
    on_broken: OnBroken = "refuse",
    advance: Advance = lambda rows: None,
) -> Exported:
    """Write a manifest as JSON lines for the original code.

    Args:
        manifest: written.
        out: a new folder: ``captions/``, ``regions/``, ``captions_regions/`` (see the module),
            and ``data.yaml`` with what goes into the original's configuration.
        images: the pictures themselves, or their paths.
        files: that the lines of a folder are dealt to. The original gives whole files to its GPUs
            and workers, so it wants at least one for each.
        integer_boxes: make boxes whole pixels, outwards, instead of leaving that to the original,
            which cuts them off.
        on_broken: what to do about pictures that cannot be read.
        advance: told of each row.

    Raises:
        UserError: something lies at ``out``; or a picture is missing or broken.
        ManifestError: a file of the manifest is damaged.
    """
    done = Exported()
    thin = 0
    with new_folder(out) as folder, ExitStack() as stack:
        dealers = {name: _Dealer(folder / name, files, stack) for name in FOLDERS.values()}
        for row in manifest:
            advance(1)
            try:
                found = _picture(row, images)
            except ImageError as error:
                done.broken(row, error, on_broken)
                continue
            line = _line(row, found, images, integer_boxes)
            thin += sum(min(elem["bb"][2:]) < 1 for elem in line.get("elems", ()))
            place = FOLDERS["caption" in line, "elems" in line]
            dealers[place].write(json.dumps(line).encode())
            done.images += 1
            done.turned += found.turned
            done.concepts.update(c["granularity"] for c in row["concepts"] or ())
        written = {name: dealer.lines for name, dealer in dealers.items() if dealer.lines}
        (folder / CONFIG_NAME).write_text(_config(out, written, images))
    if thin:
        done.notes.append(
            f"{thin:,} boxes are less than a pixel wide or high: the original cuts them to nothing "
            "and may drop their images; --integer-boxes widens them"
        )
    if further := [field.name for shard in manifest.shards for field in shard.further]:
        done.notes.append(f"not in the format, so left out: {', '.join(dict.fromkeys(further))}")
    done.notes.append(f"what goes into the original's configuration is in {out / CONFIG_NAME}")
    return done


class _Dealer:
    """Deals lines to the files of a folder, one after the other."""

    def __init__(self, folder: Path, files: int, stack: ExitStack) -> None:
        self._folder, self._count, self._stack = folder, files, stack
        self._files: list[BinaryIO] = []
        self.lines = 0

    def write(self, line: bytes) -> None:
        if self.lines < self._count:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"part-{self.lines:05d}.jsonl"
            self._files.append(self._stack.enter_context(path.open("wb")))
        self._files[self.lines % self._count].write(line + b"\n")
        self.lines += 1


def _picture(row: dict[str, Any], images: str) -> Picture:
    cell = row["image"] or {}
    found = picture(cell, row["width"], row["height"])
    if images == "path" and cell.get("bytes") is not None:
        raise UserError(f"{row['id']}: its picture is in the manifest", "use --images base64")
    if images == "path" and found.turned:
        raise ImageError(
            "turned", f"{cell['path']}: turned by its EXIF orientation, which the original ignores"
        )
    return found


def _line(row: dict[str, Any], found: Picture, images: str, integer_boxes: bool) -> dict[str, Any]:
    line: dict[str, Any] = {key: row[key] for key in ("id", "source", "split")}
    if images == "path":
        line["image"] = str(Path(row["image"]["path"]).absolute())
    else:
        line["binary"] = b64encode(found.data).decode()
    concepts = checked_concepts(row)
    if captions := [c["text"] for c in concepts if c["granularity"] == IMAGE]:
        line["caption"] = captions
    boxed = [c for c in concepts if c["granularity"] != IMAGE]
    if boxed:
        size = (found.width, found.height)
        boxes = pixel_boxes(np.array([c["box"] for c in boxed]), size, outwards=integer_boxes)
        line["elems"] = [
            {
                "caption": concept["text"],
                # The original draws one of them, so an empty list is an error there.
                **({"attributes": attributes} if (attributes := _attributes(concept)) else {}),
                "bb": box,
                "granularity": concept["granularity"],
            }
            for concept, box in zip(boxed, boxes.tolist(), strict=True)
        ]
    return line


def _attributes(concept: dict[str, Any]) -> list[str]:
    return [text for text in concept["attributes"] or () if text is not None]


def pixel_boxes(
    boxes: npt.NDArray[np.float64], size: tuple[int, int], *, outwards: bool = False
) -> npt.NDArray[np.float64] | npt.NDArray[np.int64]:
    """``[N, 4]`` (x, y, w, h) in pixels of (cx, cy, w, h) in [0, 1].

    Args:
        boxes: ``[N, 4]``.
        size: (width, height) of their image.
        outwards: whole pixels that cover the box, within the image.
    """
    scale = np.array(size, np.float64)
    low = np.clip((boxes[:, :2] - boxes[:, 2:] / 2) * scale, 0, None)
    sides = boxes[:, 2:] * scale
    if not outwards:
        return np.concatenate([low, sides], axis=1)
    # A corner that is a whole pixel but for the rounding of float32 is meant to be one.
    first = np.floor(low + 1e-3).clip(0, scale - 1)
    last = np.ceil(low + sides - 1e-3).clip(first + 1, scale)
    return np.concatenate([first, last - first], axis=1).astype(np.int64)


def _config(out: Path, written: dict[str, int], images: str) -> str:
    """What of the original's ``Pretrain_*.yaml`` is about these files."""

    def paths(*names: str) -> str:
        here = [str((out / name).absolute()) for name in names if name in written]
        return json.dumps(here)

    captioned = sum(written.get(name, 0) for name in ("captions", "captions_regions"))
    key = f'image_key: "{"image" if images == "path" else "binary"}"'
    settings = f"{key}, is_image_rpath: {images == 'path'}, caption_key: caption, tokenized: False"
    return (
        "# Put these into the original's configs/Pretrain_XVLM_base_4m.yaml.\n"
        f"train_file: {paths('captions', 'captions_regions')}\n"
        f"train_dataset_size: {captioned}\n"
        f"images: {{{settings}, batch_size: 128, num_workers: 4}}\n"
        f"train_file_regions: {paths('regions', 'captions_regions')}\n"
        f"regions: {{{settings}, iter_perc: 0.5, batch_size: 128, max_images: 48, max_regions: 5, "
        "min_perc_in_image: 0.5, num_workers: 4}\n"
    )
