"""Flickr30K: five captions an image, and with Flickr30K Entities the boxes of their phrases.

Files: Karpathy's ``dataset_flickr30k.json``, whose splits are train, val and test; images in
``flickr30k-images/`` or ``images/``. Where ``Sentences/`` and ``Annotations/`` of Entities lie in
the root (or in ``entities/``), phrases with a box are regions, and the column ``phrases`` has them
all with all their boxes (:mod:`xvlm_data.sources.flickr30k_entities`).

Entities has splits of its own, and phrase grounding is evaluated on those: ``entities-test`` is its
``test.txt``; captions then are its tokenised sentences, without the marks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from xvlm_data.errors import UserError
from xvlm_data.raw.files import check_root, find_file
from xvlm_data.raw.json_arrays import Int64
from xvlm_data.reading import Records
from xvlm_data.records import CAPTION, pixel_sides
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.flickr30k_entities import PHRASES, Entities, EntitiesFolder
from xvlm_data.sources.questions import Later, convert_each, pick_split
from xvlm_data.sources.url_list import image_key
from xvlm_data.storage import AnyPath

_SPLITS = {name: name for name in ("train", "val", "test")}
_LISTS = {f"entities-{name}": f"{name}.txt" for name in _SPLITS}
_FOLDERS = ("flickr30k-images", "flickr30k_images", "images", "flickr30k_images/flickr30k_images")
#: Images whose annotations are in memory as objects at a time.
_BATCH = 2000


class _Image(msgspec.Struct, gc=False):
    filename: str
    split: str
    sentences: list[Any] = []


class _Sentence(msgspec.Struct, gc=False):
    raw: str
    sentid: Int64 | None = None


class _Sentences(msgspec.Struct):
    sentences: list[msgspec.Raw] = []


@dataclass
class _Caption:
    index: int
    sub: int
    text: str | None
    number: int | None = None
    wrong: str | None = None


@dataclass
class _Picture:
    """An image as a list names it; ``number`` is its Flickr id where the name is one."""

    name: str
    index: int
    problem: str | None = None
    captions: list[_Caption] = field(default_factory=list)

    @property
    def number(self) -> int | None:
        match = re.fullmatch(r"(\d{1,18})\.jpg", self.name, re.ASCII)
        return int(match[1]) if match else None

    @property
    def key(self) -> int:
        number = self.number
        return image_key(self.name) if number is None else number


class Flickr30k(Source):
    """See the module.

    Attributes:
        evaluation: every phrase counts, so that no rule that is a choice applies by itself.
        extra: the column ``phrases``.
    """

    name = "flickr30k"
    licence = (
        "images: non-commercial research and education only, Flickr terms; captions: cite the "
        "authors"
    )
    citation = citations.FLICKR30K
    homepage = "https://shannon.cs.illinois.edu/DenotationGraph"
    evaluation = True
    extra = PHRASES

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        check_root(request.root)
        pick_split(self.name, request.split, _SPLITS | _LISTS)
        entities = EntitiesFolder.find(request.root)
        if entities is not None:
            for folder in ("Sentences", "Annotations"):
                request.inputs.append(entities.root / folder)
        later = Later()
        if request.split in _LISTS:
            pictures, part, captions = _read_list(request, records, entities)
        else:
            pictures, part, captions = _read_karpathy(request, records, later)
            if entities is None:
                request.notes.append("no Flickr30K Entities: the manifest has no regions")
        _write(pictures, part, captions, entities, request.root, records, later)
        records.images_complete()
        later.write(records)
        if entities is not None:
            request.notes.extend(entities.notes())


def _read_karpathy(
    request: Request, records: Records, later: Later
) -> tuple[Iterator[_Picture], int, int]:
    """(pictures, part of images, part of captions) of Karpathy's list."""
    name = "dataset_flickr30k.json"
    path = find_file(
        request.root, [name, f"karpathy/{name}", f"annotations/{name}"], "Karpathy's split"
    )
    part = records.part(path, "images[{index}]")
    captions_part = records.part(path, "images[{index}].sentences[{sub}]")

    def pictures() -> Iterator[_Picture]:
        for elements in request.arrays(path, {"images": _Image}):
            records.malformed_images(part, elements.malformed)
            for index, why, text in elements.malformed:
                _write_captions(_unread(index, why, text), [], captions_part, later)
            for index, item in zip(elements.indices, elements.items, strict=True):
                problem = None if item.split == request.split else "other_split"
                yield _Picture(item.filename, index, problem, _captions(index, item.sentences))

    return pictures(), part, captions_part


def _captions(index: int, items: list[Any]) -> list[_Caption]:
    values, wrong = convert_each(items, _Sentence)
    return [
        _Caption(index, sub, None, wrong=why)
        if item is None
        else _Caption(index, sub, item.raw, item.sentid)
        for sub, (item, why) in enumerate(zip(values, wrong, strict=True))
    ]


def _unread(index: int, why: str, text: bytes) -> list[_Caption]:
    """The captions of an image that cannot be read; they are records too."""
    try:
        count = len(msgspec.json.decode(text, type=_Sentences).sentences)
    except (ValueError, RecursionError):
        return []
    return [_Caption(index, sub, None, wrong=f"its image: {why}") for sub in range(count)]


def _read_list(
    request: Request, records: Records, entities: EntitiesFolder | None
) -> tuple[Iterator[_Picture], int, int]:
    """(pictures, part of images, part of captions) of a split of Entities."""
    if entities is None:
        raise UserError(
            f"{request.root}: no Sentences/ and Annotations/ of Flickr30K Entities",
            "unpack its annotations.zip there",
        )
    name = _LISTS[request.split]
    folder = entities.root.relative_to(request.root).as_posix()
    path = find_file(
        request.root, [name, f"{folder}/{name}", f"entities_splits/{name}"], "split of Entities"
    )
    part = records.part(path, "line {line}")

    def pictures() -> Iterator[_Picture]:
        for first, lines in request.lines(path):
            for index, line in enumerate(lines, first):
                text = line.strip().decode("ascii", "replace").removesuffix(".jpg")
                if re.fullmatch(r"\d{1,18}", text, re.ASCII):
                    yield _Picture(f"{text}.jpg", index)
                elif text:
                    records.malformed_images(part, [(index, f"no Flickr id: {text[:40]!r}", line)])

    return pictures(), part, -1


def _write(
    pictures: Iterator[_Picture],
    part: int,
    captions_part: int,
    entities: EntitiesFolder | None,
    root: AnyPath,
    records: Records,
    later: Later,
) -> None:
    folders = [folder for folder in _FOLDERS if (root / folder).is_dir()] or [_FOLDERS[0]]
    parts = entities.parts(records) if entities else (-1, -1, -1)
    while batch := list(islice(pictures, _BATCH)):
        annotated = [
            entities.read(picture.number)
            if entities is not None and picture.problem is None and picture.number is not None
            else None
            for picture in batch
        ]
        sizes = [a.boxes.size or (0, 0) if a else (0, 0) for a in annotated]
        records.images(
            {
                "key": [picture.key for picture in batch],
                "id": [f"flickr30k/{_stem(picture.name)}" for picture in batch],
                "paths": [[f"{folder}/{p.name}" for folder in folders] for p in batch],
                "width": pixel_sides([width for width, _ in sizes]),
                "height": pixel_sides([height for _, height in sizes]),
                "part": [part] * len(batch),
                "index": [picture.index for picture in batch],
                "problem": [picture.problem for picture in batch],
            }
        )
        if captions_part < 0:
            captions = [_own_captions(p, a) for p, a in zip(batch, annotated, strict=True)]
        else:
            captions = [picture.captions for picture in batch]
        keys = [p.key for p, some in zip(batch, captions, strict=True) for _ in some]
        flat = [caption for some in captions for caption in some]
        _write_captions(flat, keys, parts[0] if captions_part < 0 else captions_part, later)
        if entities is not None:
            rows = [
                (p.key, p.number, a)
                for p, a in zip(batch, annotated, strict=True)
                if a is not None and p.number is not None
            ]
            entities.write(rows, parts, later)


def _own_captions(picture: _Picture, entities: Entities | None) -> list[_Caption]:
    if entities is None or picture.number is None:
        return []
    return [_Caption(picture.number, sub, text) for sub, text in enumerate(entities.captions)]


def _write_captions(
    captions: Sequence[_Caption], keys: Sequence[int], part: int, later: Later
) -> None:
    if captions:
        later.annotations(
            {
                "key": list(keys) or [None] * len(captions),
                "kind": [CAPTION] * len(captions),
                "part": [part] * len(captions),
                "index": [caption.index for caption in captions],
                "sub": [caption.sub for caption in captions],
                "annotation_id": [caption.number for caption in captions],
                "text": [caption.text for caption in captions],
                "problem": ["malformed" if caption.wrong else None for caption in captions],
                "detail": [caption.wrong for caption in captions],
            }
        )


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0]


SOURCE = Flickr30k()
