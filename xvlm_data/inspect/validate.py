"""Checking every row of a manifest against the promises of its schema."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data.images.decode import ImageError, load_row_image
from xvlm_data.inspect.concepts import (
    Concepts,
    checked_batches,
    flatten_concepts,
    locate,
    to_bools,
    to_strings,
)
from xvlm_data.manifest import Manifest
from xvlm_data.schema import GRANULARITIES, IMAGE, SIZES_UNKNOWN, WHOLE_IMAGE_BOX

#: Every rule, as it is told to people.
RULES = {
    "no_rows": "the manifest has rows",
    "id_missing": "id is not empty",
    "id_prefix": "id is <source>/<something>",
    "id_duplicate": "id is unique over all shards",
    "source_missing": "source is not empty",
    "split_missing": "split is not empty",
    "size": "width and height are above 0, or (schema version 2, not known) both 0",
    "image_missing": "a row has image bytes or a path",
    "image_bytes": "image bytes begin like an image",
    "image_path": "the file behind an image path exists (web addresses are not asked for)",
    "image_decode": "the image decodes, at the size its boxes refer to",
    "caption": "caption is the text of the first whole-image concept, null when there is none",
    "concept_granularity": f"granularity is one of {', '.join(GRANULARITIES)}",
    "box_finite": "a box is four finite numbers",
    "box_size": "the sides of a box are above 0",
    "box_range": "a box lies within its image",
    "box_whole_image": "the box of a whole-image concept is (0.5, 0.5, 1, 1)",
    "text_empty": "a text is not empty",
    "text_space": "a text has no white space around it",
    "text_unicode": "a text is in Unicode normal form C",
    "shard_rows": "shards have the rows that manifest.json tells",
    "shard_checksum": "shards have the SHA-256 that manifest.json tells",
}
OFFENDERS_KEPT = 5
BOX_TOLERANCE = 1e-5

_COLUMNS = ("id", "source", "split", "width", "height", "caption", "concepts")
_IMAGE_COLUMNS = ("id", "image", "width", "height")
_IMAGE_BATCH = 64  # embedded images: a batch must fit into memory
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_WHITE_SPACE = r"^[\s\p{Z}\x0b\x1c-\x1f\x85]*$"


@dataclass(frozen=True, slots=True)
class Offender:
    """One place that breaks a rule; row and id are None for a rule about files."""

    shard: str
    row: int | None
    id: str | None
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"shard": self.shard, "row": self.row, "id": self.id, "detail": self.detail}


@dataclass
class Findings:
    """Offences by rule: all are counted, the first few are kept.

    Attributes:
        rows: rows that were checked.
        counts: rule -> offences; only rules that were broken.
        first: rule -> the first offenders.
    """

    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[Offender]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no rule was broken."""
        return not self.counts

    def add(self, rule: str, number: int, offenders: Iterable[Offender]) -> None:
        """Count ``number`` offences; ``offenders`` is read only as far as they are kept."""
        if not number:
            return
        self.counts[rule] = self.counts.get(rule, 0) + number
        kept = self.first.setdefault(rule, [])
        for offender in offenders:
            if len(kept) >= OFFENDERS_KEPT:
                break
            kept.append(offender)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the order of :data:`RULES`."""
        return {
            "ok": self.ok,
            "rows": self.rows,
            "offences": {
                rule: {
                    "promise": RULES[rule],
                    "count": self.counts[rule],
                    "first": [offender.to_dict() for offender in self.first[rule]],
                }
                for rule in RULES
                if rule in self.counts
            },
        }


def validate(
    manifest: Manifest,
    *,
    check_images: bool = True,
    decode: bool = False,
    advance: Callable[[int], None] = lambda rows: None,
) -> Findings:
    """Check every row, and ``manifest.json`` when the manifest was opened as a folder.

    Args:
        manifest: an opened manifest.
        check_images: look whether the files behind image paths exist.
        decode: decode every image fully; implies reading all of them.
        advance: told the rows of each batch, for a progress bar; every row comes twice.

    Raises:
        ManifestError: a file is damaged to the point that rows cannot be read.
    """
    findings = Findings(rows=len(manifest))
    if not findings.rows:
        findings.add("no_rows", 1, [Offender(manifest.shards[0].url, None, None, "0 rows")])
    for first, batch in checked_batches(manifest, _COLUMNS):
        checker = _BatchChecker(manifest, findings, first, batch)
        checker.check_rows()
        checker.check_concepts()
        advance(batch.num_rows)
    _check_unique(manifest, findings)
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        for first, batch in checked_batches(manifest, _IMAGE_COLUMNS, _IMAGE_BATCH):
            checker = _BatchChecker(manifest, findings, first, batch)
            checker.check_images(pool, check_paths=check_images and not decode, decode=decode)
            advance(batch.num_rows)
    if manifest.summary is not None:
        _check_summary(manifest, findings)
    return findings


class _BatchChecker:
    """The rules about rows and concepts, for one batch."""

    def __init__(
        self, manifest: Manifest, findings: Findings, first: int, batch: pa.RecordBatch
    ) -> None:
        self.findings = findings
        self.batch = batch
        self.ids = to_strings(batch.column("id"))
        self.shard, self.first = locate(manifest, first)
        self.version = next(s.version for s in manifest.shards if s.url == self.shard)

    def check_rows(self) -> None:
        source = to_strings(self.batch.column("source"))
        missing = _absent(self.ids)
        self._rows("id_missing", missing, lambda row: "no id")
        self._rows(
            "id_prefix",
            ~missing & ~_has_prefix(self.ids, source),
            lambda row: f"source {source[row].as_py()!r}",
        )
        self._rows("source_missing", _absent(source), lambda row: "no source")
        split = to_strings(self.batch.column("split"))
        self._rows("split_missing", _absent(split), lambda row: "no split")
        width, height = self.batch.column("width"), self.batch.column("height")
        good = to_bools(pc.greater(width, 0)) & to_bools(pc.greater(height, 0))
        if self.version >= SIZES_UNKNOWN:
            good |= to_bools(pc.equal(width, 0)) & to_bools(pc.equal(height, 0))
        self._rows(
            "size",
            ~good,
            lambda row: f"{width[row].as_py()} x {height[row].as_py()}",
        )

    def check_concepts(self) -> None:
        concepts = flatten_concepts(self.batch)
        known = to_bools(pc.is_in(concepts.granularity, value_set=pa.array(GRANULARITIES)))
        self._concepts(
            "concept_granularity",
            concepts,
            ~known,
            lambda i: f"granularity {concepts.granularity[i].as_py()!r}",
        )
        self._check_boxes(concepts)
        self._check_texts(concepts)
        self._check_captions(concepts)

    def _check_boxes(self, concepts: Concepts) -> None:
        def told(i: int) -> str:
            return f"box ({', '.join(f'{value:.6g}' for value in concepts.boxes[i])})"

        boxes = concepts.boxes
        finite = np.asarray(np.isfinite(boxes).all(axis=1))
        centre, side = boxes[:, :2], boxes[:, 2:]
        with np.errstate(invalid="ignore"):
            positive = np.asarray((side > 0).all(axis=1))
            inside = np.asarray(
                (
                    (centre - side / 2 >= -BOX_TOLERANCE) & (centre + side / 2 <= 1 + BOX_TOLERANCE)
                ).all(axis=1)
            )
            exact = np.asarray((boxes == WHOLE_IMAGE_BOX).all(axis=1))
        self._concepts("box_finite", concepts, ~finite, told)
        self._concepts("box_size", concepts, finite & ~positive, told)
        self._concepts("box_range", concepts, finite & positive & ~inside, told)
        whole = concepts.is_granularity(IMAGE)
        self._concepts("box_whole_image", concepts, whole & finite & ~exact, told)

    def _check_texts(self, concepts: Concepts) -> None:
        def told(i: int) -> str:
            return f"text {concepts.text[i].as_py()!r}"

        text = concepts.text
        empty = _absent(text) | to_bools(pc.match_substring_regex(text, _WHITE_SPACE))
        trimmed = to_bools(pc.equal(pc.utf8_trim_whitespace(text), text))
        normal = to_bools(pc.equal(pc.utf8_normalize(text, form="NFC"), text))
        self._concepts("text_empty", concepts, empty, told)
        self._concepts("text_space", concepts, ~empty & ~trimmed, told)
        self._concepts("text_unicode", concepts, ~empty & ~normal, told)

    def _check_captions(self, concepts: Concepts) -> None:
        whole = np.flatnonzero(concepts.is_granularity(IMAGE))
        rows, place = np.unique(concepts.row[whole], return_index=True)
        index = np.full(self.batch.num_rows, -1)
        index[rows] = whole[place]
        expected = concepts.text.take(pa.array(index, mask=index < 0))
        caption = to_strings(self.batch.column("caption"))
        same = to_bools(pc.equal(caption, expected))
        same |= to_bools(pc.and_(pc.is_null(caption), pc.is_null(expected)))
        self._rows(
            "caption",
            ~same,
            lambda row: f"caption {caption[row].as_py()!r}, concept {expected[row].as_py()!r}",
        )

    def check_images(self, pool: ThreadPoolExecutor, *, check_paths: bool, decode: bool) -> None:
        image = self.batch.column("image")
        data, path = pc.struct_field(image, "bytes"), to_strings(pc.struct_field(image, "path"))
        embedded = to_bools(pc.is_valid(data))
        missing = ~embedded & _absent(path)
        self._rows("image_missing", missing, lambda row: "neither bytes nor a path")
        self._rows(
            "image_bytes",
            embedded & ~_image_like(data),
            lambda row: f"begins with {data[row].as_py()[:8]!r}",
        )
        if check_paths:
            web = to_bools(pc.match_substring_regex(path, "^https?://", ignore_case=True))
            rows = np.flatnonzero(~embedded & ~missing & ~web)
            names = path.take(pa.array(rows)).to_pylist()
            gone = np.zeros(self.batch.num_rows, np.bool_)
            gone[rows] = [not found for found in pool.map(_exists, names)]
            self._rows("image_path", gone, lambda row: f"no file {path[row].as_py()!r}")
        if decode:
            rows = np.flatnonzero(~missing)
            cells = ((image[row], self.batch, row) for row in rows.tolist())
            problems = dict(zip(rows.tolist(), pool.map(_decode_problem, cells), strict=True))
            bad = np.array([problems.get(i) is not None for i in range(self.batch.num_rows)])
            self._rows("image_decode", bad, lambda row: str(problems[row]))

    def _rows(self, rule: str, mask: npt.NDArray[np.bool_], told: Callable[[int], str]) -> None:
        rows = np.flatnonzero(mask)
        self.findings.add(
            rule, len(rows), (self._offender(row, told(row)) for row in rows.tolist())
        )

    def _concepts(
        self,
        rule: str,
        concepts: Concepts,
        mask: npt.NDArray[np.bool_],
        told: Callable[[int], str],
    ) -> None:
        def offenders() -> Iterator[Offender]:
            for i in found.tolist():
                detail = f"concept {concepts.position[i]}: {told(i)}"
                yield self._offender(int(concepts.row[i]), detail)

        found = np.flatnonzero(mask)
        self.findings.add(rule, len(found), offenders())

    def _offender(self, row: int, detail: str) -> Offender:
        return Offender(self.shard, self.first + row, self.ids[row].as_py(), detail)


def _check_unique(manifest: Manifest, findings: Findings) -> None:
    """Duplicate ids by a grouping that spills to disk, whatever the number of rows."""
    import duckdb

    def numbered() -> Iterator[pa.RecordBatch]:
        for first, batch in checked_batches(manifest, ("id",), 65536):
            rows = pa.array(np.arange(first, first + batch.num_rows))
            ids = to_strings(batch.column("id"))
            yield pa.RecordBatch.from_arrays([ids, rows], schema=schema)

    schema = pa.schema([("id", pa.string()), ("row", pa.int64())])
    with tempfile.TemporaryDirectory() as spill:
        config = {"memory_limit": "1GB", "temp_directory": spill}
        with duckdb.connect(config=config) as database:
            database.register("ids", pa.RecordBatchReader.from_batches(schema, numbered()))
            database.execute(
                "CREATE TABLE duplicate AS SELECT id, count(*) - 1 AS extra, min(row) AS first, "
                "max(row) AS last FROM ids WHERE id <> '' GROUP BY id HAVING count(*) > 1"
            )
            total = database.execute("SELECT sum(extra) FROM duplicate").fetchall()[0][0]
            found = database.execute(
                "SELECT id, first, last FROM duplicate ORDER BY first LIMIT ?", [OFFENDERS_KEPT]
            ).fetchall()
    offenders = []
    for name, first, last in found:
        shard, row = locate(manifest, last)
        other_shard, other_row = locate(manifest, first)
        detail = f"also row {other_row} of {other_shard}"
        offenders.append(Offender(shard, row, name, detail))
    findings.add("id_duplicate", int(total or 0), offenders)


def _check_summary(manifest: Manifest, findings: Findings) -> None:
    told = {shard["file"]: shard for shard in (manifest.summary or {}).get("shards", ())}
    for shard in manifest.shards:
        entry = told.get(Path(shard.url).name, {})
        rows, checksum = entry.get("rows"), entry.get("sha256")
        if rows != shard.rows:
            detail = f"{shard.rows} rows, manifest.json tells {rows}"
            findings.add("shard_rows", 1, [Offender(shard.url, None, None, detail)])
        with fsspec.open(shard.url, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if checksum != found:
            detail = f"SHA-256 {found}, manifest.json tells {checksum}"
            findings.add("shard_checksum", 1, [Offender(shard.url, None, None, detail)])


def _absent(strings: pa.StringArray) -> npt.NDArray[np.bool_]:
    return ~to_bools(pc.not_equal(strings, ""))


def _has_prefix(ids: pa.StringArray, source: pa.StringArray) -> npt.NDArray[np.bool_]:
    """Whether each id is its source, a slash, and something more."""
    found = np.zeros(len(ids), np.bool_)
    for name in source.unique().drop_null().to_pylist():
        here = to_bools(pc.equal(source, name))
        longer = to_bools(pc.greater(pc.utf8_length(ids), len(name) + 1))
        found |= here & longer & to_bools(pc.starts_with(ids, f"{name}/"))
    return found


def _image_like(data: pa.Array) -> npt.NDArray[np.bool_]:
    found = np.zeros(len(data), np.bool_)
    for magic in _MAGIC:
        found |= to_bools(pc.starts_with(data, magic))
    webp = pc.equal(pc.binary_slice(data, 8, 12), b"WEBP")
    return found | to_bools(pc.and_(pc.starts_with(data, b"RIFF"), webp))


def _exists(path: str) -> bool:
    if "://" not in path:
        return Path(path).is_file()
    try:
        fs, name = fsspec.core.url_to_fs(path)
        return bool(fs.exists(name))
    except Exception:  # every remote file system raises its own; unreachable is not present
        return False


def _decode_problem(cell: tuple[pa.StructScalar, pa.RecordBatch, int]) -> str | None:
    image, batch, row = cell
    try:
        load_row_image(image.as_py(), batch["width"][row].as_py(), batch["height"][row].as_py())
    except ImageError as error:
        return f"{error.reason}: {error}"
    return None
