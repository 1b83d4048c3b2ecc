"""WebDataset: tar archives of samples, written and read.

A sample is the members of one key, the name up to its first dot: ``000000012.jpg`` (the picture as
it is), ``000000012.json`` (the row: ``id``, ``source``, ``split``, ``width``, ``height``,
``caption``, ``concepts`` as in the manifest, and what columns there are beyond) and
``000000012.txt`` (the first caption). Archives of others are read too, such as img2dataset's: a
picture with a ``.txt``, or a ``.json`` with a ``caption``.

Nothing of an archive is ever unpacked: members are read in memory up to their limits, and their
names are but names.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from xvlm_data.formats.concepts import checked_concepts
from xvlm_data.formats.entries import KIND_OF, Entry, Piece, Said
from xvlm_data.formats.pictures import picture
from xvlm_data.formats.staging import Exported, OnBroken, new_folder
from xvlm_data.images.decode import DEFAULT_LIMITS, ImageError, Limits
from xvlm_data.inspect.draw import safe_name
from xvlm_data.manifest import Manifest
from xvlm_data.raw.tars import TarReader
from xvlm_data.records import CAPTION
from xvlm_data.verbs.choose import Advance

ARCHIVE_NAME = "{:06d}.tar"
SUFFIXES = (".tar", ".tgz")
_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
#: The longest text members of a sample; concepts of an image can be thousands.
_MAX_TEXTS = {"txt": 1 << 20, "json": 16 << 20}


def export_webdataset(
    manifest: Manifest,
    out: Path,
    *,
    archive_bytes: int = 1 << 30,
    archive_samples: int = 10_000,
    on_broken: OnBroken = "refuse",
    advance: Advance = lambda rows: None,
) -> Exported:
    """Write a manifest as WebDataset archives.

    Args:
        manifest: written.
        out: a new folder: ``000000.tar``, …
        archive_bytes: after which an archive is closed.
        archive_samples: the same, in samples.
        on_broken: what to do about pictures that cannot be read.
        advance: told of each row.

    Raises:
        UserError: something lies at ``out``; or a picture is missing or broken.
        ManifestError: a file of the manifest is damaged.
    """
    done = Exported()
    with new_folder(out) as folder:
        archive: tarfile.TarFile | None = None
        number = 0
        try:
            for row in manifest:
                advance(1)
                try:
                    found = picture(row["image"] or {}, row["width"], row["height"])
                except ImageError as error:
                    done.broken(row, error, on_broken)
                    continue
                if archive is None:
                    path = folder / ARCHIVE_NAME.format(number)
                    archive = tarfile.open(path, "w")  # noqa: SIM115 - closed when it is full
                concepts = checked_concepts(row)
                key = f"{done.images:09d}"
                said = {name: row[name] for name in row if name != "image"}
                said |= {"width": found.width, "height": found.height}
                _add(archive, f"{key}.{found.extension}", found.data)
                text = json.dumps(said, ensure_ascii=False, default=str)
                _add(archive, f"{key}.json", text.encode())
                if row["caption"] is not None:
                    _add(archive, f"{key}.txt", row["caption"].encode())
                done.images += 1
                done.turned += found.turned
                done.concepts.update(concept["granularity"] for concept in concepts)
                if archive.offset >= archive_bytes or done.images % archive_samples == 0:
                    archive.close()
                    archive, number = None, number + 1
        finally:
            if archive is not None:
                archive.close()
    names = dict.fromkeys(further.name for shard in manifest.shards for further in shard.further)
    if names:
        done.notes.append(f"in the .json, but an import does not read it back: {', '.join(names)}")
    return done


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner, no time: equal manifests give equal archives
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


class _Concept(msgspec.Struct, gc=False):
    box: tuple[float, float, float, float]
    text: str
    granularity: str
    attributes: list[str] | None = None


class _Row(msgspec.Struct, gc=False):
    """What is read of a ``.json``; of others than ours mostly the caption."""

    id: Any = None
    source: Any = None
    split: Any = None
    width: Any = None
    height: Any = None
    caption: Any = None
    concepts: list[msgspec.Raw] | None = None


@dataclass
class _Sample:
    key: str
    place: int
    picture: tuple[str, bytes] | None = None
    texts: dict[str, bytes] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class Archives:
    """How archives are read.

    Attributes:
        name: beginning of the ids of samples that have none.
        limits: what a picture may cost.
    """

    name: str
    limits: Limits = DEFAULT_LIMITS

    place = "sample {index}"
    normalised_boxes = True

    def pieces(self, files: Sequence[Path]) -> list[Piece]:
        """The archives."""
        return [Piece(n, path, 0, path.stat().st_size) for n, path in enumerate(files)]

    def read(self, piece: Piece) -> Iterator[Entry]:
        """The samples of an archive.

        Raises:
            UserError: it is no archive, or damaged.
        """
        with TarReader(piece.path) as archive:
            for sample in self._samples(archive):
                yield self._entry(sample, piece)

    def _samples(self, archive: TarReader) -> Iterator[_Sample]:
        sample: _Sample | None = None
        count = 0
        for member in archive:
            if member.isdir():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            key = f"{folder}/{stem}"
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample, count = _Sample(key, count), count + 1
            self._take(archive, member, extension.lower(), sample)
        if sample is not None:
            yield sample

    def _take(
        self, archive: TarReader, member: tarfile.TarInfo, extension: str, sample: _Sample
    ) -> None:
        is_picture = extension in _PICTURES
        if not is_picture and extension not in _MAX_TEXTS:
            return
        largest = self.limits.max_bytes if is_picture else _MAX_TEXTS[extension]
        if not member.isreg() or member.issparse():
            sample.problem = ("not_a_file", f"{member.name!r} is a link, a device or sparse")
        elif member.size > largest:
            reason = "image_too_big" if is_picture else "malformed"
            most = f"{largest:,} are the most"
            sample.problem = (reason, f"{member.name!r} has {member.size:,} bytes: {most}")
        else:
            data = archive.read(member)
            if not is_picture:
                sample.texts[extension] = data
            elif sample.picture is None:
                sample.picture = (extension, data)

    def _entry(self, sample: _Sample, piece: Piece) -> Entry:
        stem = safe_name(sample.key)
        entry = Entry(sample.place, f"{self.name}/{piece.number:05d}-{sample.place:06d}-{stem}")
        if sample.problem is not None:
            entry.problem, entry.detail = sample.problem
            return entry
        if sample.picture is None:
            entry.problem, entry.detail = "missing_image", f"sample {sample.key!r} has no picture"
        else:
            extension, entry.data = sample.picture
            entry.name = f"{piece.path.stem}/{sample.place:06d}-{stem}.{extension}"
        try:
            row = msgspec.json.decode(sample.texts.get("json", b"{}"), type=_Row)
            self._fill(entry, row, sample)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            entry.problem, entry.detail, entry.data = "malformed", str(error), None
        return entry

    def _fill(self, entry: Entry, row: _Row, sample: _Sample) -> None:
        if row.concepts is None:  # not ours: a picture and its caption
            caption = row.caption if isinstance(row.caption, str) else None
            if "txt" in sample.texts:
                caption = sample.texts["txt"].decode()
            if caption is not None:
                entry.said.append(Said(CAPTION, caption))
            return
        if str(row.id).startswith(f"{row.source}/"):
            entry.id, entry.source = str(row.id), str(row.source)
        entry.split = str(row.split) if row.split else None
        if _is_side(row.width) and _is_side(row.height):
            entry.size = (row.width, row.height)
        entry.said = [_said(raw) for raw in row.concepts]


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _said(raw: msgspec.Raw) -> Said:
    try:
        concept = msgspec.json.decode(raw, type=_Concept)
        kind = KIND_OF[concept.granularity]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, RecursionError) as error:
        return Said(KIND_OF["region"], problem="malformed", detail=str(error))
    cx, cy, w, h = concept.box
    return Said(kind, concept.text, (cx - w / 2, cy - h / 2, w, h), concept.attributes or [])
