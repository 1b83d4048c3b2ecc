"""``xvlm-train evaluate``: a trained model on held-out images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from xvlm_data.errors import UserError
from xvlm_data.json_values import finite
from xvlm_train.data.rejects import Reject, told


@click.command("evaluate")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--manifest", "manifests", multiple=True, required=True, help="Held-out manifest.")
@click.option("--images", type=click.IntRange(1), help="At most so many, evenly spaced.")
@click.option("--image-root", help="Where referenced images lie now.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …")
@click.option(
    "--pictures",
    type=(click.IntRange(1), click.Path(path_type=Path)),
    metavar="N OUT",
    help="Draw N images with predicted and true boxes into the folder OUT.",
)
@click.option("--ema", is_flag=True, help="The averaged weights of a run with optim.ema.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate_command(
    run: Path,
    manifests: tuple[str, ...],
    images: int | None,
    image_root: str | None,
    device: str,
    pictures: tuple[int, Path] | None,
    ema: bool,
    as_json: bool,
) -> None:
    """Retrieval and grounding of RUN, a run's folder, one of its checkpoints, or an exported model.

    Retrieval ranks by contrastive similarity among the images given; grounding counts predicted
    boxes with IoU of at least 0.5. Chance stands beside each.

    \b
    xvlm-train evaluate runs/first --manifest manifests/coco_val
    xvlm-train evaluate runs/first --manifest manifests/vg_val --pictures 20 pictures
    """
    from xvlm_train.data.evaluation import EvalSet
    from xvlm_train.engine.distributed import choose_device
    from xvlm_train.evaluator import Evaluator
    from xvlm_train.inputs import open_with_rows
    from xvlm_train.pictures import check_folder, draw_grounding
    from xvlm_train.saved import load_saved

    if pictures:
        check_folder(pictures[1])  # before the minutes that measuring takes
    console = Console(stderr=as_json, markup=False)
    saved = load_saved(run, choose_device(device), average=ema)
    if saved.tokenizer is None:
        raise UserError(f"{run}: has no tokenizer", "import it again with --tokenizer")
    opened = open_with_rows(manifests, image_root)
    held_out = EvalSet(opened, saved.config.data, limit=images)
    evaluator = Evaluator(saved.model, saved.tokenizer, saved.config.data.max_tokens)
    with console.status(f"evaluating on {len(held_out)} images"):
        values = evaluator.measure(held_out)
        rejects = list(held_out.rejects)
        drawn: list[Path] = []
        if pictures:
            drawn = draw_grounding(evaluator, held_out, *pictures)
    if as_json:
        report: dict[str, Any] = {"checkpoint": str(saved.path), "step": saved.step, **values}
        report["rejects"] = [reject._asdict() for reject in rejects]
        click.echo(json.dumps(finite(report)))
        return
    step = "" if saved.step is None else f" (step {saved.step})"  # folders for use tell none
    console.print(results_table(values, f"{saved.path}{step}", rejects))
    if pictures:
        console.print(f"{len(drawn)} pictures in {pictures[1]}")


def results_table(values: dict[str, float], title: str, rejects: Sequence[Reject]) -> Table:
    """The measures for a person, in percent, with chance beside them and what was left out."""
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("result", justify="right")
    table.add_column("chance", justify="right")
    for way in ("text_to_image", "image_to_text"):
        for k in (1, 5, 10):
            if (name := f"{way}_r{k}") in values:
                label = f"{way.replace('_', ' ')} R@{k}"
                table.add_row(label, f"{values[name]:.1%}", f"{values[f'{name}_chance']:.1%}")
    if "grounding_accuracy" in values:
        table.add_row(
            "grounding, IoU ≥ 0.5",
            f"{values['grounding_accuracy']:.1%}",
            f"{values['grounding_chance_constant']:.1%} best constant box\n"
            f"{values['grounding_chance_blind']:.1%} random box of the image",
        )
    table.caption = " · ".join(f"{values[n]:.0f} {n}" for n in ("images", "captions", "phrases"))
    if rejects:
        table.caption += f"\n{len(rejects)} images left out ({told(rejects)})"
    return table
