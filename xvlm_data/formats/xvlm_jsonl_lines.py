"""Reading the JSON lines of the original X-VLM code; see :mod:`xvlm_data.formats.xvlm_jsonl`."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from xvlm_data.errors import UserError
from xvlm_data.formats.entries import TASK_BYTES, Entry, Piece, Said
from xvlm_data.formats.pictures import stored_size
from xvlm_data.images.check import is_unsafe
from xvlm_data.images.decode import DEFAULT_LIMITS, ImageError, Limits, read_bytes
from xvlm_data.raw.files import BOM, open_raw
from xvlm_data.records import CAPTION, OBJECT, REGION
from xvlm_data.schema import OBJECT as OBJECT_NAME
from xvlm_data.schema import REGION as REGION_NAME

SUFFIXES = (".jsonl", ".json", ".txt", "")
#: What a line of any bytes can raise: one that is nested too deeply, a RecursionError.
_MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_KINDS = {REGION_NAME: REGION, OBJECT_NAME: OBJECT}


class _Elem(msgspec.Struct, gc=False):
    bb: tuple[float, float, float, float]
    caption: str | list[str]
    attributes: str | list[str] | None = None
    granularity: str | None = None


@dataclass(frozen=True)
class JsonLines:
    """How lines are read.

    Attributes:
        name: beginning of the ids of lines that have none.
        image_key: of the picture; None for ``binary``, or else ``image``.
        caption_key: of the caption.
        paths: pictures are paths, whatever they look like; otherwise what has a dot is one, since
            base64 has none.
        image_root: what relative paths are relative to.
        elements: granularity of elements that do not say: ``region``, ``object``, or None to call
            those with attributes objects.
        limits: what a picture may cost.
    """

    name: str
    image_key: str | None = None
    caption_key: str = "caption"
    paths: bool = False
    image_root: Path | None = None
    elements: str | None = None
    limits: Limits = DEFAULT_LIMITS

    place = "byte {index}"
    normalised_boxes = False

    def pieces(self, files: Sequence[Path]) -> list[Piece]:
        """Ranges of the files."""
        pieces = [
            Piece(number, path, start, min(start + TASK_BYTES, size))
            for number, path in enumerate(files)
            for size in [path.stat().st_size]
            for start in range(0, size, TASK_BYTES)
        ]
        if not pieces:
            raise UserError(f"{files[0]}: empty file", "give the files with the lines")
        return pieces

    def read(self, piece: Piece) -> Iterator[Entry]:
        """The lines that begin in the range.

        Raises:
            UserError: the file is compressed, a page, or anything but lines.
        """
        longest = self.limits.max_bytes * 4 // 3 + (16 << 20)
        with open_raw(piece.path) as file:
            if piece.start:
                # The line that reaches into the range is of the range before.
                file.seek(piece.start - 1)
                while (rest := file.readline(longest)) and not rest.endswith(b"\n"):
                    pass
            while (place := file.tell()) < piece.stop and (line := file.readline(longest)):
                if len(line) == longest and not line.endswith(b"\n"):
                    raise UserError(
                        f"{piece.path}: a line longer than {longest >> 20} MiB (at byte {place})",
                        "JSON lines have one image a line",
                    )
                if not place:
                    line = line.removeprefix(BOM)
                if line.strip():
                    yield self._entry(line, place, piece)

    def _entry(self, line: bytes, place: int, piece: Piece) -> Entry:
        entry = Entry(place, f"{self.name}/{piece.number:05d}-{place:012d}")
        try:
            keys = ("binary", "image") if self.image_key is None else (self.image_key, "")
            found: Any = _decoder(*keys, self.caption_key).decode(line)
            if str(found.id).startswith(f"{found.source}/"):
                entry.id, entry.source = str(found.id), str(found.source)
            entry.split = str(found.split) if found.split else None
        except _MALFORMED as error:
            entry.problem, entry.detail = "malformed", str(error)
            return entry
        captions = [found.caption] if isinstance(found.caption, str) else found.caption or []
        entry.said = [Said(CAPTION, text) for text in captions]
        for elem in found.elems or ():
            entry.said += self._said(elem)
        self._find_picture(entry, found, piece)
        return entry

    def _find_picture(self, entry: Entry, found: Any, piece: Piece) -> None:
        value = found.data if found.data is not None else found.path
        if value is None:
            key = self.image_key or "binary or image"
            entry.problem, entry.detail = "malformed", f"no picture under the key {key}"
            return
        try:
            if self.paths or "." in value:
                entry.name = self._relative(value)
                data = None
                # Boxes refer to the stored pixels, which only the file knows.
                if any(s.box is not None for s in entry.said) and not is_unsafe(entry.name):
                    data = read_bytes((self.image_root or Path()) / entry.name, self.limits)
            else:
                entry.name = f"{piece.path.name}:{entry.place}"
                data = entry.data = b64decode(value, validate=True)
            if data is not None and any(said.box is not None for said in entry.said):
                entry.size = stored_size(data, entry.name)
        except binascii.Error as error:
            entry.problem, entry.detail = "not_an_image", f"neither base64 nor a path: {error}"
        except ImageError as error:
            entry.problem, entry.detail, entry.data = error.reason, error.what, None

    def _relative(self, path: str) -> str:
        """Below the image root, where it lies there; else as it is, which is refused later."""
        root = (self.image_root or Path()).absolute()
        if Path(path).is_absolute() and Path(path).is_relative_to(root):
            return str(Path(path).relative_to(root))
        return path

    def _said(self, raw: msgspec.Raw) -> list[Said]:
        try:
            elem = msgspec.json.decode(raw, type=_Elem)
        except _MALFORMED as error:
            kind = _KINDS.get(self.elements or REGION_NAME, REGION)
            return [Said(kind, problem="malformed", detail=str(error))]
        attributes = elem.attributes or []
        attributes = [attributes] if isinstance(attributes, str) else attributes
        granularity = elem.granularity or self.elements
        if granularity not in _KINDS:
            granularity = OBJECT_NAME if attributes else REGION_NAME
        texts = [elem.caption] if isinstance(elem.caption, str) else elem.caption
        return [Said(_KINDS[granularity], text, elem.bb, attributes) for text in texts or [""]]


@cache
def _decoder(data_key: str, path_key: str, caption_key: str) -> msgspec.json.Decoder[Any]:
    """Of a line in which things have these names; what is "" is not there."""
    fields: list[Any] = [
        ("data", str | None, msgspec.field(name=data_key, default=None)),
        ("path", str | None, msgspec.field(name=path_key or "\0", default=None)),
        ("caption", str | list[str] | None, msgspec.field(name=caption_key, default=None)),
        ("elems", list[msgspec.Raw] | None, None),
        *((name, Any, None) for name in ("id", "source", "split")),
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Line", fields))
