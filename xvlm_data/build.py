"""Raw release to manifest: read, group, check and reformulate block by block, write."""

from __future__ import annotations

import errno
import gc
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xvlm_data import __version__
from xvlm_data.errors import UserError
from xvlm_data.group import Grouped, blocks, group, view_records
from xvlm_data.images.check import ImageChecker
from xvlm_data.images.decode import Limits
from xvlm_data.raw.files import check_root
from xvlm_data.records import KINDS, Records
from xvlm_data.reformulate import Counts, Reformulator
from xvlm_data.rules import FILTERS, Rules
from xvlm_data.schema import SCHEMA_VERSION
from xvlm_data.sources import Request, Source, get_source
from xvlm_data.sources.base import OpenProgress
from xvlm_data.text import SlashedNames
from xvlm_data.write import (
    ManifestWriter,
    RejectsWriter,
    check_out,
    move_into_place,
    write_summary,
)

#: Images per block: the unit of work; bounds memory when images are embedded.
BLOCK_IMAGES = 256


@dataclass(frozen=True)
class BuildOptions:
    """Everything that decides what a build gives; stored in the manifest.

    Attributes:
        images: ``reference`` stores paths, ``embed`` the encoded bytes.
        rules: the filters.
        slashed_names: form of category names with alternatives.
        exclude: evaluation files whose images are left out; None looks beside the root.
        keep_leaks: leave nothing out.
        check_images: decode every image.
        limits: what an image may cost.
        shard_rows: rows of a shard.
    """

    images: Literal["reference", "embed"] = "reference"
    rules: Rules = field(default_factory=Rules)
    slashed_names: SlashedNames = "first"
    exclude: tuple[Path, ...] | None = None
    keep_leaks: bool = False
    check_images: bool = True
    limits: Limits = field(default_factory=Limits)
    shard_rows: int = 100_000

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the same wherever the build runs."""
        values = asdict(self)
        values["exclude"] = None if self.exclude is None else [str(path) for path in self.exclude]
        return values


class Progress(Protocol):
    """How a build tells how far it is."""

    @property
    def reading(self) -> OpenProgress:
        """Opens a display in bytes for a raw file."""
        ...

    def stage(self, name: str, total: int | None, unit: str) -> Any:
        """Opens a display for a stage; a context manager that gives an ``advance(n)``."""
        ...


def build(
    source_name: str,
    root: Path,
    out: Path,
    *,
    split: str = "train",
    options: BuildOptions | None = None,
    progress: Progress,
    workers: int = 1,
    memory: str = "2GB",
    force: bool = False,
) -> dict[str, Any]:
    """Build a manifest folder; returns the content of its ``manifest.json``.

    Args:
        source_name: one of ``sources.SOURCES``.
        root: folder of the raw release.
        out: folder of the manifest; replaced as a whole when the build succeeds.
        split: which part of the release.
        options: what to keep and how to store it.
        progress: display.
        workers: threads that decode images and sort. The result does not depend on it.
        memory: limit of the sort, such as "2GB".
        force: write into a folder that holds something else.

    Raises:
        UserError: the release is missing or broken, or the manifest cannot be written.
    """
    options = options or BuildOptions()
    source = get_source(source_name)
    check_root(root)
    root = root.resolve()
    name = f"{source_name}-{split}"
    check_out(out, name, force=force)
    request = Request(
        root=root,
        split=split,
        progress=progress.reading,
        slashed_names=options.slashed_names,
        evaluation_files=options.exclude,
        keep_leaks=options.keep_leaks,
    )
    with _workspace(out) as work, _collector_off():
        records = Records(work)
        with records:
            source.read(request, records)
        with progress.stage("grouping", None, "images"):
            grouped = group(
                records, work, merge_images=source.merge_images, memory=memory, threads=workers
            )
        staged = work / "staged"
        staged.mkdir()
        reformulator = Reformulator(
            source=source.name,
            split=split,
            parts=[(_relative(file, root), place) for file, place in records.parts],
            checker=ImageChecker(
                root, options.check_images, options.images == "embed", options.limits
            ),
            rules=options.rules,
        )
        info = {
            "name": name,
            "source": source.name,
            "split": split,
            "options": options.to_dict(),
            "image_root": str(root) if options.images == "reference" else None,
            "generator": f"xvlm {__version__}",
            "licence": source.licence,
        }
        shards, counts = _write(grouped, reformulator, staged, info, options, progress, workers)
        summary = _summary(info, source, request, records, grouped, shards, counts)
        write_summary(staged, summary)
        move_into_place(staged, out)
    return summary


def _write(
    grouped: Grouped,
    reformulator: Reformulator,
    staged: Path,
    info: dict[str, Any],
    options: BuildOptions,
    progress: Progress,
    workers: int,
) -> tuple[list[dict[str, Any]], Counts]:
    counts = Counts()
    rows = ManifestWriter(staged, info, shard_rows=options.shard_rows)
    rejects = RejectsWriter(staged)
    with (
        ThreadPoolExecutor(max(workers, 1)) as pool,
        progress.stage("images", grouped.image_count, "images") as advance,
    ):
        for block in blocks(grouped, BLOCK_IMAGES):
            table, rejected = reformulator(block, pool, counts)
            rows.write(table)
            rejects.write(rejected)
            advance(len(block.images))
    _set_aside(grouped, reformulator, rejects, counts)
    rejects.close()
    return rows.close(), counts


def _set_aside(
    grouped: Grouped, reformulator: Reformulator, rejects: RejectsWriter, counts: Counts
) -> None:
    """Records that belong to no image of the manifest: orphans, repeated image records."""
    for batch in pq.ParquetFile(grouped.orphans_path).iter_batches():
        table = pa.Table.from_batches([batch])
        reasons = [reason or "unknown_image" for reason in table["problem"].to_pylist()]
        for kind, name in enumerate(KINDS):
            of_kind = table["kind"].to_pylist()
            counts.leave_out(name, [r for r, k in zip(reasons, of_kind, strict=True) if k == kind])
        rejects.write(reformulator.annotation_rejects(table, reasons, [None] * len(table)))
    for batch in pq.ParquetFile(grouped.duplicates_path).iter_batches():
        table = pa.Table.from_batches([batch])
        counts.leave_out("image", ["duplicate_image"] * len(table))
        details = ["an image record with this id came before"] * len(table)
        rejects.write(reformulator.image_rejects(table, ["duplicate_image"] * len(table), details))
    for batch in pq.ParquetFile(grouped.loose_attributes_path).iter_batches():
        table = pa.Table.from_batches([batch])
        counts.leave_out("attributes", ["unknown_object"] * len(table))
        rejects.write(reformulator.attribute_rejects(table))


def _summary(
    info: dict[str, Any],
    source: Source,
    request: Request,
    records: Records,
    grouped: Grouped,
    shards: list[dict[str, Any]],
    counts: Counts,
) -> dict[str, Any]:
    raw = _raw_counts(records, grouped)
    table = {}
    for kind, name in [("image", "images"), *((kind, f"{kind}s") for kind in KINDS)]:
        left_out: dict[str, int] = dict(counts.left_out.get(kind, {}))
        filtered = {reason: n for reason, n in sorted(left_out.items()) if reason in FILTERS}
        rejected = {reason: n for reason, n in sorted(left_out.items()) if reason not in FILTERS}
        table[name] = {
            "raw": raw[kind],
            "kept": counts.kept[kind],
            "filtered": filtered,
            "rejected": rejected,
        }
        total = counts.kept[kind] + sum(left_out.values())
        if total != raw[kind]:
            raise AssertionError(f"{name}: {raw[kind]} read, but {total} accounted for")
    return {
        **info,
        "schema_version": SCHEMA_VERSION,
        "inputs": [str(_relative(path, request.root)) for path in request.inputs],
        "notes": request.notes,
        "counts": table,
        "unattached_attributes": sum(counts.left_out.get("attributes", {}).values()),
        "clipped_boxes": counts.clipped,
        "images_without_concepts": counts.images_without_concepts,
        "rows": sum(shard["rows"] for shard in shards),
        "concepts": {
            "image": counts.kept["caption"],
            "region": counts.kept["region"],
            "object": counts.kept["object"],
        },
        "rejects": sum(sum(reasons.values()) for reasons in counts.left_out.values()),
        "shards": shards,
    }


def _raw_counts(records: Records, grouped: Grouped) -> dict[str, int]:
    """What was read, counted from what was read and not from what became of it."""
    counts = dict.fromkeys(KINDS, 0)
    for batch in pq.ParquetFile(records.paths["annotations"]).iter_batches(columns=["kind"]):
        for pair in pc.value_counts(batch["kind"]).to_pylist():
            counts[KINDS[pair["values"]]] += pair["counts"]
    with duckdb.connect(":memory:") as db:
        view_records(db, records)
        distinct, nameless = db.execute(
            "SELECT count(DISTINCT key), count(*) FILTER (key IS NULL) FROM images"
        ).fetchone() or (0, 0)
    repeated = pq.read_metadata(grouped.duplicates_path).num_rows
    return counts | {"image": int(distinct) + int(nameless) + repeated}


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


@contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """A hidden folder inside ``out`` for spilling and staging; always removed."""
    existed = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".building-", dir=out))
    except OSError as error:
        raise UserError(f"{out}: {error.strerror or error}", "give another --out") from error
    try:
        yield work
    except (OSError, duckdb.Error, pa.ArrowException) as error:
        raise _explained(error, out) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not existed and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def _explained(error: Exception, out: Path) -> Exception:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or "No space left" in text or "File too large" in text:
        return UserError(
            f"{out}: no space left to write the manifest",
            "free some space or give another --out, and run the same command again",
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return UserError(f"{out}: the sort needs more memory ({text})", "raise --memory")
    if isinstance(error, OSError | duckdb.Error):
        return UserError(f"{out}: {text}", "nothing was written; run the same command again")
    return error


@contextmanager
def _collector_off() -> Iterator[None]:
    """Millions of small decoded objects make the cyclic collector the most expensive part."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
