"""OpenImages, versions 4 to 7: boxes of some 600 classes.

Files: ``train-annotations-bbox.csv`` (13 columns) or ``oidv6-train-annotations-bbox.csv`` (21; read
by name, so either will do), in the root or in ``annotations/``; ``class-descriptions-boxable.csv``
(no header) or ``oidv6-…`` (with one). The folders that FiftyOne writes are found too. Images:
``train/<ImageID>.jpg``, ``validation/…``, ``test/…``.

Boxes are fractions of the image. They refer to the pixels as they are stored: the CSV was made
without regard to EXIF orientation, so these images must never be turned by it.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.errors import UserError
from xvlm_data.raw.csv_lines import CsvBlock, CsvHeader, parse_lines, read_header, to_floats
from xvlm_data.raw.files import find_file, find_optional, open_raw
from xvlm_data.reading import Records
from xvlm_data.records import OBJECT, Sink
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.image_paths import as_lists, joined
from xvlm_data.sources.questions import pick_split
from xvlm_data.storage import AnyPath
from xvlm_data.text import category_text

_PARTS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_SIDES = ("XMin", "XMax", "YMin", "YMax")
_COLUMNS = ("ImageID", "LabelName", *_SIDES)
#: The full list of 20,000 classes has less than 1 MB.
_MAX_NAMES = 64 << 20
_HEX = np.zeros(256, np.uint8)
_HEX[[ord(digit) for digit in "0123456789abcdef"]] = np.arange(16)


class OpenImages(Source):
    """See the module.

    Attributes:
        normalised_boxes: x, y, w, h of the records are fractions of the image.
        stored_pixels: boxes refer to the stored pixels, whatever EXIF says.
    """

    name = "openimages"
    licence = "annotations CC BY 4.0 (Google LLC); images listed as CC BY 2.0, to be verified"
    citation = citations.OPEN_IMAGES
    homepage = "https://storage.googleapis.com/openimages/web/index.html"
    merge_images = True
    normalised_boxes = True
    stored_pixels = True

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        part = pick_split(self.name, request.split, _PARTS)
        path = _find_boxes(request, part)
        names = _class_names(request, part, path)
        folders = _image_folders(request.root, part)
        convert = _Converter(
            read_header(path, _COLUMNS, ["IsGroupOf"]),
            names,
            folders,
            records.part(path, "line {line}"),
        )
        records.read_lines(path, convert)


@dataclass(frozen=True)
class _Names:
    """Classes: the MID of each, and its text."""

    labels: pa.Array
    texts: pa.Array


@dataclass(frozen=True)
class _Converter:
    """Makes records of lines; workers have a copy each."""

    header: CsvHeader
    names: _Names
    folders: list[str]
    part: int

    def __call__(self, first: int, lines: list[bytes], sink: Sink) -> None:
        block = parse_lines(self.header, first, lines)
        sink.malformed(OBJECT, self.part, block.malformed)
        if len(block.lines):
            _write_block(block, self.part, self.names, self.folders, sink)


def image_keys(ids: pa.Array) -> npt.NDArray[np.int64]:
    """Join keys of ImageIDs: the 64 bits that their 16 hexadecimal digits spell, signed.

    Args:
        ids: N texts of 16 lower-case hexadecimal digits each.
    """
    fixed = ids.cast(pa.binary(16))
    letters = np.frombuffer(fixed.buffers()[1], np.uint8)[16 * fixed.offset :][: 16 * len(fixed)]
    nibbles = _HEX[letters]
    numbers: npt.NDArray[np.int64] = (nibbles[::2] << 4 | nibbles[1::2]).view(">i8")
    return numbers.astype(np.int64)


def _write_block(block: CsvBlock, part: int, names: _Names, folders: list[str], sink: Sink) -> None:
    ids = block.columns["ImageID"]
    named = pc.match_substring_regex(ids, "^[0-9a-f]{16}$")
    good = named.to_numpy(zero_copy_only=False)
    keys = image_keys(pc.if_else(named, ids, "0" * 16))
    _write_images(ids.filter(named), keys[good], block.lines[good], part, folders, sink)
    faults = _Faults(len(ids))
    faults.add(~good, "malformed", "ImageID is not 16 hexadecimal digits: ", ids)
    sides = {}
    for name in _SIDES:
        values = to_floats(block.columns[name])
        is_bad = values.is_null().to_numpy(zero_copy_only=False)
        faults.add(is_bad, "malformed", f"{name} is not a number: ", block.columns[name])
        sides[name] = values.to_numpy(zero_copy_only=False)
    crowd = np.zeros(len(ids), bool)
    if (flags := block.columns.get("IsGroupOf")) is not None:
        values = to_floats(flags).to_numpy(zero_copy_only=False)
        faults.add(
            ~np.isin(values, (-1, 0, 1)), "malformed", "IsGroupOf is not -1, 0 or 1: ", flags
        )
        crowd = values == 1
    with np.errstate(invalid="ignore"):  # infinities are numbers, and the rules reject them
        width, height = sides["XMax"] - sides["XMin"], sides["YMax"] - sides["YMin"]
    labels = block.columns["LabelName"]
    places = pc.index_in(labels, value_set=names.labels)
    unknown = places.is_null().to_numpy(zero_copy_only=False)
    faults.add(unknown, "unknown_category", "no class description has ", labels)
    sink.annotations(
        {
            "key": pa.array(keys, pa.int64(), mask=~good),
            "kind": np.full(len(ids), OBJECT, np.int8),
            "part": np.full(len(ids), part, np.int16),
            "index": block.lines,
            "text": names.texts.take(places),
            "x": sides["XMin"],
            "y": sides["YMin"],
            "w": width,
            "h": height,
            "crowd": crowd,
            "problem": faults.problems,
            "detail": faults.details,
        }
    )


class _Faults:
    """The first thing wrong with each row of a block: a problem and its detail, or null."""

    def __init__(self, length: int) -> None:
        self.problems = pa.nulls(length, pa.string())
        self.details = pa.nulls(length, pa.string())

    def add(
        self, where: npt.NDArray[np.bool_], problem: str, detail: str, values: pa.Array
    ) -> None:
        """Note a problem in some rows; the detail ends in each row's (shortened) value."""
        if where.any():
            free = pc.and_(pa.array(where), self.problems.is_null())
            shown = pc.utf8_slice_codeunits(values, 0, 40)
            self.problems = pc.if_else(free, problem, self.problems)
            self.details = pc.if_else(free, joined(detail, shown), self.details)


def _write_images(
    ids: pa.Array,
    keys: npt.NDArray[np.int64],
    lines: npt.NDArray[np.int64],
    part: int,
    folders: list[str],
    sink: Sink,
) -> None:
    """One record an image of the block, where it first appears; the builder merges blocks."""
    _, first = np.unique(keys, return_index=True)
    first.sort()
    if not len(first):
        return
    ids = ids.take(pa.array(first))
    archives = pc.utf8_slice_codeunits(ids, 0, 1)
    paths = []
    for folder in folders:
        start, digit, end = folder.partition("?")
        pieces = [start, archives, end] if digit else [folder]
        paths.append(joined(*pieces, "/", ids, ".jpg"))
    sink.images(
        {
            "key": keys[first],
            "id": joined("openimages/", ids),
            "paths": as_lists(paths),
            "part": np.full(len(first), part, np.int16),
            "index": lines[first],
        }
    )


def _image_folders(root: AnyPath, part: str) -> list[str]:
    """Where images lie; ``?`` stands for the first digit, by which archives are divided."""
    plain = [part, f"images/{part}", f"{part}/data"]
    divided = [f"{part}_?", f"{part}/{part}_?", f"images/{part}_?"]
    found = [folder for folder in plain if (root / folder).is_dir()]
    found += [folder for folder in divided if any(root.glob(f"{folder[:-1]}[0-9a-f]"))]
    return found or [part]


def _find_boxes(request: Request, part: str) -> AnyPath:
    names = [f"oidv6-{part}-annotations-bbox.csv", f"{part}-annotations-bbox.csv"]
    places = [folder + name for name in names for folder in ("", "annotations/", f"{part}/")]
    places.append(f"{part}/labels/detections.csv")
    path = find_file(request.root, places, "list of boxes")
    others = {place for place in places if (request.root / place).is_file()}
    for other in sorted(others - {path.relative_to(request.root).as_posix()}):
        request.notes.append(f"{other} is not read: {path.name} is there")
    return path


def _class_names(request: Request, part: str, boxes: AnyPath) -> _Names:
    """Names by MID, from the list of the same release as the boxes and then from the others."""
    releases = ["oidv6-", "oidv7-", ""] if boxes.name.startswith("oidv6-") else ["", "oidv7-"]
    files = [f"{release}class-descriptions-boxable.csv" for release in (*releases, "oidv6-")]
    files.append("class-descriptions.csv")
    places = [folder + name for name in files for folder in ("", "annotations/", "metadata/")]
    places += [f"{part}/metadata/classes.csv"]
    find_file(request.root, places, "class descriptions")
    names: dict[str, str] = {}
    for place in places:
        path = find_optional(request.root, [place])
        if path is not None:
            names = _read_names(path, request) | names
    return _Names(pa.array(list(names), pa.string()), pa.array(list(names.values()), pa.string()))


def _read_names(path: AnyPath, request: Request) -> dict[str, str]:
    """MID to text; a first line whose MID does not look like one is a header."""
    with request.reading(path) as advance, open_raw(path) as file:
        data = file.read(_MAX_NAMES + 1)
        advance(len(data))
    if len(data) > _MAX_NAMES:
        raise UserError(f"{path}: too large for class descriptions", "is it the right file?")
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig", "replace"), newline="")))
    except csv.Error as error:
        raise UserError(f"{path}: not class descriptions ({error})", "download it again") from error
    names: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if not row or (number == 1 and not row[0].startswith("/")):
            continue
        if len(row) < 2:
            request.notes.append(f"{path.name}: line {number} has no name: {row[0][:40]!r}")
        else:
            names.setdefault(row[0].strip(), category_text(row[1], request.slashed_names))
    return names


SOURCE = OpenImages()
