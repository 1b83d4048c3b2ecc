"""``xvlm-data inspect``: what is in a manifest, whether it keeps its promises, how it looks."""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.core import ParameterSource


@click.command("inspect")
@click.argument("manifests", metavar="MANIFEST...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--validate",
    "check",
    is_flag=True,
    help="Check every row against the schema's promises; exit 1 with the first offenders.",
)
@click.option("--decode", is_flag=True, help="With --validate: decode every image fully.")
@click.option(
    "--no-image-check",
    is_flag=True,
    help="With --validate: do not look whether referenced image files exist.",
)
@click.option(
    "--draw",
    nargs=2,
    type=(click.IntRange(min=1), click.Path(path_type=Path)),
    metavar="N OUT",
    help="Write N evenly spread images with their boxes and texts as PNG files into OUT.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Write one HTML file that shows the manifest, pictures with boxes included.",
)
@click.option(
    "--pictures",
    type=click.IntRange(0, 2000),
    default=120,
    show_default=True,
    help="With --html: pictures, besides examples of what is worth a second look.",
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path, readable=False),
    help="With --html: hold the counts against this recipe [one that lies beside MANIFEST].",
)
@click.option(
    "--max-rows",
    type=click.IntRange(min=0),
    default=400_000,
    show_default=True,
    help="With --html: of a larger manifest count so many rows, evenly spread; 0 counts all.",
)
@click.option(
    "--rows", type=click.IntRange(min=0), default=3, show_default=True, help="Example rows."
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Most frequent texts of each granularity.",
)
@click.option(
    "--image-root", metavar="DIR", help="Where referenced images lie now, if they were moved."
)
@click.pass_context
def inspect_command(
    context: click.Context,
    manifests: tuple[str, ...],
    as_json: bool,
    check: bool,
    decode: bool,
    no_image_check: bool,
    draw: tuple[int, Path] | None,
    page: Path | None,
    pictures: int,
    recipe: Path | None,
    max_rows: int,
    rows: int,
    top: int,
    image_root: str | None,
) -> None:
    """Show what a manifest holds; check it; draw it.

    MANIFEST is a .parquet file, a folder with manifest.json, a glob (quoted), or a URL; several
    are looked at as one.

    \b
    Examples:
      xvlm-data inspect manifests/coco
      xvlm-data inspect manifests/vg --validate --decode
      xvlm-data inspect manifests/coco --draw 12 pictures
      xvlm-data inspect manifests/vg --html vg.html --recipe manifests/4m.yaml
      xvlm-data inspect 'manifests/*/manifest-*.parquet' --json
    """
    from xvlm_data.console import Bars
    from xvlm_data.errors import UserError
    from xvlm_data.inspect.draw import draw_rows
    from xvlm_data.inspect.overview import disagreements, overview
    from xvlm_data.inspect.statistics import collect
    from xvlm_data.inspect.validate import validate
    from xvlm_data.json_values import finite
    from xvlm_data.manifest import open_manifest

    if page is not None:
        if check or draw is not None:
            raise click.UsageError("--html writes a page alone; run --validate or --draw by itself")
        _write_page(manifests, page, pictures, recipe, max_rows, image_root, as_json)
        return
    if recipe is not None:
        raise click.UsageError("--recipe belongs to --html; or use `xvlm-data verify --recipe`")
    for name in ("pictures", "max_rows"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} belongs to --html; --draw N OUT writes pictures")
    if (decode or no_image_check) and not check:
        raise click.UsageError("--decode and --no-image-check belong to --validate")
    bars = Bars(quiet=as_json)
    manifest = open_manifest(
        manifests[0] if len(manifests) == 1 else manifests, image_root=image_root
    )
    with bars.stage("counting", len(manifest), "rows") as advance:
        statistics = collect(manifest, examples=rows, advance=advance)
    warnings = disagreements(manifest, statistics)
    findings = None
    if check:
        with bars.stage("validating", 2 * len(manifest), "rows") as advance:
            findings = validate(
                manifest, check_images=not no_image_check, decode=decode, advance=advance
            )
    drawn = []
    if draw is not None:
        if not len(manifest):
            raise UserError("the manifest has no rows, so nothing can be drawn", "build it again")
        drawn = draw_rows(manifest, *draw)
    about = overview(manifest)
    if as_json:
        result = {
            "manifest": about,
            "statistics": statistics.to_dict(top),
            "warnings": warnings,
            "validation": findings.to_dict() if findings else None,
            "drawn": [str(path) for path in drawn],
        }
        click.echo(json.dumps(finite(result), ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        from xvlm_data.inspect import report

        console = Console(highlight=False, markup=False)
        report.print_overview(console, about)
        report.print_build(console, about["build"] or {})
        report.print_statistics(console, statistics, top=top)
        report.print_warnings(console, warnings)
        if findings is not None:
            report.print_findings(console, findings)
        if draw is not None:
            console.print(f"\ndrew {len(drawn)} images into {draw[1]}", soft_wrap=True)
    if findings is not None and not findings.ok:
        context.exit(1)


def _write_page(
    manifests: tuple[str, ...],
    page: Path,
    pictures: int,
    recipe: Path | None,
    max_rows: int,
    image_root: str | None,
    as_json: bool,
) -> None:
    from xvlm_data.console import Bars
    from xvlm_data.inspect.page import write_page
    from xvlm_data.manifest import open_manifest

    spec = manifests[0] if len(manifests) == 1 else manifests
    manifest = open_manifest(spec, image_root=image_root)
    size = write_page(
        manifest,
        manifests,
        page,
        pictures=pictures,
        recipe=recipe,
        max_rows=max_rows,
        stage=Bars(quiet=as_json).stage,
    )
    if as_json:
        click.echo(json.dumps({"page": str(page), "bytes": size}))
    else:
        click.echo(f"wrote {page} ({size / 1e6:.1f} MB); open it in a browser")
