"""Which annotation files in COCO's layout are about the same images, and where these lie.

Image ids of such a file mean something within it, and in the files that are about the same images:
those of one folder and suffix, ``instances_train.json`` and ``captions_train.json``. Elsewhere the
same ids are other images: every annotation tool counts from 0 or 1 (Roboflow has
``train/_annotations.coco.json`` and ``valid/_annotations.coco.json``, each task of CVAT has its
``instances_default.json``). So files are put into *parts* before anything is read in earnest, by a
first look at the ids and file names alone.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from xvlm_data.errors import UserError
from xvlm_data.raw.json_arrays import Int64
from xvlm_data.raw.json_document import read_arrays
from xvlm_data.sources.base import Request
from xvlm_data.storage import as_path

KINDS = ("instances", "captions", "regions")
#: Folders and files of these names hold the split of that name.
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
#: Image ids below this leave room for the number of their part.
ROOM = 1 << 48
_TOLD = 5

Int64s = npt.NDArray[np.int64]
_NO_IDS: Int64s = np.zeros(0, np.int64)

#: What should be an integer; pandas makes floats of a column of them that lacks one.
JsonNumber = Int64 | float


def whole(number: JsonNumber | None) -> int | None:
    """The integer that a number is; None where it is none."""
    if number is None or isinstance(number, int):
        return number
    return int(number) if number.is_integer() else None


def image_number(number: JsonNumber) -> int | None:
    """The id of an image; None where it can be none."""
    found = whole(number)
    return found if found is not None and 0 <= found < ROOM else None


@dataclass(frozen=True)
class AnnotationFile:
    """A file that is read.

    Attributes:
        path: of it.
        base: the folder that was named, in which it was found; or its own.
    """

    path: Path
    base: Path

    @property
    def kind(self) -> str | None:
        """One of :data:`KINDS`, where its name has one."""
        kind = self.path.stem.partition("_")[0]
        return kind if kind in KINDS else None

    @property
    def suffix(self) -> str:
        """What tells parts of a folder apart: ``train2017`` of ``instances_train2017.json``."""
        return self.path.stem.partition("_")[2] if self.kind else ""


@dataclass(eq=False)
class Part:
    """Files that are about the same images.

    Attributes:
        folder: of them.
        suffix: see :class:`AnnotationFile`; of files of other names their stem, where it is needed.
        files: of the part.
        label: what ids of its images begin with, after the name of the import; "" for nothing.
        place: name of its folder, as far as it differs from those of other parts; "" for one alone.
        split: of its images, where the names tell.
    """

    folder: Path
    suffix: str
    files: list[AnnotationFile] = field(default_factory=list)
    label: str = ""
    place: str = ""
    split: str | None = None
    _ids: Int64s = field(default_factory=_NO_IDS.copy)
    _names: Int64s = field(default_factory=_NO_IDS.copy)
    _own: Int64s = field(default_factory=_NO_IDS.copy)

    def compare(self, listed: _Listed) -> tuple[Int64s, int]:
        """(ids that are another picture in a file, ascending; how many are the same one)."""
        if not len(self._ids):
            return _NO_IDS, 0
        places = np.searchsorted(self._ids, listed.ids)
        places[places == len(self._ids)] = 0
        shared = self._ids[places] == listed.ids
        same = self._names[places] == listed.names
        return listed.ids[shared & ~same], int((shared & same).sum())

    def add(self, file: AnnotationFile, listed: _Listed) -> None:
        """Take a file in; of images that are there already, nothing changes."""
        self.files.append(file)
        ids = np.concatenate([self._ids, listed.ids])
        self._ids, first = np.unique(ids, return_index=True)
        self._names = np.concatenate([self._names, listed.names])[first]
        self._own = np.concatenate([self._own, listed.own])[first]

    @property
    def has_own_ids(self) -> bool:
        """Whether all of its images are of a manifest."""
        return bool(self._own.all())

    def row_ids(self, prefix: str) -> Int64s:
        """A hash of the id of each image's row, their own ones being used."""
        made = np.fromiter(
            (hash(f"{prefix}{number}") for number in self._ids.tolist()), np.int64, len(self._ids)
        )
        return np.where(self._own, self._own, made)


@dataclass(frozen=True)
class Parts:
    """All parts.

    Attributes:
        parts: in the order of their first files.
        other_pictures: for each file, by its path, the ids that an earlier file of its part has for
            other pictures, ascending.
        own_ids: whether ``manifest_id`` of an image can be the id of its row.
        notes: what the user should know.
    """

    parts: list[Part]
    other_pictures: dict[Path, Int64s]
    own_ids: bool
    notes: list[str]


class _Named(msgspec.Struct, gc=False):
    id: JsonNumber
    file_name: str
    manifest_id: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class _Listed:
    """The images that a file lists first under each id: ids, ascending, and hashes of their names.

    64 bits of a hash are held against each other, so that nothing is kept of a name; 0 where an
    image has no id of a manifest.
    """

    ids: Int64s
    names: Int64s
    own: Int64s


def annotation_files(paths: Sequence[Path]) -> list[AnnotationFile]:
    """The files that were named; of a folder, those of :data:`KINDS` in it or its annotations/.

    Raises:
        UserError: there is nothing, or a name is no UTF-8.
    """
    found: list[AnnotationFile] = []
    for given in paths:
        path = _absolute(given)
        if path.is_dir():
            here = [
                AnnotationFile(file, path)
                for folder in (path, path / "annotations")
                for file in sorted(folder.glob("*.json"))
            ]
            named = [file for file in here if file.kind]
            if not named:
                raise UserError(
                    f"{given}: no {', '.join(f'{kind}*.json' for kind in KINDS)} in it or in its "
                    "annotations/",
                    "name the annotation files themselves",
                )
            found += named
        elif path.is_file():
            found.append(AnnotationFile(path, path.parent))
        else:
            raise UserError(f"{given}: no such file or folder", "check the path")
    once: dict[tuple[Path, str], AnnotationFile] = {}
    for file in found:
        as_path(str(file.path))  # names in it become parts of ids
        once.setdefault((file.path.parent.resolve(), file.path.name), file)
    return list(once.values())


def common_folder(files: Sequence[AnnotationFile]) -> Path:
    """The folder that holds all that were named."""
    return Path(os.path.commonpath([file.base for file in files]))


def split_of(suffix: str) -> str:
    """The split that a suffix stands for: ``train2017`` is train."""
    return re.sub(r"(19|20)\d\d$", "", suffix) or suffix


def has_own_id(manifest_id: str | None, source: str | None) -> bool:
    """Whether an image is of a manifest, which an export has written."""
    return bool(manifest_id) and str(manifest_id).startswith(f"{source}/")


def find_parts(files: Sequence[AnnotationFile], name: str, request: Request) -> Parts:
    """Put files into parts.

    Files of other names than :data:`KINDS` are about the same images as others of their folder
    unless most of the ids that they share are of other pictures (``train.json``, ``val.json``).

    Args:
        files: that are read.
        name: of the import, which ids begin with.
        request: of the build, for its progress.

    Raises:
        UserError: as `raw.json_document.read_arrays`.
    """
    parts: list[Part] = []
    other_pictures: dict[Path, Int64s] = {}
    for file in files:
        listed = _listed(file.path, request)
        part = _part_of(file, listed, parts)
        if part is None:
            part = Part(file.path.parent, file.suffix)
            parts.append(part)
        other_pictures[file.path] = part.compare(listed)[0]
        part.add(file, listed)
    if len(parts) > 1:
        _tell_apart(parts)
    own_ids, notes = _check_own_ids(parts, name)
    if len(parts) > 1 and not (own_ids and all(part.has_own_ids for part in parts)):
        labels = [prefix_of(name, part) for part in parts]
        more = f" and {len(labels) - _TOLD:,} more" if len(labels) > _TOLD else ""
        notes.append(
            f"the files are of {len(parts):,} sets of images, whose ids begin with "
            f"{', '.join(labels[:_TOLD])}{more}"
        )
    return Parts(parts, other_pictures, own_ids, notes)


def prefix_of(name: str, part: Part) -> str:
    """What the ids of a part's images begin with."""
    return f"{name}/{part.label}/" if part.label else f"{name}/"


def _listed(path: Path, request: Request) -> _Listed:
    columns: list[list[Int64s]] = [[_NO_IDS], [_NO_IDS], [_NO_IDS]]
    with request.reading(path) as advance:
        for elements in read_arrays(path, {"images": _Named}, on_bytes=advance, early=True):
            found = [
                (
                    number,
                    hash(item.file_name),
                    hash(item.manifest_id) if has_own_id(item.manifest_id, item.source) else 0,
                )
                for item in elements.items
                if (number := image_number(item.id)) is not None
            ]
            rows = np.array(found, np.int64).reshape(-1, 3)
            for column, values in zip(columns, rows.T, strict=True):
                column.append(values)
    ids, names, own = map(np.concatenate, columns)
    ids, first = np.unique(ids, return_index=True)
    return _Listed(ids, names[first], own[first])


def _part_of(file: AnnotationFile, listed: _Listed, parts: Sequence[Part]) -> Part | None:
    for part in parts:
        if part.suffix != file.suffix or not _is_same(part.folder, file.path.parent):
            continue
        other, same = part.compare(listed)
        if file.kind or same >= len(other):
            return part
    return None


def _is_same(one: Path, other: Path) -> bool:
    return one == other or one.resolve() == other.resolve()


def _tell_apart(parts: Sequence[Part]) -> None:
    """Labels, places and splits: of the suffix where that is enough, of the folder where not."""
    again = Counter((part.folder, part.suffix) for part in parts)
    by_stem = [part for part in parts if again[part.folder, part.suffix] > 1]
    for part in by_stem:
        part.suffix = part.files[0].path.stem
    _find_places(parts)
    suffixes = Counter(part.suffix for part in parts)
    places = Counter(part.place for part in parts if suffixes[part.suffix] > 1)
    taken: set[str] = set()
    for part in parts:
        label = part.suffix
        if suffixes[label] > 1:
            label = f"{part.place}/{label}" if places[part.place] > 1 else part.place
        part.label = _not_in(taken, label.strip("/"))
        taken.add(part.label)
        if len(suffixes) > 1:
            split = split_of(part.suffix)
            part.split = split if split.lower() in _SPLITS or part not in by_stem else None
        if not part.split:
            folders = reversed(part.place.split("/"))
            part.split = next((name for name in folders if name.lower() in _SPLITS), None)


def _find_places(parts: Sequence[Part]) -> None:
    """Of each part's folder what others do not have: ``a`` of ``cvat/a/annotations``."""
    folders = {part.folder: list(part.folder.parts) for part in parts}
    if len(folders) < 2:
        return
    for end in (0, -1):
        while len({names[end] for names in folders.values()}) == 1:
            if any(len(names) == 1 for names in folders.values()):
                break  # one folder lies in another
            for names in folders.values():
                del names[end]
    for part in parts:
        part.place = "/".join(folders[part.folder])


def _not_in(taken: Collection[str], label: str) -> str:
    """The label, with a number where a folder is called as a suffix is."""
    names = chain([label], (f"{label}-{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def _check_own_ids(parts: Sequence[Part], name: str) -> tuple[bool, list[str]]:
    """Whether ids of manifests tell the images of the parts apart, and what to say of them."""
    rows = [part.row_ids(prefix_of(name, part)) for part in parts]
    distinct = [np.unique(found) for found in rows]
    number = sum(map(len, distinct))
    if number > len(np.unique(np.concatenate([_NO_IDS, *distinct]))):
        return False, ["images of several files have the same manifest_id: ids are made anew"]
    if repeated := sum(map(len, rows)) - number:
        return True, [
            f"{repeated:,} images have the id of another one: "
            "`xvlm-data merge --on-repeat first` keeps one of each"
        ]
    return True, []


def folders_of(file: AnnotationFile, part: Part, root: Path, *, given: bool) -> list[str]:
    """Where pictures that a file names may lie, below the image root, in the order of looking.

    Args:
        file: that names them.
        part: of it.
        root: folder of the pictures, or the one that holds all files.
        given: the user has named the root; then pictures may lie in it, whatever file names them.
    """
    inner = ["", "images/"]
    if part.suffix:
        inner += [f"{part.suffix}/", f"images/{part.suffix}/"]

    def within(place: str | None) -> list[str]:
        return [] if place is None else [place + folder for folder in inner]

    found = within(_below(file.base, root))
    beside = _below(file.path.parent, root)
    found += [] if beside is None else [beside]
    if given and part.place:  # pictures in a part's own folder come before those of all
        found += [*within(f"{part.place}/"), *within("")]
    elif given:
        found = [*within(""), *found]
    return list(dict.fromkeys(found or within("")))


def _below(folder: Path, root: Path) -> str | None:
    """A folder as seen from the root, with a slash after it; "" for the root, None if elsewhere."""
    for one, other in ((folder, root), (folder.resolve(), root.resolve())):
        if one.is_relative_to(other):
            found = one.relative_to(other).as_posix()
            return "" if found == "." else f"{found}/"
    return None


def _absolute(path: Path) -> Path:
    """From the root on, without ``..``; links keep the names that they were given."""
    if ".." not in path.parts:
        return path.absolute()
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name
