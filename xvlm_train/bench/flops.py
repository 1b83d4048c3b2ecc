"""Floating-point operations of a step, counted as it runs, and what the hardware could do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from xvlm_train.data.batch import Batch
from xvlm_train.model.config import ComputeConfig, ModelConfig
from xvlm_train.model.segments import Segment
from xvlm_train.model.xvlm import XVLM
from xvlm_train.objectives import compute_losses

#: Dense peak of one GPU in TFLOP/s, by a part of its name: (bf16 and fp16, fp32); vendor's sheets.
PEAKS = {
    "B200": (2250.0, 75.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "A10": (125.0, 31.2),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
    "RTX 4090": (165.0, 82.6),
    "RTX 3090": (71.0, 35.6),
}


@dataclass(frozen=True)
class Work:
    """Of one update; a multiplication and an addition are two operations."""

    forward: int
    backward: int
    tokens: int
    """Of all texts in all passes of the forward pass, padding too."""
    real_tokens: int
    """Those of them that are no padding."""

    @property
    def flops(self) -> int:
        """Operations of both passes: matrix products, convolutions, attention."""
        return self.forward + self.backward


def count_work(config: ModelConfig, compute: ComputeConfig, batch: Batch, device: str) -> Work:
    """What an update on this batch is, counted on a model without weights or data.

    Args:
        config: the model.
        compute: how it computes.
        batch: on the host.
        device: the type of device that it is counted for. Negative texts whose lengths are read
            there count as if each text of the batch were drawn once.
    """
    compute = replace(
        compute,
        compile=False,
        checkpointing=False,
        packed=compute.packs(device),
        skip_dropped=compute.skip_dropped and not compute.compile,
        length_multiple=compute.multiple(device),
        read_negatives=compute.reads_negatives(device),
    )
    with torch.device("meta"):
        model = XVLM(config, compute)
    tokens = [0]
    for name in ("encode", "fuse", "encode_packed", "fuse_packed"):
        _count_tokens(model.text_encoder, name, tokens)
    batch, lengths = batch.to("meta"), batch.host.lengths
    # Which images skip which block is drawn: always the same ones here.
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        torch.manual_seed(0)
        losses = compute_losses(model.train()(batch), batch)
        forward = counter.get_total_flops()
        losses["total"].backward()
        backward = counter.get_total_flops() - forward
    passes = 2 + (5 if batch.multi_grained else 4)
    return Work(forward, backward, tokens[0], passes * int(lengths.sum()))


def useful_flops(config: ModelConfig, batch: Batch) -> int:
    """The operations that a batch cannot do without: each text at its own length, nothing twice."""
    most = int(batch.text_ids.shape[1])
    compute = ComputeConfig(packed=False, length_groups=most, length_multiple=1)
    return count_work(config, compute, batch, "cpu").flops


def _count_tokens(encoder: Any, method: str, tokens: list[int]) -> None:
    inner = getattr(encoder, method)

    def counting(texts: Sequence[Segment] | Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(texts, Tensor):
            tokens[0] += len(texts)
        else:
            tokens[0] += sum(s.tokens.shape[0] * s.tokens.shape[1] for s in texts)
        return inner(texts, *args, **kwargs)

    setattr(encoder, method, counting)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The device's peak in FLOP/s; none where it is not known (a CPU, an unlisted GPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, (low, full) in PEAKS.items():
        if part in name:
            return (full if precision == "fp32" else low) * 1e12
    return None


def matmul_flops(device: torch.device, precision: str, seconds: float = 0.5) -> float:
    """FLOP/s of one large matrix product here and now: what the step could reach at most."""
    size = 8192 if device.type == "cuda" else 1024
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    factor = torch.randn(size, size, device=device, dtype=kind)
    best, end = 0.0, time.monotonic() + seconds
    repeats = 10
    while time.monotonic() < end or not best:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(factor, factor)
        synchronize(device)
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - start))
    return best


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
