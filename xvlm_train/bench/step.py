"""One training step, timed by phase, for several ways of computing it, side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from xvlm_train.bench.flops import Work, count_work, synchronize
from xvlm_train.data.batch import Batch
from xvlm_train.engine.optim import set_fused
from xvlm_train.model.config import ComputeConfig, Parity
from xvlm_train.model.xvlm import XVLM
from xvlm_train.objectives import compute_losses

#: In the order of a step; ``heads`` is all of the forward pass that is in no other phase.
PHASES = ("data", "vision", "text", "fusion", "heads", "backward", "optimizer")


@dataclass(frozen=True)
class Variant:
    """A way of computing the same step."""

    name: str
    compute: ComputeConfig
    fused_optimizer: bool = True


@dataclass
class Timing:
    """What the rounds of one variant and stream came to."""

    seconds: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PHASES})
    peak_memory: int | None = None
    """Bytes: of the device, or resident in this process on a CPU."""
    work: Work | None = None
    """Of the first batch."""

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return median(self.seconds)


class Stepper:
    """Takes training steps with one model and one optimiser, computed as the variants say.

    Args:
        model: on its device, in training mode.
        optimizer: AdamW over its parameters.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        parity: where losses follow the original.
        clip_norm: of the gradient.
    """

    def __init__(
        self,
        model: XVLM,
        optimizer: torch.optim.Optimizer,
        precision: str,
        parity: Parity,
        clip_norm: float,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.precision, self.parity, self.clip_norm = precision, parity, clip_norm
        self.device = model.temp.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self._clock = _Clock(self.device)
        encoder = model.text_encoder
        self._watch(model.vision_encoder, "forward", "vision")
        self._watch(encoder, "encode", "text")
        self._watch(encoder, "fuse", "fusion")
        self._watch(encoder, "encode_packed", "text")
        self._watch(encoder, "fuse_packed", "fusion")

    def step(self, variant: Variant, batch: Batch) -> Reading:
        """One update, as in a run: on a GPU the next begins before this one is done."""
        self._use(variant)
        self._clock.start()
        with self._clock.phase("data"):
            batch = batch.to(self.device, non_blocking=True)
        self.update(variant, batch)
        return self._clock.stop()

    def rest(self) -> None:
        """Wait for the device; the next step starts from nothing."""
        synchronize(self.device)
        self._clock.rest()

    def update(self, variant: Variant, batch: Batch) -> None:
        """One update with a batch on the device; waits for nothing."""
        self._use(variant)
        self.optimizer.zero_grad(set_to_none=True)
        with self._clock.phase("forward"):
            total = self._forward(batch)["total"]
        with self._clock.phase("backward"):
            self.scaler.scale(total).backward()
        with self._clock.phase("optimizer"):
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _use(self, variant: Variant) -> None:
        if variant.compute != self.model.compute:
            self.model.compute_as(variant.compute)
        set_fused(self.optimizer, variant.fused_optimizer)

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        with torch.autocast(self.device.type, dtype=low, enabled=low is not None):
            return compute_losses(self.model(batch), batch, config=self.parity)

    def _watch(self, module: nn.Module, method: str, phase: str) -> None:
        inner: Callable[..., Any] = getattr(module, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._clock.phase(phase):
                return inner(*args, **kwargs)

        setattr(module, method, timed)


def measure(
    stepper: Stepper,
    variants: Sequence[Variant],
    batches: Iterator[Batch],
    *,
    rounds: int,
    warmup: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Timings by variant: ``rounds`` rounds in which each variant takes one step.

    The machine's moods, which last longer than a step, so touch all variants alike. On a GPU each
    variant takes all its rounds in a row: what the host prepares while the device is busy with one
    would be a gift to the next.
    """
    config = stepper.model.config
    timings = {}
    for variant in variants:
        batch = next(batches)
        timings[variant.name] = timing = Timing()
        timing.work = count_work(config, variant.compute, batch, stepper.device.type)
        for _ in range(warmup):
            stepper.step(variant, batch)
            advance()
    readings: list[tuple[Timing, float, Reading]] = []
    together = [[variant] for variant in variants] if stepper.device.type == "cuda" else [variants]
    for group, number in product(together, range(rounds)):
        if not number:
            stepper.rest()
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        for variant in group:
            timing = timings[variant.name]
            with _memory(stepper.device) as memory:
                readings.append((timing, waited, stepper.step(variant, batch)))
            peak = memory()
            timing.peak_memory = max(timing.peak_memory or 0, peak) if peak else None
            advance()
    stepper.rest()
    for timing, waited, reading in readings:
        phases = reading.phases()
        phases["data"] += waited
        timing.seconds.append(reading.seconds(waited))
        for name, part in phases.items():
            timing.phases[name].append(part)
    return timings


@dataclass(frozen=True)
class Reading:
    """The marks of a step: the host's clock, or events of a GPU, to be read when it has rested."""

    begin: Any
    end: Any
    marks: list[tuple[str, Any, Any]]

    def seconds(self, waited: float) -> float:
        """Of the whole step.

        On a GPU since the end of the step before, which a host that is late makes longer; on a CPU
        with the time that was waited for the batch.
        """
        seconds = _between(self.begin, self.end)
        return seconds + waited if isinstance(self.end, float) else seconds

    def phases(self) -> dict[str, float]:
        """Seconds by phase."""
        phases = dict.fromkeys([*PHASES, "forward"], 0.0)
        for name, start, end in self.marks:
            phases[name] += _between(start, end)
        inner = phases["vision"] + phases["text"] + phases["fusion"]
        phases["heads"] = max(0.0, phases.pop("forward") - inner)
        return phases


def _between(start: Any, end: Any) -> float:
    seconds: float = end - start if isinstance(end, float) else start.elapsed_time(end) / 1e3
    return seconds


class _Clock:
    """Marks by phase: the host's, or the device's own by events that nothing waits for."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any, Any]] = []
        self._begin: Any = None
        self._last: Any = None

    def start(self) -> None:
        self._marks = []
        self._begin = self._last if self._cuda and self._last is not None else self._now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self._marks.append((name, start, self._now()))

    def stop(self) -> Reading:
        self._last = self._now()
        return Reading(self._begin, self._last, self._marks)

    def rest(self) -> None:
        self._last = None

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@contextmanager
def _memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Bytes at the peak of the block: allocated on the GPU, or resident here, sampled."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    done, peak = threading.Event(), [0]

    def sample() -> None:
        with suppress(OSError):  # no /proc here
            while not done.is_set():
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                peak[0] = max(peak[0], pages * 4096)
                done.wait(0.02)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: peak[0] or None
    finally:
        done.set()
        thread.join()
