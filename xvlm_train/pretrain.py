"""``xvlm-train pretrain``: options to a configuration, a run's folder, and the run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from xvlm_train.config import PRESETS, dump_config, load_config
from xvlm_train.engine.preemption import EXIT_CODES, ending_at_once

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
@click.option("--init", help="Start with the weights of this folder or Hub repository.")
@click.option(
    "--resume",
    metavar="RUN|CHECKPOINT|auto",
    help="Go on exactly where it stands; auto: with --out if it was begun, else start.",
)
@click.option(
    "--allow-change",
    "allowed",
    multiple=True,
    metavar="KEY",
    help="Resume although this setting (or: manifests) changed; repeatable.",
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
    init: str | None,
    resume: str | None,
    allowed: tuple[str, ...],
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
    xvlm-train pretrain --init models/xvlm-4m --manifest manifests/mine --out runs/mine
    torchrun --standalone --nproc_per_node 8 -m xvlm_train pretrain --preset base …
    """
    context = click.get_current_context()
    # First of all: the imports below take seconds, and other ranks may be waited for.
    context.with_resource(ending_at_once())
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
    from xvlm_train.engine.watchdog import HANGS
    from xvlm_train.inputs import Inputs
    from xvlm_train.resume import (
        RESUME,
        find_start,
        folder_lock,
        lock_run,
        prepare_folder,
        refuse_silent,
        settle_config,
        settle_inputs,
    )
    from xvlm_train.run import Run
    from xvlm_train.saved import dictated, locate

    given = Inputs(
        shared=_absolute((*shared, recipe) if recipe else shared),
        image_text=_absolute(image_text),
        multi_grained=_absolute(multi_grained),
        held_out=_absolute(held_out),
        image_root=image_root,
    )
    chosen = preset or DEFAULT_PRESET
    default_out = out or Path("runs") / chosen
    _record_flights(default_out / HANGS)
    distributed.join()
    lock = folder_lock(resume, default_out, out is None)
    context.call_on_close(lock.release)
    distributed.on_main(lambda: lock_run(lock))
    # Rank 0 alone reads and checks checkpoints, so that all go on from the same one.
    found, folder = distributed.on_main(lambda: find_start(resume, default_out, out is None))
    # And downloads; a run that goes on has its weights.
    start = distributed.on_main(lambda: locate(init)) if init and found is None else None
    model = dictated(start) if start else None
    config, changes = settle_config(
        found, chosen, preset is not None, config_file, settings, official, model
    )
    refuse_silent(changes, allowed)
    inputs = settle_inputs(given, found)
    world = distributed.start(config.train.device)
    console = Console(
        stderr=True, highlight=False, markup=False, soft_wrap=True, quiet=not world.is_main
    )
    distributed.on_main(lambda: prepare_folder(folder, found, resume, lock))
    if found:
        for problem in found.passed_over:
            console.print(f"passed over: {problem}", style="yellow")
        console.print(f"going on from step {found.step}, {found.path}")
        for key, change in changes.items():
            console.print(f"changed: {key}: {change}", style="yellow")
    elif preset is None and config_file is None:
        console.print(f"preset {DEFAULT_PRESET} (see --preset)")
    run = Run(
        config,
        inputs,
        folder,
        world,
        resume=found,
        init=start,
        allowed=frozenset(allowed),
        console=console,
    )
    done, stop = run.train()
    distributed.finish()
    if stop:
        console.print(f"stopped after step {done}; go on with: {RESUME} {folder}")
        sys.exit(EXIT_CODES.get(stop, 2))
    console.print(f"done: {done} steps, {folder}")


def _of_recipe(recipe: str | None) -> list[str]:
    """Settings that a recipe has an opinion of; ``--set`` has the last word."""
    if recipe is None:
        return []
    from xvlm_data.recipe import read_recipe

    share = read_recipe(Path(recipe)).streams.multi_grained.probability
    return [f"train.iter_perc={share}"]


def _record_flights(folder: Path) -> None:
    """Let NCCL keep its last collectives, and write them where the hang reports are."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    os.environ.setdefault("TORCH_FR_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder.absolute() / "nccl_rank_"))


def _absolute(specs: tuple[str, ...]) -> list[str]:
    """Manifests by names that hold wherever the run is resumed from."""
    return [spec if "://" in spec else str(Path(spec).absolute()) for spec in specs]
