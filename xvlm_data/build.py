"""Raw release to manifest: read into records, then shard by shard into rows; journalled throughout.

A build can be killed at any moment: the same command goes on where it was, and ends with the same
bytes as if nothing had happened.
"""

from __future__ import annotations

import errno
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pyarrow as pa

from xvlm_data import __version__, reading
from xvlm_data.build_options import BuildOptions
from xvlm_data.engines import Engine
from xvlm_data.errors import UserError
from xvlm_data.images.check import ImageChecker
from xvlm_data.images.decode import in_a_store
from xvlm_data.journal import Journal
from xvlm_data.leaks.exclusion import Evaluated, looked_at, stamp
from xvlm_data.raw.files import check_root
from xvlm_data.reading import Records
from xvlm_data.records import KINDS
from xvlm_data.reformulate import Counts, Reformulator
from xvlm_data.rejects import RejectsMaker
from xvlm_data.rules import FILTERS
from xvlm_data.schema import FIELDS, SIZES_KNOWN, SIZES_UNKNOWN, manifest_schema
from xvlm_data.shard import (
    SHARDS_FOLDER,
    STAGED_FOLDER,
    ShardPlan,
    read_rejects,
    run_shard,
)
from xvlm_data.sources import Request, Source, get_source
from xvlm_data.sources.base import OpenProgress
from xvlm_data.spill import close_spills
from xvlm_data.storage import AnyPath, is_local
from xvlm_data.write import RejectsWriter, check_out, move_into_place

#: The journal's folder, inside the manifest's.
JOURNAL_NAME = ".building"


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
    source: str | Source,
    root: AnyPath,
    out: AnyPath,
    *,
    split: str = "train",
    options: BuildOptions | None = None,
    progress: Progress,
    engine: Engine,
    force: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Build a manifest folder; returns the content of its ``manifest.json``.

    Args:
        source: by its name, or a source itself.
        root: folder of the raw release.
        out: folder of the manifest; replaced as a whole when the build succeeds.
        split: which part of the release.
        options: what to keep and how to store it.
        progress: display.
        engine: an opened engine; the result does not depend on it.
        force: write into a folder that holds something else.
        restart: forget what an interrupted build has done.

    Raises:
        UserError: the release is missing or broken, the manifest cannot be written, or another
            build works in ``out``.
    """
    options = options or BuildOptions()
    source = get_source(source) if isinstance(source, str) else source
    check_root(root)
    if is_local(root):
        root = root.resolve()
    name = f"{source.name}-{split}"
    check_out(out, name, force=force)
    _check_images_option(source, options)
    request = Request(
        root=root,
        split=split,
        progress=progress.reading,
        slashed_names=options.slashed_names,
        evaluation_files=options.exclude,
        keep_leaks=options.keep_leaks,
        urls=options.images == "url",
    )
    image_root = source.image_root(request)
    stays = is_local(image_root) or in_a_store(str(image_root))
    if options.images == "reference" and not stays:
        raise UserError(
            f"{image_root}: a manifest's images are read from files and object stores alone",
            "store them in it with --images embed",
        )
    info = {
        "name": name,
        "source": source.name,
        "split": split,
        "options": options.to_dict(source),
        "image_root": str(image_root) if options.images == "reference" else None,
        "generator": f"xvlm {__version__}",
        "licence": source.licence,
        "citation": source.citation,
        "homepage": source.homepage,
    }
    # Tasks are told apart by their numbers, so files must be cut in the same places throughout.
    plan = info | {
        "root": str(root),
        "image_root": str(image_root),
        "range": reading.RANGE,
        "image_range": reading.IMAGE_RANGE,
    }
    if options.compares_images:
        plan["evaluation_images"] = {given: stamp(given) for given in options.exclude_images}
    with _journal(out, plan, restart) as journal, _collector_off():
        done = journal.done("commit")
        if done is None:
            done = _run(journal, source, request, info, options, progress, engine)
            journal.record("commit", done)
        move_into_place(journal.folder / STAGED_FOLDER, out, done)
        close_spills()
        journal.discard()
    return done


def _check_images_option(source: Source, options: BuildOptions) -> None:
    if options.images == "url" and not source.url_list:
        raise UserError(
            f"--images url: {source.name} is no list of addresses", "use reference or embed"
        )
    if options.shortest_side is not None and options.images != "embed":
        raise UserError("--shortest-side needs --images embed", "references keep their files")
    if options.check == "none" and options.images == "embed":
        raise UserError("--check none cannot embed images", "use --check find")
    if options.compares_images and options.images == "url":
        raise UserError(
            "--exclude-images: with --images url there is no image to look at",
            "download the images first, or give lists of ids with --exclude",
        )
    if options.compares_images and options.check != "decode":
        raise UserError(
            f"--exclude-images needs --check decode, not {options.check}",
            "images are compared by their pixels; or give lists of ids with --exclude",
        )


def _run(
    journal: Journal,
    source: Source,
    request: Request,
    info: dict[str, Any],
    options: BuildOptions,
    progress: Progress,
    engine: Engine,
) -> dict[str, Any]:
    """Everything up to the complete manifest in the journal's folder; returns its summary."""
    request.on_open = journal.check_input
    records = Records(
        request, journal, engine, merge_images=source.merge_images, size=options.shard_rows
    )
    evaluated = None
    with _reading_failed(journal):
        if options.compares_images:
            evaluated = looked_at(
                journal,
                options.exclude_images,
                distance=options.exclude_distance,
                limits=options.limits,
                threads=max(engine.workers, 1),
                stage=progress.stage,
            )
        source.read(request, records)
        records.close()
        journal.check_all_inputs()
    for folder in (SHARDS_FOLDER, STAGED_FOLDER):
        (journal.folder / folder).mkdir(parents=True, exist_ok=True)
    if evaluated is not None:
        request.notes += evaluated.notes
        info = info | {
            "evaluation_images": {"images": evaluated.images, "digest": evaluated.digest}
        }
    plan = _plan(journal, source, request, records, info, options, evaluated, engine)
    shards, counts = _write(plan, journal, records, progress, engine)
    return _summary(plan, info, request, records, shards, counts)


def _plan(
    journal: Journal,
    source: Source,
    request: Request,
    records: Records,
    info: dict[str, Any],
    options: BuildOptions,
    evaluated: Evaluated | None,
    engine: Engine,
) -> ShardPlan:
    unknown = options.check == "none" and (source.url_list or source.normalised_boxes)
    unseen = options.images == "url" or unknown
    reformulator = Reformulator(
        source=source.name,
        split=info["split"],
        rejects=RejectsMaker(
            tuple((str(_relative(file, request.root)), place) for file, place in records.parts)
        ),
        checker=ImageChecker(
            source.image_root(request),
            options.check,
            options.images == "embed",
            options.limits,
            options.shortest_side,
            options.quality,
            as_urls=options.images == "url",
            stored_pixels=source.stored_pixels,
            sizes_unknown=unseen,
            exclusion=None if evaluated is None else evaluated.exclusion,
        ),
        rules=options.rules_for(source),
        labels=records.labels,
        normalised_boxes=source.normalised_boxes,
        extra=source.extra,
    )
    fields = FIELDS if source.extra is None else FIELDS.append(source.extra)
    shards = max(len(records.shard_records) - 1, 1)
    assert records.index_folder is not None
    return ShardPlan(
        journal.folder,
        records.index_folder,
        tuple(records.spills),
        tuple(records.shard_records),
        options.shard_rows,
        reformulator,
        manifest_schema(info, fields, SIZES_UNKNOWN if unseen else SIZES_KNOWN),
        # Few shards would leave workers idle while images are decoded.
        threads=max(engine.workers // shards, 1) if options.check != "none" else 1,
    )


def _write(
    plan: ShardPlan, journal: Journal, records: Records, progress: Progress, engine: Engine
) -> tuple[list[dict[str, Any]], Counts]:
    assert records.index is not None
    shards, counts = [], Counts()
    rejects = RejectsWriter(journal.folder / STAGED_FOLDER)
    left = records.index.images
    with progress.stage("writing", left, "images") as advance:
        tasks = ((plan, number) for number in range(plan.count))
        for number, record in enumerate(engine.map(run_shard, tasks)):
            counts.add(Counts.from_dict(record["counts"]))
            rejects.write(read_rejects(journal.folder, number))
            shards.append(record["shard"])
            advance(min(plan.size, left))
            left -= min(plan.size, left)
    rest = run_shard((plan, plan.count))
    counts.add(Counts.from_dict(rest["counts"]))
    rejects.write(read_rejects(journal.folder, plan.count))
    rejects.close()
    return shards, counts


def _summary(
    plan: ShardPlan,
    info: dict[str, Any],
    request: Request,
    records: Records,
    shards: list[dict[str, Any]],
    counts: Counts,
) -> dict[str, Any]:
    raw = records.counts()
    table = {}
    for kind in ("image", *KINDS):
        left_out: dict[str, int] = dict(counts.left_out.get(kind, {}))
        if kind == "question" and plan.reformulator.extra is None:
            continue
        table[f"{kind}s"] = {
            "raw": raw[kind],
            "kept": counts.kept[kind],
            "filtered": {r: n for r, n in sorted(left_out.items()) if r in FILTERS},
            "rejected": {r: n for r, n in sorted(left_out.items()) if r not in FILTERS},
        }
        total = counts.kept[kind] + sum(left_out.values())
        if total != raw[kind]:
            raise AssertionError(f"{kind}s: {raw[kind]} read, but {total} accounted for")
    summary = {
        **info,
        "schema_version": int(plan.schema.metadata[b"xvlm.schema_version"]),
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
    if counts.bytes_stored:
        summary["image_bytes"] = {"read": counts.bytes_read, "stored": counts.bytes_stored}
    return summary


def _relative(path: AnyPath, root: AnyPath) -> AnyPath:
    return path.relative_to(root) if path.is_relative_to(root) else path


@contextmanager
def _journal(out: AnyPath, plan: dict[str, Any], restart: bool) -> Iterator[Journal]:
    """The journal of a build into ``out``; failures are told as what a person can do about them."""
    existed = out.exists()
    journal = Journal(out / JOURNAL_NAME, plan, restart=restart)
    try:
        with journal:
            yield journal
    except (OSError, pa.ArrowException) as error:
        raise _explained(error, out) from error
    finally:
        if not existed and is_local(out) and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


@contextmanager
def _reading_failed(journal: Journal) -> Iterator[None]:
    """A release that cannot be read leaves nothing to go on with."""
    try:
        yield
    except UserError:
        if not journal.resumed:
            journal.discard()
        raise


def _explained(error: Exception, out: AnyPath) -> Exception:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if full or "No space left" in text or "File too large" in text:
        return UserError(
            f"{out}: no space left to write the manifest",
            "free some space and run the same command again; it goes on where it was",
        )
    if isinstance(error, OSError):
        return UserError(f"{out}: {text}", "run the same command again; it goes on where it was")
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
