"""Pictures: predicted boxes beside the true ones, and the curves of a run's losses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xvlm_data.errors import UserError

if TYPE_CHECKING:
    from xvlm_train.data.evaluation import EvalItem
    from xvlm_train.evaluator import Evaluator

#: Phrases drawn on one image, each in a colour of its own.
_COLOURS = ("#e6194b", "#0082c8", "#f58231", "#911eb4")


def check_folder(folder: Path) -> None:
    """Raises UserError where a file lies at a folder's path, or at that of one above it."""
    for part in (folder, *folder.parents):
        if part.exists():
            if not part.is_dir():
                raise UserError(f"{part}: a file, but pictures go into a folder", "give another")
            return


def _spread(items: Iterable[EvalItem], count: int) -> list[EvalItem]:
    """At most ``count`` of the items, evenly spread, holding no more than twice as many."""
    kept: list[EvalItem] = []
    stride = 1
    for number, item in enumerate(items):
        if number % stride == 0:
            kept.append(item)
        if len(kept) > 2 * count:
            kept, stride = kept[::2], 2 * stride
    return [kept[i * len(kept) // count] for i in range(count)] if len(kept) > count else kept


def draw_grounding(
    evaluator: Evaluator, items: Iterable[EvalItem], count: int, folder: Path
) -> list[Path]:
    """PNGs of ``count`` images with phrases, evenly spread: true box solid, predicted box dashed.

    Raises:
        UserError: no image has a phrase to ground, or the folder cannot be one.
    """
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from xvlm_train.measures import iou

    chosen = _spread((item for item in items if item.phrases), count)
    if not chosen:
        raise UserError("no image has a phrase to draw", "give a manifest with regions or objects")
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for item, boxes in zip(chosen, evaluator.ground(chosen), strict=True):
        phrases = item.phrases[: len(_COLOURS)]
        overlaps = iou(boxes[: len(phrases)], torch.tensor([phrase.box for phrase in phrases]))
        width, height = item.size
        figure = Figure(figsize=(6, 6 * height / width + 0.3 * len(phrases)), layout="tight")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.imshow(item.pixels.transpose(1, 2, 0), extent=(0, width, height, 0))
        axes.set_axis_off()
        for phrase, box, overlap, colour in zip(
            phrases, boxes.tolist(), overlaps.tolist(), _COLOURS, strict=False
        ):
            for (cx, cy, w, h), style in ((phrase.box, "solid"), (box, "dashed")):
                corner = ((cx - w / 2) * width, (cy - h / 2) * height)
                # An escaped $, because two of them would start a formula.
                text = phrase.text.replace("$", r"\$")
                label = f"{text} (IoU {overlap:.2f})" if style == "solid" else None
                axes.add_patch(
                    Rectangle(
                        corner,
                        w * width,
                        h * height,
                        fill=False,
                        edgecolor=colour,
                        linestyle=style,
                        linewidth=2,
                        label=label,
                    )
                )
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False)
        axes.set_title("true box solid, predicted box dashed", fontsize=9)
        name = re.sub(r"[^\w.-]+", "_", item.record_id)[-100:]
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=100)
        paths.append(path)
    return paths


def draw_curves(lines: list[dict[str, Any]], path: Path) -> None:
    """The losses of both streams and the held-out measures over the steps, as one PNG.

    Raises:
        UserError: there is no loss yet, or the file's folder cannot be one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[str, list[str]] = {}
    streams = ("image_text", "multi_grained")
    for loss in ("contrastive", "matching", "mlm", "box_l1", "box_giou"):
        if present := _present(lines, [f"{stream}/{loss}" for stream in streams]):
            panels[loss.replace("_", " ")] = present
    if not panels:
        raise UserError("the run has logged no losses yet", "let it reach train.log_every steps")
    measures = ("eval/text_to_image_r1", "eval/image_to_text_r1", "eval/grounding_accuracy")
    if present := _present(lines, measures):
        panels["held out"] = present
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            stream, _, measure = name.partition("/")
            label = measure if stream == "eval" else stream
            axes.plot(*zip(*points, strict=True), label=label.replace("_", " "), linewidth=1.2)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    check_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _present(lines: list[dict[str, Any]], names: Iterable[str]) -> list[str]:
    return [name for name in names if any(line.get(name) is not None for line in lines)]


@click.command("curves")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
def curves_command(run: Path, out: Path) -> None:
    """Draw the losses of RUN, a run's folder, into the picture OUT.

    \b
    xvlm-train curves runs/first curves.png
    """
    from xvlm_train.engine.metrics import read_metrics

    if out.suffix.lower() != ".png":
        raise UserError(f"{out}: not a .png file", "name it curves.png, say")
    draw_curves(read_metrics(run), out)
    click.echo(f"wrote {out}")
