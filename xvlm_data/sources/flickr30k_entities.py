"""Flickr30K Entities: which words of a caption mean which boxes.

Files: ``Sentences/<id>.txt``, a caption a line with phrases as ``[/EN#<chain>/<type>… words]``, and
``Annotations/<id>.xml``, the boxes of each chain of phrases that mean the same. Chain 0 is nothing
to be seen; a chain without a box is a whole scene, or was not drawn.

Corners are 1-based and inclusive, as MATLAB counts pixels: a box from 1 to 2 begins at 0 and is two
pixels wide.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

import msgspec
import numpy as np
import pyarrow as pa

from xvlm_data.reading import Records
from xvlm_data.records import REGION
from xvlm_data.sources.questions import TakesAnnotations, write_questions
from xvlm_data.storage import AnyPath
from xvlm_data.text import normalise_texts

#: The column ``phrases``: one element a phrase of a caption, in raw order, also without boxes. A
#: region has one box, but a phrase such as "two men" may mean several, which evaluation must know.
PHRASES = pa.field(
    "phrases",
    pa.list_(
        pa.struct(
            [
                pa.field("sentence", pa.int32()),  # which caption, from 0
                pa.field("chain", pa.string()),
                pa.field("types", pa.list_(pa.string())),
                pa.field("text", pa.string()),
                pa.field("boxes", pa.list_(pa.list_(pa.float64()))),  # x, y, w, h in pixels
            ]
        )
    ),
)

_FOLDERS = ("", "entities", "flickr30k_entities", "Flickr30kEntities", "annotations")
#: Official files have some KB.
_MAX_FILE = 4 << 20
_START = "[/EN#"
_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^\s/\]]+)+) ([^\[\]]*)\]")

Box = tuple[float, float, float, float]


@dataclass
class Phrase:
    """Some words of a caption; ``wrong`` says why they cannot be read."""

    sentence: int
    chain: str = ""
    types: Sequence[str] = ()
    text: str = ""
    wrong: str | None = None


@dataclass
class Boxes:
    """What an XML file says: the image's size, and boxes (x, y, w, h) by chain.

    ``missing`` and ``wrong`` say why there are none, of the file or by chain.
    """

    size: tuple[int, int] | None = None
    by_chain: dict[str, list[Box]] = field(default_factory=dict)
    wrong_chains: dict[str, str] = field(default_factory=dict)
    missing: str | None = None
    wrong: str | None = None


@dataclass
class Entities:
    """The annotations of one image: its captions without marks, their phrases, the boxes."""

    captions: list[str]
    phrases: list[Phrase]
    boxes: Boxes


class EntitiesFolder:
    """The release on disk.

    Attributes:
        root: the folder that holds Sentences/ and Annotations/.
        counts: of images without sentences, and of phrases by what they have no box for.
    """

    def __init__(self, root: AnyPath) -> None:
        self.root = root
        self.counts: Counter[str] = Counter()

    @classmethod
    def find(cls, root: AnyPath) -> EntitiesFolder | None:
        """The release within a folder, or None where there is none."""
        places = [root / folder for folder in _FOLDERS]
        found = [p for p in places if (p / "Sentences").is_dir() and (p / "Annotations").is_dir()]
        return cls(found[0]) if found else None

    def read(self, number: int) -> Entities:
        """The annotations of the image with this Flickr id."""
        data = _read_small(self.root / "Sentences" / f"{number}.txt")
        if data is None:
            self.counts["images without sentences"] += 1
            return Entities([], [], Boxes())
        lines = _decoded(data).splitlines()
        phrases = [phrase for n, line in enumerate(lines) for phrase in parse_phrases(line, n)]
        captions = [_PHRASE.sub(r"\3", line) for line in lines]
        return Entities(captions, phrases, read_boxes(self.root / "Annotations" / f"{number}.xml"))

    def parts(self, records: Records) -> tuple[int, int, int]:
        """Parts of captions, of phrases as regions, and of phrases as such."""
        sentences = self.root / "Sentences"
        return (
            records.part(sentences, "{index}.txt sentence {sub}"),
            records.part(sentences, "{index}.txt phrase {sub}"),
            records.part(sentences, "{index}.txt phrase {sub}"),
        )

    def write(
        self,
        images: Sequence[tuple[int, int, Entities]],
        parts: tuple[int, int, int],
        records: TakesAnnotations,
    ) -> None:
        """One element of ``phrases`` a phrase, and a region where it has a box.

        The region of a phrase with several boxes is the smallest around them: it is what the words
        describe, and any one of the boxes is not.

        Args:
            images: (join key, Flickr id, annotations) of each.
            parts: from :meth:`parts`.
            records: where to.
        """
        phrases = [phrase for _, _, entities in images for phrase in entities.phrases]
        texts = normalise_texts(pa.array([phrase.text for phrase in phrases], pa.string()))
        for phrase, text in zip(phrases, texts.to_pylist(), strict=True):
            phrase.text = text  # in the column as in the regions
        rows = [
            (key, number, sub, phrase, *_resolve(phrase, entities.boxes))
            for key, number, entities in images
            for sub, phrase in enumerate(entities.phrases)
        ]
        for _, _, _, phrase, boxes, problem, _ in rows:
            if not boxes and problem is None:
                kind = "not to be seen" if phrase.chain == "0" else "a scene or not drawn"
                self.counts[f"phrases without box: {kind}"] += 1
        _write_regions([row for row in rows if row[4] or row[5]], parts[1], records)
        write_questions(
            records,
            parts[2],
            [row[1] for row in rows],
            [row[0] for row in rows],
            [row[3].text or "a phrase" for row in rows],
            [_element(row[3], row[4]) for row in rows],
            sub=[row[2] for row in rows],
            problem=[row[5] for row in rows],
            detail=[row[6] for row in rows],
        )

    def notes(self) -> list[str]:
        """What was counted, for the user."""
        return [f"Entities: {count:,} {what}" for what, count in sorted(self.counts.items())]


Row = tuple[int, int, int, Phrase, list[Box], str | None, str | None]


def _resolve(phrase: Phrase, boxes: Boxes) -> tuple[list[Box], str | None, str | None]:
    """(boxes of a phrase, problem, detail)."""
    if phrase.wrong:
        return [], "malformed", phrase.wrong
    if phrase.chain == "0":
        return [], None, None
    if boxes.missing:
        return [], "unknown_annotation", boxes.missing
    if wrong := boxes.wrong or boxes.wrong_chains.get(phrase.chain):
        return [], "malformed", wrong
    return boxes.by_chain.get(phrase.chain, []), None, None


def _write_regions(rows: Sequence[Row], part: int, records: TakesAnnotations) -> None:
    if not rows:
        return
    around = np.array([_union(row[4]) for row in rows], dtype=np.float64)
    records.annotations(
        {
            "key": [row[0] for row in rows],
            "kind": np.full(len(rows), REGION, np.int8),
            "part": np.full(len(rows), part, np.int16),
            "index": [row[1] for row in rows],
            "sub": [row[2] for row in rows],
            "text": [row[3].text for row in rows],
            "x": around[:, 0],
            "y": around[:, 1],
            "w": around[:, 2],
            "h": around[:, 3],
            "problem": [row[5] for row in rows],
            "detail": [row[6] for row in rows],
        }
    )


def _union(boxes: list[Box]) -> Box:
    if not boxes:
        return (np.nan,) * 4
    left = min(x for x, _, _, _ in boxes)
    top = min(y for _, y, _, _ in boxes)
    right = max(x + w for x, _, w, _ in boxes)
    bottom = max(y + h for _, y, _, h in boxes)
    return (left, top, right - left, bottom - top)


def _element(phrase: Phrase, boxes: list[Box]) -> str:
    value = {
        "sentence": phrase.sentence,
        "chain": phrase.chain,
        "types": phrase.types,
        "text": phrase.text,
        "boxes": boxes,
    }
    return msgspec.json.encode(value).decode()


def parse_phrases(line: str, sentence: int) -> list[Phrase]:
    """The marked phrases of a line; a mark that does not parse is one that is wrong."""
    phrases = []
    start = line.find(_START)
    while start >= 0:
        match = _PHRASE.match(line, start)
        if match is None:
            shown = line[start : start + 60]
            phrases.append(Phrase(sentence, wrong=f"no [/EN#chain/type words]: {shown!r}"))
        else:
            types = match[2].strip("/").split("/")
            phrases.append(Phrase(sentence, match[1], types, match[3].strip()))
        start = line.find(_START, match.end() if match else start + 1)
    return phrases


class _NoDoctype(ET.TreeBuilder):
    """Annotations need no document type, and one could declare entities without end."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type")


def read_boxes(path: AnyPath) -> Boxes:
    """The boxes of an XML file; never raises for what is in it."""
    place = f"{path.parent.name}/{path.name}"
    data = _read_small(path)
    if data is None:
        return Boxes(missing=f"no {place}")
    try:
        parser = ET.XMLParser(target=_NoDoctype())
        parser.feed(data)
        root: ET.Element = parser.close()
    except (ET.ParseError, ValueError, LookupError, RecursionError) as error:
        return Boxes(wrong=f"{place}: no annotations ({error})")
    result = Boxes(size=_size(root))
    for item in root.iter("object"):
        chains = [(name.text or "").strip() for name in item.findall("name")]
        for drawn in item.findall("bndbox"):
            box = _box(drawn)
            for chain in chains:
                if box is None:
                    shown = " ".join(" ".join(drawn.itertext()).split())[:60]
                    result.wrong_chains[chain] = f"{place}: no box of chain {chain}: {shown!r}"
                else:
                    result.by_chain.setdefault(chain, []).append(box)
    return result


def _size(root: ET.Element) -> tuple[int, int] | None:
    try:
        return (
            int(root.findtext("size/width") or ""),
            int(root.findtext("size/height") or ""),
        )
    except ValueError:
        return None


def _box(drawn: ET.Element) -> Box | None:
    try:
        corners = [float(drawn.findtext(name) or "") for name in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        return None
    if not all(map(isfinite, corners)):
        return None
    left, top, right, bottom = corners
    return (left - 1, top - 1, right - left + 1, bottom - top + 1)


def _read_small(path: AnyPath) -> bytes | None:
    """The bytes of a file; None where it is not there, or far larger than any official one."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError:
        return None
    return data if len(data) <= _MAX_FILE else None


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")
