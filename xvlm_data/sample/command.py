"""``xvlm-data sample``: miniature releases, so that everything runs offline on a fresh machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
from click.core import ParameterSource

from xvlm_data.errors import UserError
from xvlm_data.option_types import Number

_SOURCES = ("coco", "vg", "sbu", "cc3m", "objects365")
_ANNOTATIONS_ONLY = ("openimages", "cc12m")
#: Options that mean nothing to the other kind of sample.
_OF_MINIATURES, _OF_ANNOTATIONS = ("images",), ("scale", "invalid")


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
    type=click.Choice((*_SOURCES, *_ANNOTATIONS_ONLY)),
    multiple=True,
    help="Which releases; may be repeated. openimages and cc12m with --annotations-only alone."
    "  [default: all]",
    show_default=False,
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=lambda: os.cpu_count() or 1,
    show_default="all processors",
    help="Processes at work; the result does not depend on it.",
)
@click.option(
    "--annotations-only",
    is_flag=True,
    help="Annotation files of the real sizes, without images, to measure a build with.",
)
@click.option(
    "--scale",
    default="paper",
    metavar="paper|F",
    help="With --annotations-only: paper is the size of the real releases, 0.01 a hundredth.",
)
@click.option(
    "--invalid",
    type=Number(0, 0.5),
    default=0.002,
    help="With --annotations-only: the share of records of each kind that are spoilt.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Delete and replace OUT/<source> even if it is not a sample.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object.")
@click.pass_context
def sample_command(
    context: click.Context,
    out: Path,
    images: int,
    seed: int,
    sources: tuple[str, ...],
    workers: int,
    annotations_only: bool,
    scale: str,
    invalid: float,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write miniature releases in their official raw layouts, or annotations of real size.

    Rendered scenes of coloured shapes with true captions, region phrases, objects and attributes.
    COCO, CC3M and Objects365 have their own validation part (max(IMAGES / 8, 16) images; COCO's
    val2017 twice as many, half of them Karpathy's val, half his test). Visual Genome publishes no
    split, so its held-out part is a second release of other scenes, OUT/vg_val. SBU has none.

    A few images of VG are also COCO validation images, and a few addresses of SBU and CC3M have
    no image: what leak-free building and rejects are for.

    With --annotations-only there are no images, but as many records as the real releases have
    (13 GB in all), or any share of them. Some are spoilt, each in one way that has a name, and
    OUT/<source>/truth.json holds the counts that a build with default rules has to come to.

    \b
    Examples:
      xvlm-data sample
      xvlm-data sample --out raw --images 2000 --seed 1
      xvlm-data sample --source coco --source vg
      xvlm-data sample --annotations-only --scale paper --source coco --source vg
      xvlm-data sample --annotations-only --scale 0.01 --invalid 0.05 --out scaled
    """
    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    out_of_place = _OF_MINIATURES if annotations_only else _OF_ANNOTATIONS
    if wrong := sorted(given.intersection(out_of_place)):
        state = "does not go with" if annotations_only else "needs"
        raise UserError(f"--{wrong[0]} {state} --annotations-only", "see `xvlm-data sample --help`")
    if annotations_only:
        _annotations(out, scale, invalid, seed, sources, workers, overwrite, as_json)
    else:
        _miniatures(out, images, seed, sources, workers, overwrite, as_json)


def _miniatures(
    out: Path,
    images: int,
    seed: int,
    sources: tuple[str, ...],
    workers: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    from rich.table import Table

    from xvlm_data.sample.write import write_samples

    for source in _ANNOTATIONS_ONLY:
        if source in sources:
            raise UserError(f"there is no miniature of {source}", "add --annotations-only")
    chosen = sources or _SOURCES
    bar = Progress(
        "drawing",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, markup=False),
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
    Console(markup=False).print(table)


def _annotations(
    out: Path,
    scale: str,
    invalid: float,
    seed: int,
    sources: tuple[str, ...],
    workers: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    from rich.table import Table

    from xvlm_data.console import Bars, say, stdout
    from xvlm_data.sample.annotations import SOURCES, TRUTH, Request, write_annotations
    from xvlm_data.sample.annotations.sizes import parse_scale

    bars = Bars(quiet=as_json)
    truths = write_annotations(
        out,
        Request(parse_scale(scale), seed, invalid),
        sources or SOURCES,
        workers=workers,
        stage=lambda name, total: bars.stage(name, total, "records"),
        overwrite=overwrite,
    )
    if as_json:
        click.echo(json.dumps(truths))
        return
    table = Table("release", "split", "", "in the release", "kept", "filtered", "rejected")
    for name, truth in truths.items():
        for split, found in truth["splits"].items():
            for kind, row in found["counts"].items():
                if row["raw"]:
                    left_out = [sum(row[group].values()) for group in ("filtered", "rejected")]
                    numbers = (row["raw"], row["kept"], *left_out)
                    table.add_row(name, split, kind, *(f"{n:,}" for n in numbers))
    stdout.print(table)
    say(f"what a build has to find, reason by reason: {out}/<source>/{TRUTH}")
