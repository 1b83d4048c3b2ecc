"""``xvlm-data verify``: built manifests held against a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import click

from xvlm_data.option_types import Number


@click.command("verify")
@click.option(
    "--recipe",
    "recipe_path",
    type=click.Path(path_type=Path, readable=False),
    required=True,
    help="The recipe, such as manifests/4m.yaml.",
)
@click.option(
    "--manifests",
    "folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path, readable=False),
    help="Folder that the recipe's manifests lie in [the recipe's own].",
)
@click.option(
    "--scale",
    type=Number(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Expected counts are multiplied by this, for synthetic releases of that scale.",
)
@click.option(
    "--recount",
    is_flag=True,
    help="Count the Parquet files too, and compare manifest.json with them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def verify_command(
    context: click.Context,
    recipe_path: Path,
    folder: Path | None,
    scale: float,
    recount: bool,
    as_json: bool,
) -> None:
    """Hold built manifests against a recipe's expected counts, source by source.

    Three tables: what the manifests hold beside the paper's figures; what the raw releases held
    beside the official ones; and, between the two, which rule or defect left out how many. Counts
    come from manifest.json; those of a source of which a stream reads only a part are counted in
    its Parquet files (for vg some seconds).

    Exit status: 0 when all is built and within its tolerance, 1 when not, 2 for bad usage.

    \b
    Examples:
      xvlm-data verify --recipe manifests/4m.yaml
      xvlm-data verify --recipe manifests/4m.yaml --manifests /data/manifests --recount
      xvlm-data verify --recipe manifests/4m.yaml --scale 0.01 --json
    """
    from xvlm_data.console import Bars
    from xvlm_data.recipe import read_recipe
    from xvlm_data.verify.compare import compare

    recipe = read_recipe(recipe_path)
    report = compare(
        recipe,
        recipe_path.parent if folder is None else folder,
        scale=scale,
        recount_all=recount,
        stage=Bars(quiet=as_json).stage,
    )
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        from xvlm_data.verify.report import print_report

        print_report(Console(highlight=False, markup=False), report)
    if not report.ok:
        context.exit(1)
