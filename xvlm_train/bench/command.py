"""``xvlm-train bench``: options to streams and variants, and what came out as tables or JSON."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from xvlm_data.console import Bars, plain_table, print_whole, stdout
from xvlm_train.config import PRESETS, PretrainConfig, load_config

if TYPE_CHECKING:
    from xvlm_train.bench.step import Stepper, Timing
    from xvlm_train.data.batch import Batch
    from xvlm_train.model.xvlm import XVLM

IMAGE_TEXT, MULTI_GRAINED = STREAMS = ("image_text", "multi_grained")
#: Different synthetic batches of a stream, taken in turn.
_BATCHES = 4


@click.command("bench")
@click.option("--preset", type=click.Choice(PRESETS), default="tiny", show_default=True)
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="YAML over the preset."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option(
    "--manifest",
    "manifests",
    multiple=True,
    help="Time batches of this manifest, waiting for data included; repeatable. [synthetic]",
)
@click.option(
    "--stream", "streams", type=click.Choice(STREAMS), multiple=True, help="Only this one."
)
@click.option("--batch", type=click.IntRange(1), help="Texts of a batch, of both streams.")
@click.option("--images", type=click.IntRange(1), help="Images of a multi-grained batch.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]))
@click.option("--device", help="auto, cpu, cuda.")
@click.option("--threads", type=click.IntRange(1), help="Of this process. [torch's choice]")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Steps.")
@click.option("--naive", is_flag=True, help="Time the same model without any saving beside it.")
@click.option("--check", is_flag=True, help="Compare losses and gradients with naive; no timing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench_command(
    preset: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    manifests: tuple[str, ...],
    streams: tuple[str, ...],
    batch: int | None,
    images: int | None,
    precision: str | None,
    device: str | None,
    threads: int | None,
    rounds: int,
    warmup: int,
    naive: bool,
    check: bool,
    as_json: bool,
) -> None:
    """Time a training step, phase by phase, and say how much of the hardware it uses.

    Without manifests, batches are noise with texts as long as those of the paper's data. --naive
    times the model without its savings too: texts padded to data.max_tokens, image keys and values
    projected for every text, each pass in a call of its own, the optimiser in a loop. Rounds are
    interleaved, so that both see the same machine.

    \b
    xvlm-train bench --preset base --batch 8 --naive
    xvlm-train bench --preset base --check --batch 4
    xvlm-train bench --preset base --precision bf16 --set compute.compile=true --json
    xvlm-train bench --manifest manifests/coco --manifest manifests/vg
    """
    import torch

    settings = list(overrides)
    if batch is not None:
        settings += [f"data.batch_size={batch}", f"data.max_texts={batch}"]
    config = load_config(preset, [config_file] if config_file else [])
    if batch is not None or images is not None:
        share = config.data.max_images / config.data.max_texts
        wanted = images or max(1, round((batch or config.data.max_texts) * share))
        settings.append(f"data.max_images={wanted}")
    if precision is not None:
        settings.append(f"train.precision={precision}")
    if device is not None:
        settings.append(f"train.device={device}")
    config = load_config(preset, [config_file] if config_file else [], settings)
    if threads:
        torch.set_num_threads(threads)
    chosen = tuple(dict.fromkeys(streams)) or STREAMS
    report = (
        _check(config, chosen, preset)
        if check
        else time_streams(
            config, chosen, preset, manifests, rounds=rounds, warmup=warmup, naive=naive
        )
    )
    if as_json:
        click.echo(json.dumps(report))
    elif check:
        _print_check(report)
    else:
        print_report(report)
    if check and not report["ok"]:
        sys.exit(1)


def _check(config: PretrainConfig, streams: tuple[str, ...], preset: str) -> dict[str, Any]:
    from dataclasses import asdict

    from xvlm_train.bench.check import TOLERANCE, compare
    from xvlm_train.engine.distributed import choose_device
    from xvlm_train.model.config import ComputeConfig

    device = choose_device(config.train.device)
    model = make_model(config, device)
    naive = ComputeConfig.naive(config.data.max_tokens)
    found = {}
    for stream in streams:
        batch = next(synthetic(config, stream, model)).to(device)
        difference = compare(model, batch, config.compute, naive, config.parity)
        found[stream] = {**asdict(difference), "ok": difference.ok}
    return {
        "preset": preset,
        "tolerance": TOLERANCE,
        "streams": found,
        "ok": all(result["ok"] for result in found.values()),
    }


def time_streams(
    config: PretrainConfig,
    streams: tuple[str, ...],
    preset: str,
    manifests: tuple[str, ...],
    *,
    rounds: int,
    warmup: int,
    naive: bool,
    stepper: Stepper | None = None,
) -> dict[str, Any]:
    """Time the streams; the report that ``--json`` prints.

    Args:
        config: model, batches, and how it computes.
        streams: by name, in order.
        preset: what to call it.
        manifests: where batches come from; none: synthetic ones.
        rounds: steps that count, of each variant.
        warmup: steps before that do not.
        naive: time the variant without savings too.
        stepper: to take the steps with; none: a new one.
    """
    from xvlm_train.bench.flops import matmul_flops, peak_flops, useful_flops
    from xvlm_train.bench.step import Variant, measure
    from xvlm_train.engine.distributed import choose_device
    from xvlm_train.model.config import ComputeConfig
    from xvlm_train.run import precision_for

    device = choose_device(config.train.device)
    precision = precision_for(config.train.precision, device)
    variants = [Variant("ours", config.compute)]
    if naive:
        plain = ComputeConfig.naive(config.data.max_tokens)
        variants.append(Variant("naive", plain, fused_optimizer=False))
    sources: dict[str, Iterator[Batch]] = {}
    if manifests:
        sources = _from_manifests(config, streams, manifests)
    stepper = stepper or make_stepper(config, device, precision)
    model = stepper.model
    if not manifests:
        sources = {stream: synthetic(config, stream, model) for stream in streams}
    report: dict[str, Any] = {
        "preset": preset,
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data": list(manifests) or "synthetic",
        "rounds": rounds,
        **_machine(device),
        "matmul_tflops": matmul_flops(device, precision) / 1e12,
        "peak_tflops": (peak_flops(device, precision) or 0) / 1e12 or None,
        "streams": {},
    }
    steps = len(variants) * (rounds + warmup)
    for stream in streams:
        batches = sources[stream]
        first = next(batches)
        batches = itertools.chain([first] * len(variants), batches)
        with Bars().stage(stream, steps, "steps") as advance:
            timings = measure(
                stepper,
                variants,
                batches,
                rounds=rounds,
                warmup=warmup,
                advance=partial(advance, 1),
            )
        useful = useful_flops(config.model, first)
        report["streams"][stream] = {
            "images": len(first.images),
            "texts": len(first.text_ids),
            "mean_tokens": float(first.host.lengths.mean()),
            "useful_tflop": useful / 1e12,
            "variants": {
                name: _row(timing, first, useful, report) for name, timing in timings.items()
            },
        }
        if naive:
            ratios = [
                other / own
                for own, other in zip(
                    timings["ours"].seconds, timings["naive"].seconds, strict=True
                )
            ]
            report["streams"][stream]["ratios"] = ratios
    return report


def _row(timing: Timing, batch: Batch, useful: int, report: dict[str, Any]) -> dict[str, Any]:
    from statistics import median

    work = timing.work
    assert work is not None
    seconds = timing.median
    speed = work.flops / seconds / 1e12
    peak = report["peak_tflops"]
    return {
        "seconds": timing.seconds,
        "step_seconds": seconds,
        "pairs_per_second": len(batch.text_ids) / seconds,
        "images_per_second": len(batch.images) / seconds,
        "peak_memory": timing.peak_memory,
        "executed_tflop": work.flops / 1e12,
        "executed_tflops": speed,
        "useful_tflops": useful / seconds / 1e12,
        "mfu_executed": speed / peak if peak else None,
        "mfu_useful": useful / seconds / 1e12 / peak if peak else None,
        "of_matmul": speed / report["matmul_tflops"],
        "padding_share": 1 - work.real_tokens / work.tokens,
        "phases": {name: median(parts) for name, parts in timing.phases.items()},
    }


def make_model(config: PretrainConfig, device: Any) -> XVLM:
    """A random model in training mode."""
    import torch

    from xvlm_train.model.xvlm import XVLM

    torch.manual_seed(config.train.seed)
    return XVLM(config.model, config.compute).to(device).train()


def make_stepper(config: PretrainConfig, device: Any, precision: str) -> Stepper:
    """A random model with its optimiser."""
    from xvlm_train.bench.step import Stepper
    from xvlm_train.engine.optim import adamw

    model = make_model(config, device)
    groups = [{"params": list(model.parameters())}]
    optimizer = adamw(groups, betas=config.optim.betas, eps=config.optim.eps)
    return Stepper(model, optimizer, precision, config.parity, config.optim.clip_norm)


def synthetic(config: PretrainConfig, stream: str, model: XVLM) -> Iterator[Batch]:
    """A few different batches of a stream, over and over."""
    from xvlm_train.data.loader import pinned
    from xvlm_train.synthetic import synthetic_batch

    data = config.data
    pairs = stream == IMAGE_TEXT
    made = [
        synthetic_batch(
            stream,
            data,
            images=data.batch_size if pairs else data.max_images,
            texts=data.batch_size if pairs else data.max_texts,
            vocab=config.model.text.vocab,
            grid=model.grid,
            seed=seed,
        )
        for seed in range(_BATCHES)
    ]
    return itertools.cycle(map(pinned, made) if model.temp.is_cuda else made)


def _from_manifests(
    config: PretrainConfig, streams: tuple[str, ...], specs: tuple[str, ...]
) -> dict[str, Iterator[Batch]]:
    """Batches as a run would read them; sets the vocabulary of ``config.model``."""
    from dataclasses import replace

    from xvlm_data.manifest import open_manifest
    from xvlm_train.data.loader import batches
    from xvlm_train.data.stream import Stream
    from xvlm_train.data.tokenizer import Tokenizer, training_texts
    from xvlm_train.model.vision import patch_grid

    opened = [open_manifest(spec) for spec in specs]
    if config.tokenizer.name is not None:
        tokenizer = Tokenizer.load(config.tokenizer.name)
    else:
        texts = training_texts(opened, config.data.max_words)
        tokenizer = Tokenizer.train(texts, config.tokenizer.vocab_size)
    config.model.text = replace(config.model.text, vocab=tokenizer.vocab_size)
    grid = patch_grid(config.model.vision)
    found = {}
    for name in streams:
        multi = name == MULTI_GRAINED
        stream = Stream(
            opened, config.data, tokenizer, grid, multi_grained=multi, skip_unusable=True
        )
        found[name] = batches(stream, range(2**31))
    return found


def _machine(device: Any) -> dict[str, Any]:
    import os
    import platform

    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def _print_check(report: dict[str, Any]) -> None:
    table = plain_table(
        f"{report['preset']}: savings on against off, no dropout, float64",
        *(("stream", "left"), ("loss", "right"), ("gradient", "right"), ("of parameter", "left")),
        ("within 1e-5", "left"),
    )
    for stream, found in report["streams"].items():
        table.add_row(
            stream,
            f"{found['loss']:.1e}",
            f"{found['gradient']:.1e}",
            found["parameter"],
            Text("yes", style="green") if found["ok"] else Text("NO", style="red"),
        )
    print_whole(stdout, table)


def print_report(report: dict[str, Any]) -> None:
    """The report as tables."""
    from statistics import median

    from xvlm_train.bench.step import PHASES

    peak = f", peak {report['peak_tflops']:.0f} TFLOP/s" if report["peak_tflops"] else ""
    stdout.print(
        f"{report['preset']}, {report['parameters']:,} parameters, {report['precision']}; "
        f"{report['device']}, {report['threads']} threads, torch {report['torch']}; "
        f"matmul {report['matmul_tflops']:.3g} TFLOP/s{peak}",
        soft_wrap=True,
    )
    use = "MFU" if report["peak_tflops"] else "of matmul"
    for stream, found in report["streams"].items():
        table = plain_table(
            f"{stream}: {found['texts']} texts of {found['mean_tokens']:.1f} tokens, "
            f"{found['images']} images, {found['useful_tflop']:.3g} useful TFLOP",
            *(("", "left"), ("s/step", "right"), ("range", "left"), ("pairs/s", "right")),
            *(("images/s", "right"), ("memory", "right"), ("TFLOP", "right"), (use, "right")),
            ("padding", "right"),
        )
        for name, row in found["variants"].items():
            share = row["mfu_executed"] if report["peak_tflops"] else row["of_matmul"]
            memory = f"{row['peak_memory'] / 1e9:.1f} GB" if row["peak_memory"] else ""
            table.add_row(
                name,
                f"{row['step_seconds']:.3g}",
                f"{min(row['seconds']):.3g}–{max(row['seconds']):.3g}",
                f"{row['pairs_per_second']:.3g}",
                f"{row['images_per_second']:.3g}",
                memory,
                f"{row['executed_tflop']:.3g}",
                f"{share:.0%}",
                f"{row['padding_share']:.0%}",
            )
        print_whole(stdout, table)
        phases = plain_table("", ("seconds in", "left"), *((name, "right") for name in PHASES))
        for name, row in found["variants"].items():
            phases.add_row(name, *(f"{row['phases'][phase]:.3g}" for phase in PHASES))
        print_whole(stdout, phases)
        if "ratios" in found:
            ratios = found["ratios"]
            spread = f" [{min(ratios):.2f}–{max(ratios):.2f}] in {len(ratios)} rounds\n"
            stdout.print(Text(f"naive / ours {median(ratios):.2f}", style="bold"), end="")
            stdout.print(spread)
