"""The training step on one GPU: MFU, waits of the host, recompilations.

    python benchmarks/step_gpu.py                 # base, batch 128, bf16, compiled; one H100, say
    python benchmarks/step_gpu.py --dry-run       # the same on a CPU with a tiny model, in seconds

Ends with status 1 where a criterion is missed: less than 35 % MFU on executed operations, an
operation that waits for the device, a graph compiled after the warm-up.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from torch.profiler import ProfilerActivity, profile

from xvlm_data.errors import UserError
from xvlm_train.bench.command import (
    STREAMS,
    make_stepper,
    print_report,
    synthetic,
    time_streams,
)
from xvlm_train.bench.step import Stepper, Variant
from xvlm_train.config import PretrainConfig, load_config
from xvlm_train.engine.distributed import choose_device
from xvlm_train.model import compiled

#: Least share of the peak, on executed operations, in the image-text stream.
LEAST_MFU = 0.35
#: Steps of each stream that compile, record and then replay.
WARMUP = 4
#: Steps of each stream after the warm-up in which nothing may be compiled.
STEPS = 8


@dataclass(frozen=True)
class Quiet:
    """What a number of steps after the warm-up did beside computing."""

    waits: list[str]
    """Operations that waited for the device; where there is no GPU, none can be seen."""
    graphs: int
    """Graphs compiled before."""
    new_graphs: int
    """Graphs compiled in these steps."""


def quiet_steps(config: PretrainConfig, stepper: Stepper, steps: int = STEPS) -> Quiet:
    """Steps of both streams on different batches, watched for waits and compilations."""
    device = stepper.device
    variant = Variant("ours", config.compute)
    batches = {stream: synthetic(config, stream, stepper.model) for stream in STREAMS}
    for stream in STREAMS:
        for batch in islice(batches[stream], WARMUP):
            stepper.step(variant, batch)
    before, waits = _graphs(), []
    for stream in STREAMS:
        for batch in islice(batches[stream], steps):
            waits += _waits(stepper, variant, batch, device)
    return Quiet(sorted(set(waits)), before, _graphs() - before)


def profile_steps(config: PretrainConfig, stepper: Stepper, file: Path, steps: int = 3) -> None:
    """Write which kernels the device ran in a few steps of each stream, and for how long."""
    variant = Variant("ours", config.compute)
    tables = []
    for stream in STREAMS:
        batches = list(islice(synthetic(config, stream, stepper.model), steps))
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
            for batch in batches:
                stepper.step(variant, batch)
            stepper.rest()
        found = seen.key_averages()
        for order in ("self_device_time_total", "self_cpu_time_total"):
            table = found.table(sort_by=order, row_limit=150, max_name_column_width=110)
            tables.append(f"{stream}, {steps} steps, by {order}\n{table}")
    file.write_text("\n\n".join(tables))


def _waits(stepper: Stepper, variant: Variant, batch: Any, device: torch.device) -> list[str]:
    """The step's forward, backward and update under torch's own watch."""
    if device.type != "cuda":
        stepper.step(variant, batch)
        return []
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepper.update(variant, batch.to(device))
    except RuntimeError as error:
        return [str(error).splitlines()[0]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return []


def _graphs() -> int:
    return _counter("stats", "unique_graphs")


def _counter(kind: str, name: str) -> int:
    return int(torch._dynamo.utils.counters[kind][name])


@click.command()
@click.option("--dry-run", is_flag=True, help="A tiny model on the CPU; criteria do not count.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True)
@click.option("--naive", is_flag=True, help="The same without savings beside it.")
@click.option(
    "--profile", "profile_file", type=click.Path(path_type=Path), help="Write kernels and times."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    dry_run: bool,
    overrides: tuple[str, ...],
    rounds: int,
    naive: bool,
    profile_file: Path | None,
    as_json: bool,
) -> None:
    """Measure the training step on a GPU."""
    preset = "tiny" if dry_run else "base"
    settings = ["compute.compile=true", "train.precision=bf16", "train.device=cuda"]
    if dry_run:
        settings = ["compute.compile=true", "train.device=cpu", "data.batch_size=4"]
        settings += ["data.max_images=3", "data.max_texts=6"]
        compiled.BACKEND = "eager"  # graphs are made and counted, no compiler is needed
    elif not torch.cuda.is_available():
        raise click.ClickException("no GPU here; try --dry-run")
    try:
        config = load_config(preset, [], [*settings, *overrides])
    except UserError as error:
        raise click.ClickException(str(error)) from None
    precision = "fp32" if dry_run else "bf16"
    stepper = make_stepper(config, choose_device(config.train.device), precision)
    report: dict[str, Any] = {}
    for stream in STREAMS:  # compiling takes minutes: whoever stops this has what was done
        found = time_streams(
            config,
            (stream,),
            preset,
            (),
            rounds=1 if dry_run else rounds,
            warmup=WARMUP,
            naive=naive,
            stepper=stepper,
        )
        if as_json:
            seconds = found["streams"][stream]["variants"]["ours"]["step_seconds"]
            click.echo(f"{stream}: {1e3 * seconds:.1f} ms a step", err=True)
        else:
            print_report(found)
        report = found | {"streams": report.get("streams", {}) | found["streams"]}
    quiet = quiet_steps(config, stepper, 2 if dry_run else STEPS)
    if profile_file is not None:
        profile_steps(config, stepper, profile_file)
    share = report["streams"]["image_text"]["variants"]["ours"]["mfu_executed"]
    passes = {
        "mfu": None if share is None else share >= LEAST_MFU,
        "no_waits": None if dry_run else not quiet.waits,
        "no_recompilation": quiet.new_graphs == 0,
    }
    report |= {
        "waits": quiet.waits,
        "graphs": quiet.graphs,
        "cuda_graphs_skipped": _counter("inductor", "cudagraph_skips"),
        "new_graphs": quiet.new_graphs,
        "passes": passes,
        "dry_run": dry_run,
    }
    if as_json:
        click.echo(json.dumps(report))
    else:
        click.echo(f"graphs {quiet.graphs}, {quiet.new_graphs} more after the warm-up")
        if skipped := report["cuda_graphs_skipped"]:
            click.echo(f"{skipped} of them launched kernel by kernel, not replayed")
        for wait in quiet.waits:
            click.echo(f"waits: {wait}")
        words = {True: "yes", False: "NO", None: "not told"}
        for name, passed in passes.items():
            click.echo(f"{name.replace('_', ' ')}: {words[passed]}")
    if not dry_run and not all(passes.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
