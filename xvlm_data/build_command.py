"""``xvlm-data build`` and the table that closes it."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from xvlm_data.errors import UserError
from xvlm_data.option_types import Number
from xvlm_data.sources import SOURCES, Source


@click.command("build")
@click.option(
    "--source",
    required=True,
    help=f"Which release: {', '.join(SOURCES)}; or one of a plugin, see `xvlm-data sources`.",
)
@click.option(
    "--root",
    help="Folder of the raw release [raw/SOURCE].",
)
@click.option(
    "--out",
    help="Folder of the manifest [manifests/SOURCE].",
)
@click.option("--split", default="train", show_default=True, help="Which part of the release.")
@click.option(
    "--images",
    type=click.Choice(["reference", "embed", "url"]),
    default="reference",
    show_default=True,
    help="Store paths, the encoded images themselves, or (of lists of addresses) the addresses.",
)
@click.option(
    "--shortest-side",
    type=click.IntRange(16),
    help="With --images embed: make images smaller once, to this shortest side.",
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    help="Of the JPEG that --shortest-side writes [90].",
)
@click.option(
    "--min-area",
    type=Number(0, 1),
    help="Leave out objects and regions below this share of the image [0.01; evaluation sets 0].",
)
@click.option(
    "--max-text-overlap",
    type=Number(0, 1),
    help="Leave out a region whose words overlap those of an earlier one of its image more "
    "[0.75; evaluation sets 1].",
)
@click.option("--keep-all", is_flag=True, help="Turn the two filters above off.")
@click.option("--keep-crowd", is_flag=True, help="Keep annotations of crowds as objects.")
@click.option(
    "--slashed-names",
    type=click.Choice(["first", "last", "raw"]),
    default="first",
    show_default=True,
    help="Which alternative of a category name such as Handbag/Satchel is the text.",
)
@click.option(
    "--exclude",
    multiple=True,
    help="Evaluation file whose images are left out by their ids; repeatable. "
    "For vg and sbu, those in sibling folders are found by themselves.",
)
@click.option(
    "--exclude-images",
    multiple=True,
    metavar="MANIFEST_OR_FOLDER",
    help="Evaluation images that are left out by content, their bytes or pixels; repeatable.",
)
@click.option(
    "--exclude-perceptual",
    is_flag=True,
    help="With --exclude-images: also what looks like one of them, re-compressed or resized.",
)
@click.option(
    "--exclude-distance",
    type=click.IntRange(0, 12),
    help="With --exclude-perceptual: differing bits of 64 up to which images are alike [4].",
)
@click.option("--keep-leaks", is_flag=True, help="Do not leave out images of evaluation sets.")
@click.option(
    "--check",
    type=click.Choice(["decode", "find", "none"]),
    default="decode",
    show_default=True,
    help="Decode every image, only see whether it is there, or do not look at all.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=100_000_000,
    show_default=True,
    help="Reject larger images (decompression bombs).",
)
@click.option(
    "--max-image-mb",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="As above, on disk.",
)
@click.option(
    "--shard-rows",
    type=click.IntRange(1, 2**31 - 1),
    default=5_000,
    show_default=True,
    help="Images of the release a file, each file a task of its own.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes [all cores].")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where tasks run: this machine, or a Ray cluster.",
)
@click.option("--address", help="With --engine ray: the cluster [a new one on this machine].")
@click.option("--restart", is_flag=True, help="Forget what an interrupted build has done.")
@click.option("--force", is_flag=True, help="Write into a folder that holds something else.")
@click.option("--json", "as_json", is_flag=True, help="Print the closing table as JSON.")
def build_command(
    source: str,
    root: str | None,
    out: str | None,
    split: str,
    min_area: float | None,
    max_text_overlap: float | None,
    keep_all: bool,
    keep_crowd: bool,
    exclude: tuple[str, ...],
    exclude_images: tuple[str, ...],
    exclude_perceptual: bool,
    exclude_distance: int | None,
    quality: int | None,
    max_pixels: int,
    max_image_mb: int,
    workers: int | None,
    engine: str,
    address: str | None,
    restart: bool,
    force: bool,
    as_json: bool,
    **same: Any,
) -> None:
    """Turn an official raw release into a manifest.

    The release is read from raw/SOURCE and the manifest written to manifests/SOURCE, with
    manifest.json (counts, options) and rejects.parquet (what did not make it, and why). Both may be
    fsspec URLs such as s3://bucket/raw/coco. A build that was interrupted, however hard, goes on
    with the same command and ends with the same bytes.

    Images of sbu lie in images/<last part of the URL>, of cc3m and cc12m in images/<xx>/<key>.jpg,
    where key is the first 32 hex digits of the SHA-256 of the URL and xx its first two; or build
    with --images url and fetch them with `xvlm-data download`.

    The paper's filters (--min-area, --max-text-overlap, crowds) hold for every split of the
    training sources, val and test too; give --keep-all --keep-crowd to evaluate on all boxes. For
    evaluation sets (refcoco, flickr30k, vqa, nlvr2) they are off.

    \b
    Examples:
      xvlm-data build --source vg
      xvlm-data build --source coco --root /data/coco --split val --out manifests/coco_val
      xvlm-data build --source sbu --exclude-images manifests/coco_val --exclude-perceptual
      xvlm-data build --source openimages --images embed --shortest-side 288 --workers 16
      xvlm-data build --source cc3m --images url --out manifests/cc3m_urls
      xvlm-data build --source objects365 --engine ray --address auto --out s3://bucket/objects365
    """
    if exclude_perceptual and not exclude_images:
        raise click.UsageError("--exclude-perceptual belongs to --exclude-images")
    if exclude_distance is not None and not exclude_perceptual:
        raise click.UsageError("--exclude-distance belongs to --exclude-perceptual")
    if quality is not None and same["shortest_side"] is None:
        raise click.UsageError("--quality belongs to --shortest-side; else images stay as they are")

    from xvlm_data.engines import open_engine, start_fork_server

    workers = workers or os.cpu_count() or 1
    if engine == "local" and workers > 1:
        start_fork_server()
    from xvlm_data.lean import make_lean

    make_lean()
    from xvlm_data.build import build
    from xvlm_data.build_options import BuildOptions
    from xvlm_data.console import Bars
    from xvlm_data.images.decode import Limits
    from xvlm_data.nothing_kept import refuse_empty
    from xvlm_data.storage import as_path

    release = _release(source)
    rules = _rules(release.evaluation, min_area, max_text_overlap, keep_all, keep_crowd)
    options = BuildOptions(
        rules=rules,
        exclude=tuple(as_path(path) for path in exclude) or None,
        exclude_images=exclude_images,
        exclude_distance=(4 if exclude_distance is None else exclude_distance)
        if exclude_perceptual
        else None,
        limits=Limits(max_image_mb << 20, max_pixels),
        quality=90 if quality is None else quality,
        **same,
    )
    folder = as_path(root or f"raw/{source}")
    place = as_path(out or f"manifests/{source}")
    with open_engine(engine, workers, address) as opened:
        summary = build(
            source,
            folder,
            place,
            split=split,
            options=options,
            progress=Bars(quiet=as_json),
            engine=opened,
            force=force,
            restart=restart,
        )
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
    else:
        _tell(summary, place)
    refuse_empty(summary, place, _advice(release, summary, folder, place), root=folder)


def _tell(summary: dict[str, Any], place: Any) -> None:
    from xvlm_data.console import say, stdout

    stdout.print(closing_table(summary))
    for note in summary["notes"]:
        say(f"note: {note}")
    say(f"{place}: {summary['rows']:,} images in {len(summary['shards'])} file(s)")
    if stored := summary.get("image_bytes"):
        saved = 1 - stored["stored"] / max(stored["read"], 1)
        say(f"image bytes: {stored['read']:,} read, {stored['stored']:,} stored ({saved:.0%} less)")
    if summary["rejects"]:
        say(f"{summary['rejects']:,} records left out, listed in {place}/rejects.parquet")


def _advice(release: Source, summary: dict[str, Any], folder: Any, place: Any) -> str:
    """What to do when no image of a release could be used."""
    from xvlm_data.nothing_kept import main_reason

    reason = main_reason(summary)
    limits = {"too_many_pixels": "--max-pixels", "image_too_big": "--max-image-mb"}
    if reason in limits:
        return f"see {limits[reason]}"
    if reason != "missing_image":
        return f"is {folder} the release as it is published?"
    if not release.url_list:
        return f"unpack the images of the release in {folder}, or give their folder with --root"
    split = "" if summary["split"] == "train" else f" --split {summary['split']}"
    return (
        "the release is a list of addresses, whose images are to be downloaded: "
        f"`xvlm-data build --source {release.name} --root {folder}{split} --images url "
        f"--out {place}_urls`, then `xvlm-data download {place}_urls --out {place} --restart`"
    )


def _release(name: str) -> Source:
    """The source of that name; for an unknown one a known one that is like it is named."""
    from xvlm_data.mistaken import near_name
    from xvlm_data.sources import get_source, plugins

    try:
        return get_source(name)
    except UserError as error:
        near = near_name(name, [*SOURCES, *plugins()])
        if near in (None, name):  # there is one, but it cannot be used
            raise
        raise UserError(error.what, f"did you mean {near}? Or {error.fix}") from None


def _rules(
    evaluation: bool,
    min_area: float | None,
    max_text_overlap: float | None,
    keep_all: bool,
    keep_crowd: bool,
) -> Any:
    """The source's own rules, with what was asked for."""
    from dataclasses import replace

    from xvlm_data.rules import KEEP_ALL, Rules

    rules = KEEP_ALL if evaluation else Rules()
    if keep_all:
        rules = replace(rules, min_area=0.0, max_text_overlap=1.0)
    if keep_crowd:
        rules = replace(rules, keep_crowd=True)
    given: dict[str, Any] = {"min_area": min_area, "max_text_overlap": max_text_overlap}
    return replace(
        rules, **{name: v for name, v in given.items() if v is not None and not keep_all}
    )


def closing_table(summary: dict[str, Any]) -> Any:
    """What became of the raw records, reason by reason; every column adds up to its first row."""
    from rich.table import Table

    counts = summary["counts"]
    kinds = list(counts)
    table = Table(
        title=f"{summary['name']} ({summary['image_root'] or summary['options']['images']})"
    )
    table.add_column("")
    for kind in kinds:
        table.add_column(kind, justify="right")

    def row(label: str, values: list[int], style: str | None = None) -> None:
        shown = [f"{value:,}" if value else "–" for value in values]
        table.add_row(label, *shown, style=style)

    row("in the release", [counts[kind]["raw"] for kind in kinds])
    for group, style in (("filtered", None), ("rejected", "red")):
        reasons = sorted({reason for kind in kinds for reason in counts[kind][group]})
        for reason in reasons:
            values = [counts[kind][group].get(reason, 0) for kind in kinds]
            row(f"{group}: {reason}", values, style)
    table.add_section()
    row("in the manifest", [counts[kind]["kept"] for kind in kinds], "bold")
    if summary["clipped_boxes"]:
        table.caption = f"{summary['clipped_boxes']:,} boxes cut to their image"
    return table
