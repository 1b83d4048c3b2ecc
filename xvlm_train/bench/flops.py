"""Floating-point operations of a step, counted as it runs, and what the hardware could do."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from xvlm_train.data.batch import Batch
from xvlm_train.model.config import ComputeConfig, ModelConfig
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
class Flops:
    """Of one update, forward and backward; a multiplication and an addition are two."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both."""
        return self.forward + self.backward


def count_flops(model: XVLM, batch: Batch) -> Flops:
    """Operations of a step as ``model`` computes it; leaves gradients on its parameters.

    Matrix products, convolutions and attention; the rest is under one in a hundred.
    """
    with FlopCounterMode(display=False) as counter:
        losses = compute_losses(model(batch), batch)
        forward = counter.get_total_flops()
        losses["total"].backward()
        return Flops(forward, counter.get_total_flops() - forward)


def useful_flops(config: ModelConfig, batch: Batch) -> Flops:
    """The operations that a batch cannot do without: each text at its own length, nothing twice.

    Counted on a model without weights.
    """
    everything = replace(
        ComputeConfig(), length_groups=batch.text_ids.shape[1], length_multiple=1
    )
    with torch.device("meta"):
        model = XVLM(config, everything)
    return count_flops(model.train(), batch.to("meta"))


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
