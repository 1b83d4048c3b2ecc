"""Files in which an image stands with all that is said of it, made into a manifest.

Each file, or range of a file, is a task that writes one shard. What it reads goes through the same
checks as a build's records: pictures are decoded, boxes clipped, texts normalised, and what cannot
be used is in ``rejects.parquet`` with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xvlm_data import __version__
from xvlm_data.engines import Engine
from xvlm_data.formats.entries import TASK_BYTES, Entry, Format, Piece
from xvlm_data.images.check import Checked, ImageChecker, ImageRecord
from xvlm_data.images.decode import Limits
from xvlm_data.journal import Journal
from xvlm_data.manifest import open_manifest
from xvlm_data.records import ANNOTATIONS, IMAGES, KINDS
from xvlm_data.reformulate import Counts, Reformulator
from xvlm_data.rejects import RejectsMaker
from xvlm_data.rules import Rules
from xvlm_data.schema import GRANULARITIES, REJECTS, SIZES_KNOWN, manifest_schema
from xvlm_data.spill import open_spill, write_batches
from xvlm_data.storage import AnyPath
from xvlm_data.verbs.identity import repeated_rows
from xvlm_data.write import SHARD_NAME, RejectsWriter, ShardWriter, check_out, move_into_place

#: Images that are in memory at once: whichever comes first. Texts count as pictures do.
BLOCK_IMAGES, BLOCK_BYTES = 256, 32 << 20
#: What an entry, or one thing said of it, takes by itself.
_OVERHEAD = 512
#: Texts of rows that wait for a row group to be full; and of a block that are far beyond captions.
_WAITING_BYTES, _LONG_TEXTS = 128 << 20, 8 << 20
#: The longest id of a row, which each reject repeats; and message of a reject.
_MAX_ID, _MAX_MESSAGE = 1_000, 1_000
#: Nothing that is not broken is left out.
RULES = Rules(min_area=0.0, max_text_overlap=1.0, keep_crowd=False)

#: What became of the concepts of one granularity, in the counts of a build.
_COUNTED = {"image": "caption", "region": "region", "object": "object"}


@dataclass(frozen=True)
class ImportOptions:
    """What decides an import's result.

    Attributes:
        name: source of the rows that name none, and beginning of their ids.
        split: of the rows that name none.
        image_root: folder that paths of pictures are relative to; nothing outside it is opened.
        embed: put the bytes of pictures that are files into the manifest.
        limits: what a picture may cost.
        licence: of what is imported.
        citation: of it.
    """

    name: str
    split: str = "train"
    image_root: Path | None = None
    embed: bool = False
    limits: Limits = field(default_factory=Limits)
    licence: str = "unknown"
    citation: str = ""


@dataclass(frozen=True)
class _BlobChecker(ImageChecker):
    """Pictures that came with their entries are looked at where they are: in memory."""

    blobs: dict[str, bytes] = field(default_factory=dict)

    def _check(self, record: ImageRecord) -> Checked:
        data = self.blobs.get(record.paths[0]) if record.paths else None
        if data is None:
            return super()._check(record)
        if len(data) > self.limits.max_bytes:
            return Checked(problem="image_too_big", detail=f"{len(data):,} bytes")
        return self.look(record.paths[0], data, record, keep_bytes=True)


@dataclass(frozen=True)
class _Plan:
    folder: AnyPath
    format: Format
    tasks: tuple[tuple[Piece, ...], ...]
    reformulator: Reformulator
    schema: pa.Schema


class Progress(Protocol):
    """Opens a display for a stage."""

    def stage(
        self, name: str, total: int | None, unit: str
    ) -> AbstractContextManager[Callable[[int], None]]:
        """A display of ``total`` items."""
        ...


def import_entries(
    format_name: str,
    form: Format,
    files: Sequence[Path],
    out: AnyPath,
    options: ImportOptions,
    *,
    engine: Engine,
    progress: Progress,
    force: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Make a manifest of some files; returns the content of its ``manifest.json``.

    An import that was interrupted goes on where it was, and ends with the same bytes.

    Args:
        format_name: for the footers.
        form: how the files are read.
        files: in the order of the rows.
        out: folder of the manifest.
        options: what decides the result.
        engine: where tasks run.
        progress: display.
        force: write into a folder that holds something else.
        restart: forget what an interrupted import has done.

    Raises:
        UserError: a file is missing or is not what it should be, or something lies at ``out``.
    """
    name = f"{options.name}-{options.split}"
    check_out(out, name, force=force)
    info = {
        "name": name,
        "source": options.name,
        "split": options.split,
        "options": {"import": format_name, "embed": options.embed},
        "image_root": str(options.image_root) if options.image_root else None,
        "generator": f"xvlm {__version__}",
        "licence": options.licence,
        "citation": options.citation,
    }
    pieces = form.pieces(files)
    stamps = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    with Journal(out / ".building", info | {"files": stamps}, restart=restart) as journal:
        done = journal.done("commit")
        staged = journal.folder / "staged"
        if done is None:
            staged.mkdir(exist_ok=True)
            plan = _plan(journal.folder, form, files, pieces, info, options)
            done = _run(plan, files, info, engine, progress)
            journal.record("commit", done)
        move_into_place(staged, out, done)
        journal.discard()
    return done


def _plan(
    folder: AnyPath,
    form: Format,
    files: Sequence[Path],
    pieces: Sequence[Piece],
    info: dict[str, Any],
    options: ImportOptions,
) -> _Plan:
    reformulator = Reformulator(
        source=options.name,
        split=options.split,
        rejects=RejectsMaker(tuple((path.name, form.place) for path in files)),
        checker=_BlobChecker(
            options.image_root or Path(),
            keep_bytes=options.embed,
            limits=options.limits,
        ),
        rules=RULES,
        labels={},
        normalised_boxes=form.normalised_boxes,
    )
    return _Plan(folder, form, _together(pieces), reformulator, manifest_schema(info))


def _together(pieces: Sequence[Piece]) -> tuple[tuple[Piece, ...], ...]:
    """Small pieces as one task."""
    tasks: list[list[Piece]] = []
    size = TASK_BYTES
    for piece in pieces:
        if size + piece.stop - piece.start > TASK_BYTES:
            tasks.append([])
            size = 0
        tasks[-1].append(piece)
        size += piece.stop - piece.start
    return tuple(map(tuple, tasks))


def _run(
    plan: _Plan, files: Sequence[Path], info: dict[str, Any], engine: Engine, progress: Progress
) -> dict[str, Any]:
    counts, shards = Counts(), []
    staged = plan.folder / "staged"
    rejects = RejectsWriter(staged)
    with progress.stage("importing", len(plan.tasks), "parts") as advance:
        tasks = ((plan, number) for number in range(len(plan.tasks)))
        for number, record in enumerate(engine.map(run_task, tasks)):
            counts.add(Counts.from_dict(record["counts"]))
            rejects.write(open_spill(_rejects_path(plan.folder, number)).read_all())
            shards.append(record["shard"])
            advance(1)
    rejects.close()
    filled = [shard for shard in shards if shard["rows"]] or shards[:1]
    notes = []
    written = open_manifest([str(staged / shard["file"]) for shard in filled])
    repeated, examples = repeated_rows([written])
    if len(repeated):
        notes.append(
            f"{len(repeated):,} images have the id of another one, first {examples[0][0]}: "
            "`xvlm-data merge --on-repeat first` keeps one of each"
        )
    table = {
        f"{kind}s": {
            "raw": counts.kept[kind] + sum(counts.left_out.get(kind, {}).values()),
            "kept": counts.kept[kind],
            "filtered": {},
            "rejected": dict(sorted(counts.left_out.get(kind, {}).items())),
        }
        for kind in ("image", *KINDS[:3])
    }
    return {
        **info,
        "schema_version": SIZES_KNOWN,
        "inputs": [path.name for path in files],
        "notes": notes,
        "counts": table,
        "clipped_boxes": counts.clipped,
        "images_without_concepts": counts.images_without_concepts,
        "rows": counts.kept["image"],
        "concepts": {name: counts.kept[_COUNTED[name]] for name in GRANULARITIES},
        "rejects": sum(sum(reasons.values()) for reasons in counts.left_out.values()),
        "shards": filled,
    }


def run_task(task: tuple[_Plan, int]) -> dict[str, Any]:
    """Write the shard of a task, unless that is done; returns its record."""
    plan, number = task
    journal = Journal(plan.folder, {})
    name = f"task-{number:05d}"
    done = journal.done(name)
    if done is None:
        done = _write_shard(plan, number)
        journal.record(name, done)
    return done


def _rejects_path(folder: AnyPath, number: int) -> AnyPath:
    return folder / f"{number:05d}.rejects.arrow"


def _write_shard(plan: _Plan, number: int) -> dict[str, Any]:
    counts = Counts()
    rejects = [REJECTS.empty_table()]
    with _Writer(plan.folder / "staged" / SHARD_NAME.format(number), plan.schema) as writer:
        for part, entries in _blocks(plan, number):
            images, annotations, blobs = _tables(entries, part)
            checker = replace(plan.reformulator.checker, blobs=blobs)  # type: ignore[call-arg]
            table, rejected = replace(plan.reformulator, checker=checker)(
                images, np.arange(len(entries)), annotations, None, counts
            )
            writer.write(table)
            rejects.append(_cut(rejected))
            if annotations["text"].nbytes >= _LONG_TEXTS:
                # They leave holes in the heap, into which others like them do not fit.
                pa.default_memory_pool().release_unused()
    found = pa.concat_tables(rejects).unify_dictionaries().combine_chunks()
    batches = found.to_batches() or [pa.RecordBatch.from_pylist([], REJECTS)]
    write_batches(_rejects_path(plan.folder, number), batches)
    return {"counts": counts.to_dict(), "shard": writer.entry()}


class _Writer(ShardWriter):
    """Closes a row group early where its texts are long, of which a small archive can hold much."""

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        super().write(table)
        waiting = sum(part.nbytes for part in self._pending)
        if waiting - self._pending_bytes >= _WAITING_BYTES:
            self._flush()


def _cut(rejects: pa.Table) -> pa.Table:
    """Rejects whose messages end somewhere: they quote what was read, and wait in memory."""
    place = REJECTS.get_field_index("message")
    messages = pc.utf8_slice_codeunits(rejects["message"], 0, _MAX_MESSAGE)
    return rejects.set_column(place, REJECTS.field(place), messages)


def _blocks(plan: _Plan, number: int) -> Iterator[tuple[int, list[Entry]]]:
    """Entries of one file, with its number."""
    for piece in plan.tasks[number]:
        block: list[Entry] = []
        size = 0
        for entry in plan.format.read(piece):
            if len(entry.id) > _MAX_ID:
                entry.problem, entry.data = "malformed", None
                entry.detail = f"an id of {len(entry.id):,} characters: {entry.id[:80]!r}…"
                entry.id = entry.id[:_MAX_ID]
            block.append(entry)
            size += _size(entry)
            if len(block) >= BLOCK_IMAGES or size >= BLOCK_BYTES:
                yield piece.number, block
                block, size = [], 0
        if block:
            yield piece.number, block


def _size(entry: Entry) -> int:
    """About how much memory an entry takes."""
    size = _OVERHEAD + len(entry.data or b"") + len(entry.detail or "")
    size += len(entry.id) + len(entry.name) + len(entry.source or "") + len(entry.split or "")
    for said in entry.said:
        size += _OVERHEAD + len(said.text or "") + len(said.detail or "")
        size += sum(len(attribute) + _OVERHEAD // 8 for attribute in said.attributes)
    return size


def _tables(entries: Sequence[Entry], part: int) -> tuple[pa.Table, pa.Table, dict[str, bytes]]:
    """Record tables of a block, and the pictures by their names."""
    blobs = {e.name: e.data for e in entries if e.data is not None}
    images = pa.table(
        {
            "key": pa.array(range(len(entries)), pa.int64()),
            "id": [e.id for e in entries],
            "paths": [[e.name] if e.name else [] for e in entries],
            "width": [e.size[0] if e.size else None for e in entries],
            "height": [e.size[1] if e.size else None for e in entries],
            "source": [e.source for e in entries],
            "split": [e.split for e in entries],
            "part": [part] * len(entries),
            "index": [e.place for e in entries],
            "problem": [e.problem for e in entries],
            "detail": [e.detail for e in entries],
        },
        schema=IMAGES,
    )
    said = [
        (ordinal, entry.place, said)
        for ordinal, entry in enumerate(entries)
        for said in sorted(entry.said, key=lambda one: one.kind)
    ]
    boxes = np.array([s.box or (0, 0, 0, 0) for *_, s in said], np.float64).reshape(-1, 4)
    columns: dict[str, Any] = {
        "ordinal": pa.array([ordinal for ordinal, *_ in said], pa.int64()),
        "kind": [s.kind for *_, s in said],
        "part": [part] * len(said),
        "index": [place for _, place, _ in said],
        "text": [s.text for *_, s in said],
        "attributes": [s.attributes for *_, s in said],
        **{side: boxes[:, place] for place, side in enumerate("xywh")},
        "problem": [s.problem for *_, s in said],
        "detail": [s.detail for *_, s in said],
    }
    fields = [pa.field("ordinal", pa.int64())]
    fields += [ANNOTATIONS.field(name) for name in columns if name != "ordinal"]
    return images, pa.table(columns, schema=pa.schema(fields)), blobs
