"""NLVR2: a statement about two images, true or false.

Files: ``train.json``, ``dev.json``, ``test1.json`` and ``test2.json``, JSON Lines despite their
names, in ``data/`` or in the root. Images: ``images/train/<directory>/``, ``images/dev/``, … or the
same folders without ``images/``; named ``<identifier without its last number>-img0.png`` (left) and
``-img1.png`` (right), whatever their type is. Splits: train, dev (or val), test1 (or test), test2.

A row is an image, as everywhere. The column ``pairs`` of a left image's row has the statements
about it, each with the id of the right image's row; a pair occurs with several statements, and its
images once. The right image may be among the rejects: a reader has to look it up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa

from xvlm_data.raw.files import find_file
from xvlm_data.reading import Records
from xvlm_data.sources import citations
from xvlm_data.sources.base import Request, Source
from xvlm_data.sources.image_paths import as_lists, joined
from xvlm_data.sources.questions import Later, pick_split, write_malformed, write_questions
from xvlm_data.sources.url_list import image_key
from xvlm_data.text import normalise_texts

#: The column ``pairs``, in raw order.
PAIRS = pa.field(
    "pairs",
    pa.list_(
        pa.struct(
            [
                pa.field("identifier", pa.string()),
                pa.field("sentence", pa.string()),
                pa.field("label", pa.bool_()),  # null where it is not published
                pa.field("right", pa.string()),  # id of the right image's row
            ]
        )
    ),
)

_SPLITS = {
    "train": "train",
    "dev": "dev",
    "val": "dev",
    "test1": "test1",
    "test": "test1",
    "test2": "test2",
}
_IDENTIFIER = re.compile(r"(\w+-\d+-\d+)-\d+", re.ASCII)
_LABELS = {"true": True, "false": False}


class _Line(msgspec.Struct, gc=False):
    identifier: str
    sentence: str
    label: str | bool | None = None
    directory: int | str | None = None


class Nlvr2(Source):
    """See the module.

    Attributes:
        evaluation: no rule that is a choice applies by itself.
        normalised_boxes: there are no boxes that would need the image's size.
        extra: the column ``pairs``.
    """

    name = "nlvr2"
    licence = "sentences and labels CC BY 4.0; images: not licensed by the authors"
    citation = citations.NLVR2
    homepage = "https://lil.nlp.cornell.edu/nlvr"
    evaluation = True
    normalised_boxes = True
    extra = PAIRS

    def read(self, request: Request, records: Records) -> None:
        """See `Source.read`."""
        name = pick_split(self.name, request.split, _SPLITS)
        path = find_file(request.root, [f"data/{name}.json", f"{name}.json"], "list of pairs")
        folders = [f for f in (f"images/{name}", name) if (request.root / f).is_dir()]
        part = records.part(path, "line {line}")
        images_part = records.part(path, "image {index}, two a line")
        later = Later()
        seen: set[str] = set()
        written: set[str] = set()
        decoder = msgspec.json.Decoder(_Line)
        for first, lines in request.lines(path):
            good: list[tuple[int, _Line]] = []
            malformed: list[tuple[int, str, bytes]] = []
            for index, line in enumerate(lines, first):
                if not line.strip():
                    continue
                try:
                    good.append((index, _checked(decoder.decode(line))))
                except (ValueError, RecursionError) as error:
                    malformed.append((index, str(error)[:300], line))
            write_malformed(later, part, malformed)
            _write_images(good, folders or [f"images/{name}"], images_part, written, records)
            _write_pairs(good, part, seen, later)
        records.images_complete()
        later.write(records)


def _checked(line: _Line) -> _Line:
    """The line with its label as a truth value.

    Raises:
        ValueError: the identifier or the label is none.
    """
    if not _IDENTIFIER.fullmatch(line.identifier):
        raise ValueError(f"identifier is not split-set-pair-sentence: {line.identifier[:60]!r}")
    if isinstance(line.label, str):
        label = _LABELS.get(line.label.strip().lower())
        if label is None:
            raise ValueError(f"label is not True or False: {line.label[:40]!r}")
        line.label = label
    return line


def _pair(line: _Line) -> str:
    return line.identifier.rsplit("-", 1)[0]


def _write_images(
    lines: Sequence[tuple[int, _Line]],
    folders: Sequence[str],
    part: int,
    written: set[str],
    records: Records,
) -> None:
    """Left and right image of each pair that is new."""
    new = []
    for index, line in lines:
        pair = _pair(line)
        if pair not in written:
            written.add(pair)
            new.append((index, pair, "" if line.directory is None else f"{line.directory}/"))
    if not new:
        return
    names = [f"{pair}-img{side}" for _, pair, _ in new for side in (0, 1)]
    places = pa.array([directory for _, _, directory in new for _ in (0, 1)], pa.string())
    texts = pa.array(names, pa.string())
    paths = [joined(f"{folder}/", places, texts, ".png") for folder in folders]
    # Archives may be unpacked without the numbered folders.
    paths += [joined(f"{folder}/", texts, ".png") for folder in folders]
    records.images(
        {
            "key": [image_key(name) for name in names],
            "id": joined("nlvr2/", texts),
            "paths": as_lists(paths),
            "part": np.full(len(names), part, np.int16),
            "index": [2 * index + side for index, _, _ in new for side in (0, 1)],
        }
    )


def _write_pairs(
    lines: Sequence[tuple[int, _Line]], part: int, seen: set[str], later: Later
) -> None:
    texts = normalise_texts(pa.array([line.sentence for _, line in lines], pa.string()))
    problems = []
    for _, line in lines:
        problems.append("duplicate_question" if line.identifier in seen else None)
        seen.add(line.identifier)
    write_questions(
        later,
        part,
        [index for index, _ in lines],
        [image_key(f"{_pair(line)}-img0") for _, line in lines],
        texts,
        [_element(line, text) for (_, line), text in zip(lines, texts.to_pylist(), strict=True)],
        problem=problems,
    )


def _element(line: _Line, sentence: str) -> str:
    value = {
        "identifier": line.identifier,
        "sentence": sentence,
        "label": line.label,
        "right": f"nlvr2/{_pair(line)}-img1",
    }
    return msgspec.json.encode(value).decode()


SOURCE = Nlvr2()
