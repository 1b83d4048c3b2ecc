"""``xvlm-train pretrain``: options to a configuration, a run's folder, and the run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from xvlm_data.errors import UserError
from xvlm_train.config import PRESETS, PretrainConfig, differences, dump_config, load_config

if TYPE_CHECKING:
    from xvlm_train.engine.checkpoint import Checkpoint
    from xvlm_train.run import Inputs

DEFAULT_PRESET = "tiny"


@click.command("pretrain")
@click.option("--manifest", "shared", multiple=True, help="Manifest for both streams; repeatable.")
@click.option("--recipe", help="YAML file that names the manifests of both streams, and shares.")
@click.option("--image-text", multiple=True, help="Manifest for this stream only; repeatable.")
@click.option("--multi-grained", multiple=True, help="Manifest for this stream only; repeatable.")
@click.option("--val-manifest", "held_out", multiple=True, help="Held-out manifest; repeatable.")
@click.option("--image-root", help="Where referenced images lie now.")
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    help=f"Start from these settings. [default: {DEFAULT_PRESET}]",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="YAML over the preset; a run's config.yaml is one.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option("--steps", type=int, help="Short for --set train.steps=N.")
@click.option(
    "--parity",
    type=click.Choice(["clean", "official"]),
    default="clean",
    show_default=True,
    help="official: follow the released code where our default does not.",
)
@click.option(
    "--same-text-negatives",
    type=click.Choice(["keep", "ignore", "positive"]),
    help="What other concepts of a batch with the same text, or the same patches, are: negatives as"
    " in the original, left out, or positives. [--set parity.same_text_negatives]",
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder. [runs/PRESET]")
@click.option(
    "--resume",
    metavar="RUN|CHECKPOINT|auto",
    help="Go on exactly where it stands; auto: with --out if it was begun, else start.",
)
@click.option("--print-config", is_flag=True, help="Print the whole configuration, and stop.")
def pretrain_command(
    shared: tuple[str, ...],
    recipe: str | None,
    image_text: tuple[str, ...],
    multi_grained: tuple[str, ...],
    held_out: tuple[str, ...],
    image_root: str | None,
    preset: str | None,
    config_file: Path | None,
    overrides: tuple[str, ...],
    steps: int | None,
    parity: str,
    same_text_negatives: str | None,
    out: Path | None,
    resume: str | None,
    print_config: bool,
) -> None:
    """Train X-VLM: contrastive, matching, masked words, and boxes.

    --manifest feeds both streams: rows with captions the image-text stream, rows with regions or
    objects the multi-grained one. A stream with manifests of its own takes those instead.

    \b
    xvlm-train pretrain --manifest manifests/coco --manifest manifests/vg \\
        --val-manifest manifests/coco_val --out runs/first
    xvlm-train pretrain --preset base --image-text manifests/cc3m --multi-grained manifests/vg \\
        --out runs/base --set optim.lr=2e-4
    xvlm-train pretrain --preset base --recipe manifests/4m.yaml --out runs/4m
    xvlm-train pretrain --resume runs/first
    torchrun --nproc_per_node 8 -m xvlm_train pretrain --preset base …
    """
    settings = [
        *_of_recipe(recipe),
        *overrides,
        *([f"train.steps={steps}"] if steps is not None else []),
    ]
    if same_text_negatives is not None:
        settings.append(f"parity.same_text_negatives={same_text_negatives}")
    official = parity == "official"
    if print_config:
        files = [config_file] if config_file else []
        config = load_config(preset or DEFAULT_PRESET, files, settings, official=official)
        click.echo(dump_config(config), nl=False)
        return

    from rich.console import Console

    from xvlm_train.engine import distributed
    from xvlm_train.run import Inputs, Run

    found, folder = find_start(
        resume, out or Path("runs") / (preset or DEFAULT_PRESET), out is None
    )
    config, changes = settle_config(found, preset, config_file, settings, official)
    world = distributed.start(config.train.device)
    console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not world.is_main)
    given = Inputs(
        shared=_absolute((*shared, recipe) if recipe else shared),
        image_text=_absolute(image_text),
        multi_grained=_absolute(multi_grained),
        held_out=_absolute(held_out),
        image_root=image_root,
    )
    inputs = settle_inputs(given, found)
    if world.is_main:
        prepare_folder(folder, found, resume)
    distributed.barrier()
    if found:
        console.print(f"going on from {found.path}")
        for change in changes:
            console.print(f"[yellow]changed: {change}[/]")
    elif preset is None and config_file is None:
        console.print(f"preset {DEFAULT_PRESET} (see --preset)")
    run = Run(config, inputs, folder, world, resume=found, console=console)
    done = run.train()
    distributed.finish()
    if done < config.train.steps:
        console.print(f"stopped after step {done}; go on with: {RESUME} {folder}")
        sys.exit(130)
    console.print(f"done: {done} steps, {folder}")


def _of_recipe(recipe: str | None) -> list[str]:
    """Settings that a recipe has an opinion of; ``--set`` has the last word."""
    if recipe is None:
        return []
    from xvlm_data.recipe import read_recipe

    share = read_recipe(Path(recipe)).streams.multi_grained.probability
    return [f"train.iter_perc={share}"]


def _absolute(specs: tuple[str, ...]) -> list[str]:
    """Manifests by names that hold wherever the run is resumed from."""
    return [spec if "://" in spec else str(Path(spec).absolute()) for spec in specs]


RESUME = "xvlm-train pretrain --resume"


def find_start(
    resume: str | None, out: Path, out_is_default: bool
) -> tuple[Checkpoint | None, Path]:
    """The checkpoint to go on from, if any, and the run's folder.

    Raises:
        UserError: ``resume`` names nothing that can be resumed.
    """
    from xvlm_train.engine import checkpoint

    if resume is None:
        return None, out
    if resume == "auto":
        begun = (out / checkpoint.FOLDER / checkpoint.LATEST).exists()
        return (checkpoint.find(out) if begun else None), out
    found = checkpoint.find(Path(resume))
    if not out_is_default:
        return found, out
    if found.path.parent.name != checkpoint.FOLDER:
        raise UserError(
            f"{found.path} does not lie in a run's folder", "say where to go with --out"
        )
    return found, found.path.parent.parent


def settle_config(
    found: Checkpoint | None,
    preset: str | None,
    file: Path | None,
    overrides: list[str],
    official: bool,
) -> tuple[PretrainConfig, list[str]]:
    """The configuration of the run, and what differs from the checkpoint's.

    Without a preset, a resumed run keeps the checkpoint's settings under what is given anew.
    """
    from xvlm_train.saved import CONFIG_FILE

    files = [file] if file else []
    if found is None:
        return load_config(preset or DEFAULT_PRESET, files, overrides, official=official), []
    kept = found.path / CONFIG_FILE
    before = load_config(files=[kept])
    if preset is None:
        files = [kept, *files]
    config = load_config(preset, files, overrides, official=official)
    # The vocabulary's size is the tokenizer's, which comes with the checkpoint.
    config.model.text = replace(config.model.text, vocab=before.model.text.vocab)
    return config, differences(before, config)


def settle_inputs(given: Inputs, found: Checkpoint | None) -> Inputs:
    """The manifests of the run: as given, or where none are, those of the checkpoint.

    Raises:
        UserError: no training manifest at all.
    """
    if given.shared or given.image_text or given.multi_grained:
        return given
    if found is None:
        raise UserError("no manifest", "give at least one --manifest")
    try:
        before = msgspec.convert(found.state["inputs"], type(given))
    except (KeyError, msgspec.ValidationError) as error:
        what = f"{found.path}: its state.json does not say the manifests ({error})"
        raise UserError(what, "give them with --manifest") from None
    return replace(
        before,
        held_out=given.held_out or before.held_out,
        image_root=given.image_root or before.image_root,
    )


def prepare_folder(folder: Path, found: Checkpoint | None, resume: str | None) -> None:
    """Make the run's folder.

    Raises:
        UserError: another run's remains are in it.
    """
    from xvlm_train.engine import checkpoint

    own = found is not None and found.path.resolve().is_relative_to(folder.resolve())
    if checkpoint.has_run(folder) and not own and resume != "auto":
        fix = f"go on with it ({RESUME} {folder}) or choose another --out"
        raise UserError(f"{folder} already holds a run", fix)
    folder.mkdir(parents=True, exist_ok=True)
