"""``xvlm-data leaks``: prove that manifests hold no image of an evaluation set."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click


class _ManyAgainst(click.Command):
    """``--against a b c`` is three of them, as the shell expands a pattern."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As the base class, with one ``--against`` before each of its values."""
        spread: list[str] = []
        many = False
        for arg in args:
            if arg.startswith("-"):
                many = arg == "--against"
                spread += [] if many else [arg]
            else:
                spread += ["--against", arg] if many else [arg]
        return super().parse_args(ctx, spread)


@click.command("leaks", cls=_ManyAgainst)
@click.argument("manifests", metavar="MANIFEST...", nargs=-1)
@click.option(
    "--against",
    multiple=True,
    metavar="FILE_OR_MANIFEST...",
    help="Evaluation files, manifests of evaluation sets, or folders of their images.",
)
@click.option(
    "--ids",
    multiple=True,
    type=click.Path(path_type=Path, readable=False),
    help="File that tells the COCO and Flickr ids of rows: VG's image_data.json, a COCO annotation "
    "file, OpenImages' image list; repeatable. Those in a manifest's image root are found.",
)
@click.option("--image-root", metavar="DIR", help="Where referenced images lie now, if moved.")
@click.option("--no-content", is_flag=True, help="Compare ids only; read no image.")
@click.option("--no-pixels", is_flag=True, help="Compare bytes, and decode no image.")
@click.option("--perceptual", is_flag=True, help="Find re-compressed and resized images too.")
@click.option(
    "--distance",
    type=click.IntRange(0, 12),
    help="With --perceptual: differing bits of 64 up to which images are alike [4].",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write every finding to this .parquet, .csv or .json file.",
)
@click.option("--strict", is_flag=True, help="Exit 1 also when something could not be compared.")
@click.option("--workers", type=click.IntRange(1), help="Threads [all cores].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def leaks_command(
    context: click.Context,
    manifests: tuple[str, ...],
    against: tuple[str, ...],
    ids: tuple[Path, ...],
    image_root: str | None,
    no_content: bool,
    no_pixels: bool,
    perceptual: bool,
    distance: int | None,
    out: Path | None,
    strict: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Prove that manifests hold no image of an evaluation set.

    MANIFEST is a .parquet file, a folder with manifest.json, a glob (quoted), or a URL. It is held
    against evaluation files (dataset_coco.json, dataset_flickr30k.json, COCO val/test annotations,
    RefCOCO's refs(...).p, Google's google_refexp_val, VQA v2 questions, text lists), against
    manifests of evaluation sets (coco_val), and against folders of evaluation images.

    Rows are compared by COCO and Flickr ids, across sources; where evaluation images are given,
    also by the SHA-256 of their bytes and of their decoded pixels, which other metadata do not
    change; with --perceptual also by their looks, which survive re-compression and resizing but
    not mirroring or cropping. What could not be compared is counted, and listed in --out.

    Exit status: 0 when no leak was found, 1 when one was (with --strict also when something could
    not be compared), 2 for bad input.

    \b
    Examples:
      xvlm-data leaks manifests/coco manifests/vg --against raw/coco/dataset_coco.json
      xvlm-data leaks manifests/vg --against raw/refcoco*/refs*.p --ids raw/vg/image_data.json
      xvlm-data leaks manifests/cc3m --against manifests/coco_val raw/flickr30k/test --perceptual
      xvlm-data leaks manifests/coco manifests/sbu --against manifests/coco_val \\
          --out leaks.csv --strict
    """
    if not manifests:
        raise click.UsageError("no MANIFEST (name them before --against, which takes all it gets)")
    if not against:
        raise click.UsageError("--against is missing: what must the manifests not hold?")
    if distance is not None and not perceptual:
        raise click.UsageError("--distance belongs to --perceptual")
    if no_content and (no_pixels or perceptual):
        raise click.UsageError("--no-content reads no images; drop --no-pixels and --perceptual")
    if image_root is not None and len(manifests) > 1:
        raise click.UsageError("--image-root belongs to one MANIFEST")

    from xvlm_data.console import Bars
    from xvlm_data.leaks.run import Options, run

    report = run(
        manifests,
        against,
        Options(
            ids=ids,
            image_root=image_root,
            content=not no_content,
            pixels=not no_pixels,
            distance=(4 if distance is None else distance) if perceptual else None,
            workers=workers or os.cpu_count() or 1,
        ),
        out=out,
        stage=Bars(quiet=as_json).stage,
    )
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        from xvlm_data.leaks.report import print_report

        print_report(Console(highlight=False, markup=False), report)
    if report.pairs or (strict and not report.complete):
        context.exit(1)
