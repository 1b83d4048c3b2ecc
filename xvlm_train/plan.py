"""``xvlm-train plan``: what a run will need and take, worked out without a GPU or the model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from xvlm_data.console import plain_table, print_whole, stdout
from xvlm_data.errors import UserError
from xvlm_data.option_types import Number
from xvlm_train.config import PRESETS, PretrainConfig, load_config

if TYPE_CHECKING:
    from xvlm_data.manifest import Manifest
    from xvlm_train.bench.flops import Work
    from xvlm_train.data.batch import Batch
    from xvlm_train.model.xvlm import XVLM

#: Peak TFLOP/s (bf16) and memory in GiB of one device.
GPUS = {
    "b200": (2250.0, 180),
    "h200": (989.0, 141),
    "h100": (989.0, 80),
    "a100-80": (312.0, 80),
    "a100-40": (312.0, 40),
    "l40s": (362.0, 48),
    "rtx4090": (165.0, 24),
    "v100": (125.0, 32),
    "t4": (65.0, 16),
}
#: Share of the peak that a step reaches, where neither --mfu nor --bench says: as measured for the
#: preset ``base``, compiled, on one H100 (docs/benchmarks.md).
DEFAULT_MFU = 0.15
_STREAMS = ("image_text", "multi_grained")
#: What the CUDA context, kernels and the allocator's gaps take, bytes; a rule of thumb.
_CONTEXT = 1_500_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step."""

    weights: int
    gradients: int
    moments: int
    exchange: int
    """Buckets of the gradient exchange; 0 on one device."""
    activations: int
    """Of the stream that needs more."""
    context: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@click.command("plan")
@click.option("--preset", type=click.Choice(PRESETS), default="base", show_default=True)
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="YAML over the preset."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting.")
@click.option("--manifest", "manifests", multiple=True, help="A source, to count epochs over.")
@click.option(
    "--gpu",
    type=click.Choice(sorted(GPUS), case_sensitive=False),
    default="h100",
    show_default=True,
)
@click.option("--gpus", type=click.IntRange(1), default=8, show_default=True, help="How many.")
@click.option(
    "--mfu",
    type=Number(0, 1, min_open=True),
    help=f"Share of the peak reached, on executed FLOPs. [{DEFAULT_MFU}, as measured on an H100]",
)
@click.option(
    "--bench",
    "bench_file",
    type=click.Path(path_type=Path),
    help="Seconds a step from `xvlm-train bench --json` on the device to plan for, instead.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan_command(
    preset: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    manifests: tuple[str, ...],
    gpu: str,
    gpus: int,
    mfu: float | None,
    bench_file: Path | None,
    as_json: bool,
) -> None:
    """Parameters, memory by part, FLOPs, epochs, loader rate and hours of a run.

    Operations and memory are counted on a model without weights, so this needs no GPU and little
    memory. Hours rest on one assumption, --mfu, or on a measurement, --bench.

    \b
    xvlm-train plan --preset base --gpu h100 --gpus 8
    xvlm-train plan --preset base --gpu a100-40 --gpus 8 --set compute.checkpointing=true
    xvlm-train plan --manifest manifests/coco --manifest manifests/vg --bench bench.json
    """
    from xvlm_data.manifest import open_manifest

    config = load_config(preset, [config_file] if config_file else [], overrides)
    opened = {spec: open_manifest(spec) for spec in manifests}
    seconds = _read_bench(bench_file) if bench_file else None
    report = make_plan(config, gpu, gpus, mfu=mfu or DEFAULT_MFU, seconds=seconds)
    report["preset"] = preset
    report["epochs"] = _epochs(config, opened, gpus)
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)


def make_plan(
    config: PretrainConfig,
    gpu: str,
    gpus: int,
    *,
    mfu: float,
    seconds: dict[str, float] | None = None,
) -> dict[str, Any]:
    """The plan of a run.

    Args:
        config: of the run; batch sizes are those of one GPU.
        gpu: a key of :data:`GPUS`.
        gpus: how many of them.
        mfu: share of the peak that executed FLOPs reach.
        seconds: measured seconds an update, by stream, instead.
    """
    from xvlm_train.bench.flops import count_work

    peak, room = GPUS[gpu]
    train, data = config.train, config.data
    works: dict[str, Work] = {}
    activations: dict[str, int] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for stream in _STREAMS:
        batch = _batch(config, stream)
        works[stream] = count_work(config.model, config.compute, batch, "cuda")
        activations[stream] = activation_bytes(config, stream)
        shapes[stream] = (len(batch.images), len(batch.text_ids))
    if train.iter_perc == 0:
        activations["multi_grained"] = 0
    step_seconds = {
        stream: (seconds or {}).get(stream, work.flops / (peak * 1e12 * mfu))
        for stream, work in works.items()
    }
    share = {"image_text": 1.0, "multi_grained": train.iter_perc}
    per_step = sum(share[stream] * step_seconds[stream] for stream in _STREAMS)
    parameters = count_parameters(config)
    memory = Memory(
        weights=4 * parameters,
        gradients=4 * parameters,
        moments=8 * parameters,
        exchange=4 * parameters if gpus > 1 else 0,
        activations=max(activations.values()) // train.accumulate,
        context=_CONTEXT,
    )
    images = sum(share[stream] * shapes[stream][0] for stream in _STREAMS)
    return {
        "gpu": gpu,
        "gpus": gpus,
        "parameters": parameters,
        "memory": {**asdict(memory), "total": memory.total, "room": room * 2**30},
        "tflop": {stream: work.flops / 1e12 for stream, work in works.items()},
        "tflop_per_step": sum(share[s] * works[s].flops for s in _STREAMS) / 1e12,
        "padding": {s: 1 - work.real_tokens / work.tokens for s, work in works.items()},
        "steps": train.steps,
        "updates": round(train.steps * (1 + train.iter_perc)),
        "global_batch": shapes["image_text"][1] * gpus,
        "mfu": None if seconds else mfu,
        "seconds_per_step": per_step,
        "images_per_second_per_gpu": images / per_step,
        "images_per_second": images * gpus / per_step,
        "workers_per_gpu": data.workers,
        "images_per_second_per_worker": images / per_step / max(1, data.workers),
        "hours": train.steps * per_step / 3600,
    }


def count_parameters(config: PretrainConfig) -> int:
    """Of the model, tied ones once."""
    import torch

    from xvlm_train.model.xvlm import XVLM

    with torch.device("meta"):
        model = XVLM(config.model)
    return sum(parameter.numel() for parameter in model.parameters())


def activation_bytes(config: PretrainConfig, stream: str, precision: str = "bf16") -> int:
    """Bytes that one forward pass keeps for the backward pass, weights not among them.

    Counted as they are saved, without data. Attention is counted as fused kernels keep it: its
    inputs, output, and one number a query, no probabilities.

    Args:
        config: the model, its batches, and how it computes.
        stream: whose batch.
        precision: ``bf16`` or ``fp32``, of what autocast casts.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from xvlm_train.model import kernels
    from xvlm_train.model.xvlm import XVLM

    compute = replace(
        config.compute,
        compile=False,
        channels_last=False,  # the same bytes, and no weights to convert
        skip_dropped=False,
        packed=config.compute.packs("cuda"),
        length_multiple=config.compute.multiple("cuda"),
        read_negatives=config.compute.reads_negatives("cuda"),
    )
    text = replace(config.model.text, attention_dropout=0.0)
    batch = _batch(config, stream)
    with torch.device("meta"):
        model = XVLM(replace(config.model, text=text), compute).train()
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with FakeTensorMode(allow_non_fake_inputs=True), cast:
        for module in model.modules():  # tensors that know their device and have no data
            for name, weight in module.named_parameters(recurse=False):
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                setattr(module, name, torch.nn.Parameter(empty))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        with kernels.planned():
            return saved_bytes(model, batch)


def saved_bytes(model: XVLM, batch: Batch) -> int:
    """Bytes that autograd keeps of one forward pass, each storage once, parameters left out."""
    import torch

    from xvlm_train.objectives import compute_losses

    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = compute_losses(model(batch), batch)
    total = sum(storage.nbytes() for storage in kept.values())
    del losses
    return total


def _batch(config: PretrainConfig, stream: str) -> Batch:
    """A batch of one GPU."""
    from xvlm_train.model.vision import patch_grid
    from xvlm_train.synthetic import synthetic_batch

    data, pairs = config.data, stream == "image_text"
    return synthetic_batch(
        stream,
        data,
        images=data.batch_size if pairs else data.max_images,
        texts=data.batch_size if pairs else data.max_texts,
        vocab=config.model.text.vocab,
        grid=patch_grid(config.model.vision),
    ).to("cpu")


def _epochs(
    config: PretrainConfig, manifests: dict[str, Manifest], gpus: int
) -> dict[str, dict[str, float]]:
    """How often a run sees each manifest's rows in a stream, if all are drawn alike."""
    from xvlm_train.data.entries import default_reads
    from xvlm_train.data.rows import count_concepts

    share = {"image_text": 1.0, "multi_grained": config.train.iter_perc}
    images = {"image_text": config.data.batch_size, "multi_grained": config.data.max_images}
    found: dict[str, dict[str, float]] = {}
    for stream in _STREAMS:
        reads = default_reads(stream == "multi_grained", config.data.region_as_caption)
        rows = {
            spec: sum(
                count_concepts(manifest, s, g, reads)[0]
                for s, shard in enumerate(manifest.shards)
                for g in range(len(shard.row_groups))
            )
            for spec, manifest in manifests.items()
        }
        total = sum(rows.values())
        if total:
            seen = config.train.steps * share[stream] * images[stream] * gpus
            found[stream] = {spec: seen / total for spec, count in rows.items() if count}
    return found


def _read_bench(path: Path) -> dict[str, float]:
    """Seconds an update by stream.

    Raises:
        UserError: the file is none of ``xvlm-train bench --json``.
    """
    try:
        streams = json.loads(path.read_text(encoding="utf-8"))["streams"]
        return {
            name: float(found["variants"]["ours"]["step_seconds"])
            for name, found in streams.items()
        }
    except FileNotFoundError:
        raise UserError(f"{path}: not found", "write it with xvlm-train bench --json") from None
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise UserError(
            f"{path}: not a result of bench", "write it with xvlm-train bench --json"
        ) from None


def _print(report: dict[str, Any]) -> None:
    table = plain_table(
        f"{report['preset']} on {report['gpus']} x {report['gpu']}", ("", "left"), ("", "right")
    )
    table.add_row("parameters", f"{report['parameters']:,}")
    memory = report["memory"]
    for part, size in memory.items():
        if part not in ("total", "room"):
            table.add_row(f"  {part}", f"{size / 1e9:.1f} GB")
    used = f"{memory['total'] / 1e9:.1f} of {memory['room'] / 1e9:.0f} GB, "
    fits = memory["total"] <= memory["room"]
    verdict = Text("fits", style="green") if fits else Text("does not fit", style="red")
    table.add_row("memory a GPU", Text(used) + verdict)
    for stream, tflop in report["tflop"].items():
        table.add_row(
            f"{stream}, a GPU and update",
            f"{tflop:.3g} TFLOP, {report['padding'][stream]:.0%} padding in texts",
        )
    table.add_row("a GPU and step", f"{report['tflop_per_step']:.3g} TFLOP")
    table.add_row("steps, updates", f"{report['steps']:,}, {report['updates']:,}")
    table.add_row("image-text pairs a step", f"{report['global_batch']:,}")
    rests = "measured" if report["mfu"] is None else f"at {report['mfu']:.0%} MFU"
    table.add_row("a step", f"{report['seconds_per_step'] * 1e3:.3g} ms ({rests})")
    table.add_row(
        "images to load",
        f"{report['images_per_second_per_gpu']:,.0f}/s a GPU,"
        f" {report['images_per_second_per_worker']:,.0f}/s a worker",
    )
    for stream, sources in report["epochs"].items():
        for spec, epochs in sources.items():
            table.add_row(f"  {stream}: {spec}", f"{epochs:.2f} epochs")
    table.add_row("hours", f"{report['hours']:.1f}", style="bold")
    print_whole(stdout, table)
