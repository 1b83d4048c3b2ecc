"""``xvlm-data export`` and ``xvlm-data import``: manifests in other people's formats."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import click

from xvlm_data.formats import EXPORTS, IMPORTS
from xvlm_data.verbs.options import json_option


@click.command("export")
@click.argument("manifests", metavar="MANIFEST...", nargs=-1, required=True)
@click.option("--to", type=click.Choice(EXPORTS), required=True, help="The format.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="A new folder."
)
@click.option(
    "--images",
    type=click.Choice(["auto", "copy", "base64", "path"]),
    default="auto",
    show_default=True,
    help="coco: auto leaves referenced pictures where they are, copy writes them too. "
    "xvlm-jsonl: auto is base64, or their paths.",
)
@click.option(
    "--files",
    type=click.IntRange(1, 4096),
    default=64,
    show_default=True,
    help="xvlm-jsonl: files that lines are dealt to; the original wants one for each of its GPUs "
    "times workers.",
)
@click.option(
    "--integer-boxes", is_flag=True, help="xvlm-jsonl: boxes in whole pixels, made wider."
)
@click.option(
    "--on-broken",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="What to do about pictures that are missing or broken.",
)
@click.option("--image-root", metavar="DIR", help="Where referenced images lie now.")
@json_option
def export_command(
    manifests: tuple[str, ...],
    to: str,
    out: Path,
    images: str,
    files: int,
    integer_boxes: bool,
    on_broken: Literal["refuse", "skip"],
    image_root: str | None,
    as_json: bool,
) -> None:
    """Write a manifest in another format; `xvlm-data import` brings it back as it was.

    \b
    coco         annotations/{instances,captions,regions}.json, images/: for pycocotools,
                 FiftyOne, CVAT, Detectron2
    webdataset   000000.tar, …: picture, row as .json and caption as .txt of each sample
    xvlm-jsonl   the JSON lines that the original X-VLM code pre-trains from
    hf           the manifest with all pictures in it and a dataset card, for `xvlm-data push`

    \b
    Examples:
      xvlm-data export manifests/vg --to xvlm-jsonl --out exports/vg --files 32
      xvlm-data export manifests/coco --to coco --images copy --out exports/coco
      xvlm-data export manifests/cc3m --to webdataset --out exports/cc3m
      xvlm-data export manifests/vg --to hf --out exports/vg_hf
    """
    from xvlm_data.console import Bars
    from xvlm_data.manifest import open_manifest

    allowed = {"coco": ("auto", "copy"), "xvlm-jsonl": ("auto", "base64", "path")}
    if images not in allowed.get(to, ("auto",)):
        raise click.UsageError(f"--images {images} means nothing to --to {to}")
    manifest = open_manifest(
        manifests[0] if len(manifests) == 1 else list(manifests), image_root=image_root
    )
    manifest.require_images()
    exporter = _exporter(to, images, files, integer_boxes)
    with Bars(quiet=as_json).stage("exporting", len(manifest), "images") as advance:
        done = exporter(manifest, out, on_broken=on_broken, advance=advance)
    if as_json:
        click.echo(json.dumps(done.to_dict(), ensure_ascii=False))
        return
    concepts = ", ".join(f"{number:,} {name}" for name, number in done.concepts.items() if number)
    click.echo(f"{out}: {done.images:,} images ({concepts or 'no concepts'})")
    for reason, number in done.left_out.items():
        click.echo(f"  left out: {number:,} images ({reason})")
    if done.turned:
        click.echo(f"  {done.turned:,} pictures were turned by their EXIF orientation")
    for note in done.notes:
        click.echo(f"note: {note}")


def _exporter(to: str, images: str, files: int, integer_boxes: bool) -> Any:
    from functools import partial

    if to == "coco":
        from xvlm_data.formats.coco import export_coco

        return partial(export_coco, images="copy" if images == "copy" else "auto")
    if to == "webdataset":
        from xvlm_data.formats.webdataset import export_webdataset

        return export_webdataset
    if to == "hf":
        from xvlm_data.formats.hf import export_hf

        return export_hf
    from xvlm_data.formats.xvlm_jsonl import export_jsonl

    return partial(
        export_jsonl,
        images="path" if images == "path" else "base64",
        files=files,
        integer_boxes=integer_boxes,
    )


@click.command("import")
@click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--from", "form", type=click.Choice(IMPORTS), required=True, help="The format.")
@click.option("--out", required=True, metavar="DIR", help="Folder of the manifest.")
@click.option(
    "--name",
    help="Source of the rows that name none, and beginning of their ids [name of --out].",
)
@click.option("--split", default="train", show_default=True, help="Of the rows that name none.")
@click.option(
    "--image-root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that paths of pictures are relative to; nothing outside it is opened "
    "[coco: the folder of the files, xvlm-jsonl: the current one].",
)
@click.option("--embed", is_flag=True, help="Put pictures that are files into the manifest.")
@click.option(
    "--elements",
    type=click.Choice(["region", "object"]),
    help="xvlm-jsonl: what elements are that do not say [those with attributes are objects].",
)
@click.option("--image-key", help="xvlm-jsonl: key of the picture [binary, or image].")
@click.option("--caption-key", default="caption", show_default=True, help="xvlm-jsonl: as above.")
@click.option("--image-paths", is_flag=True, help="xvlm-jsonl: pictures are paths, even if odd.")
@click.option("--licence", default="unknown", help="What one may do with the data.")
@click.option("--citation", default="", help="What is to be cited, in BibTeX.")
@click.option("--workers", type=click.IntRange(1), help="Processes [all cores].")
@click.option("--restart", is_flag=True, help="Forget what an interrupted import has done.")
@click.option("--force", is_flag=True, help="Write into a folder that holds something else.")
@json_option
def import_command(
    paths: tuple[Path, ...],
    form: str,
    out: str,
    name: str | None,
    split: str,
    image_root: Path | None,
    embed: bool,
    elements: str | None,
    image_key: str | None,
    caption_key: str,
    image_paths: bool,
    licence: str,
    citation: str,
    workers: int | None,
    restart: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make a manifest of files in another format.

    PATH is a file or a folder; several are read one after the other. Pictures are decoded, boxes
    clipped, and what cannot be used is in rejects.parquet with its reason. An import that was
    interrupted goes on with the same command.

    \b
    Examples:
      xvlm-data import coco/ --from xvlm-jsonl --out manifests/coco_old
      xvlm-data import vg_regions/ --from xvlm-jsonl --elements region --out manifests/vg_old
      xvlm-data import mine/annotations/instances_train.json --from coco --image-root mine/images \\
          --out manifests/mine
      xvlm-data import shards/ --from webdataset --out manifests/web --licence "CC BY 4.0"
    """
    from xvlm_data.lean import make_lean

    make_lean()
    from xvlm_data.build_command import closing_table
    from xvlm_data.console import Bars, say, stdout
    from xvlm_data.engines import open_engine
    from xvlm_data.formats.importing import ImportOptions
    from xvlm_data.nothing_kept import refuse_empty
    from xvlm_data.storage import as_path

    place = as_path(out)
    options = ImportOptions(
        name=(name or place.name).replace("/", "_"),
        split=split,
        image_root=image_root.absolute() if image_root else None,
        embed=embed,
        licence=licence,
        citation=citation,
    )
    lines = {
        "image_key": image_key,
        "caption_key": caption_key,
        "paths": image_paths,
        "elements": elements,
    }
    with open_engine("local", workers or os.cpu_count() or 1) as engine:
        summary = _import(
            form,
            list(paths),
            place,
            options,
            lines,
            engine=engine,
            progress=Bars(quiet=as_json),
            force=force,
            restart=restart,
        )
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
    else:
        stdout.print(closing_table(summary | {"options": {"images": form}}))
        for note in summary["notes"]:
            say(f"note: {note}")
        say(f"{place}: {summary['rows']:,} images in {len(summary['shards'])} file(s)")
        if summary["rejects"]:
            say(f"{summary['rejects']:,} records left out, listed in {place}/rejects.parquet")
    advice = "are the pictures where --image-root says, and the files of the format of --from?"
    refuse_empty(summary, place, advice, raw="files", root=summary["image_root"])


def _import(
    form: str,
    paths: list[Path],
    out: Path,
    options: Any,
    lines: dict[str, Any],
    **running: Any,
) -> dict[str, Any]:
    from dataclasses import replace

    from xvlm_data.formats.entries import files_of
    from xvlm_data.formats.importing import import_entries

    if form == "coco":
        return _import_coco(paths, out, options, **running)
    if form == "webdataset":
        from xvlm_data.formats import webdataset

        files = files_of(paths, webdataset.SUFFIXES, "archives")
        archives = webdataset.Archives(options.name, options.limits)
        return import_entries(form, archives, files, out, options, **running)
    from xvlm_data.formats import xvlm_jsonl_lines

    files = files_of(paths, xvlm_jsonl_lines.SUFFIXES, "JSON lines")
    root = options.image_root or Path().absolute()
    reader = xvlm_jsonl_lines.JsonLines(
        options.name, image_root=root, limits=options.limits, **lines
    )
    first = next(iter(reader.read(reader.pieces(files)[0])), None)
    if first is not None and first.data is None:  # pictures are files
        options = replace(options, image_root=root)
    return import_entries(form, reader, files, out, options, **running)


def _import_coco(paths: list[Path], out: Path, options: Any, **running: Any) -> dict[str, Any]:
    from xvlm_data.build import build
    from xvlm_data.build_options import BuildOptions
    from xvlm_data.formats.coco_parts import annotation_files, common_folder
    from xvlm_data.formats.coco_source import CocoFiles
    from xvlm_data.formats.importing import RULES

    files = annotation_files(paths)
    root = common_folder(files)
    source = CocoFiles(options.name, files, options.image_root, options.licence, options.citation)
    build_options = BuildOptions(
        images="embed" if options.embed else "reference",
        rules=RULES,
        slashed_names="raw",
        limits=options.limits,
    )
    return build(source, root, out, split=options.split, options=build_options, **running)
