"""``xvlm-data sample``: miniature releases, so that everything runs offline on a fresh machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

_SOURCES = ("coco", "vg", "sbu", "cc3m", "objects365")


@click.command(context_settings={"show_default": True})
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("raw"),
    help="Folder of the releases; each becomes OUT/<source>.",
)
@click.option(
    "--images", type=click.IntRange(min=1), default=400, help="Training images per source."
)
@click.option("--seed", type=int, default=0, help="Same seed, same bytes.")
@click.option(
    "--source",
    "sources",
    type=click.Choice(_SOURCES),
    multiple=True,
    help="Which releases; may be repeated.  [default: all five]",
    show_default=False,
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=lambda: os.cpu_count() or 1,
    show_default="all processors",
    help="Processes that draw; the result does not depend on it.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Delete and replace OUT/<source> even if it is not a sample.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object.")
def sample_command(
    out: Path,
    images: int,
    seed: int,
    sources: tuple[str, ...],
    workers: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write miniature releases in their official raw layouts.

    Rendered scenes of coloured shapes with true captions, region phrases, objects and attributes.
    COCO, CC3M and Objects365 have their own validation part (max(IMAGES / 8, 16) images; COCO's
    val2017 twice as many, half of them Karpathy's val, half his test). Visual Genome publishes no
    split, so its held-out part is a second release of other scenes, OUT/vg_val. SBU has none.

    A few images of VG are also COCO validation images, and a few addresses of SBU and CC3M have
    no image: what leak-free building and rejects are for.

    \b
    Examples:
      xvlm-data sample
      xvlm-data sample --out raw --images 2000 --seed 1
      xvlm-data sample --source coco --source vg
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    from rich.table import Table

    from xvlm_data.sample.write import write_samples

    chosen = sources or _SOURCES
    bar = Progress(
        "drawing",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("drawing", total=None)
        counts = write_samples(
            out,
            images,
            seed,
            chosen,
            workers,
            lambda done, total: bar.update(task, completed=done, total=total),
            overwrite=overwrite,
        )
    if as_json:
        click.echo(json.dumps(counts))
        return
    table = Table("release", "split", "images", "annotations")
    for name, splits in counts.items():
        for split, numbers in splits.items():
            rest = ", ".join(
                f"{value} {kind}" for kind, value in numbers.items() if kind != "images"
            )
            table.add_row(str(out / name), split, str(numbers["images"]), rest)
    Console().print(table)
