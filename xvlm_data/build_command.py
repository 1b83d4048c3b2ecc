"""``xvlm-data build`` and the table that closes it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from xvlm_data.sources import SOURCES


@click.command("build")
@click.option("--source", required=True, help=f"Which release: {', '.join(SOURCES)}.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, readable=False),
    help="Folder of the raw release [raw/SOURCE].",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, readable=False),
    help="Folder of the manifest [manifests/SOURCE].",
)
@click.option("--split", default="train", show_default=True, help="Which part of the release.")
@click.option(
    "--images",
    type=click.Choice(["reference", "embed"]),
    default="reference",
    show_default=True,
    help="Store paths, or the encoded images themselves.",
)
@click.option(
    "--min-area",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Leave out objects and regions below this share of the image.",
)
@click.option(
    "--max-text-overlap",
    type=click.FloatRange(0, 1),
    default=0.75,
    show_default=True,
    help="Leave out a region whose words overlap those of an earlier one of its image more.",
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
    type=click.Path(path_type=Path, readable=False),
    help="Evaluation file whose images are left out; repeatable. "
    "For vg, those in sibling folders are found by themselves.",
)
@click.option("--keep-leaks", is_flag=True, help="Do not leave out images of evaluation sets.")
@click.option("--no-check-images", is_flag=True, help="Do not decode images, only find them.")
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
    "--shard-rows", type=click.IntRange(1), default=100_000, show_default=True, help="Rows a file."
)
@click.option("--workers", type=click.IntRange(1), help="Threads [all cores].")
@click.option("--memory", default="2GB", show_default=True, help="Limit of the sort.")
@click.option("--force", is_flag=True, help="Write into a folder that holds something else.")
@click.option("--json", "as_json", is_flag=True, help="Print the closing table as JSON.")
def build_command(
    source: str,
    root: Path | None,
    out: Path | None,
    split: str,
    min_area: float,
    max_text_overlap: float,
    keep_all: bool,
    keep_crowd: bool,
    exclude: tuple[Path, ...],
    no_check_images: bool,
    max_pixels: int,
    max_image_mb: int,
    workers: int | None,
    memory: str,
    force: bool,
    as_json: bool,
    **same: Any,
) -> None:
    """Turn an official raw release into a manifest.

    The release is read from raw/SOURCE and the manifest written to manifests/SOURCE, with
    manifest.json (counts, options) and rejects.parquet (what did not make it, and why).
    Images of sbu lie in images/<last part of the URL>, of cc3m in images/<xx>/<key>.jpg, where key
    is the first 32 hex digits of the SHA-256 of the URL and xx its first two.

    \b
    Examples:
      xvlm-data build --source vg
      xvlm-data build --source coco --root /data/coco --split val --out manifests/coco_val
      xvlm-data build --source cc3m --images embed --workers 16
      xvlm-data build --source objects365 --keep-all --json
    """
    from xvlm_data.build import BuildOptions, build
    from xvlm_data.console import Bars, stdout
    from xvlm_data.images.decode import Limits
    from xvlm_data.rules import Rules
    from xvlm_data.sources import get_source

    get_source(source)
    options = BuildOptions(
        rules=Rules(
            min_area=0.0 if keep_all else min_area,
            max_text_overlap=1.0 if keep_all else max_text_overlap,
            keep_crowd=keep_crowd,
        ),
        exclude=exclude or None,
        check_images=not no_check_images,
        limits=Limits(max_image_mb << 20, max_pixels),
        **same,
    )
    out = out or Path("manifests") / source
    summary = build(
        source,
        root or Path("raw") / source,
        out,
        split=split,
        options=options,
        progress=Bars(quiet=as_json),
        workers=workers or os.cpu_count() or 1,
        memory=memory,
        force=force,
    )
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    stdout.print(closing_table(summary))
    for note in summary["notes"]:
        stdout.print(f"note: {note}")
    stdout.print(f"{out}: {summary['rows']:,} images in {len(summary['shards'])} file(s)")
    if summary["rejects"]:
        stdout.print(f"{summary['rejects']:,} records left out, listed in {out}/rejects.parquet")


def closing_table(summary: dict[str, Any]) -> Any:
    """What became of the raw records, reason by reason; every column adds up to its first row."""
    from rich.table import Table

    kinds = ["images", "captions", "objects", "regions"]
    counts = summary["counts"]
    table = Table(title=f"{summary['name']} ({summary['image_root'] or 'images embedded'})")
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
